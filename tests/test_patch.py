"""`patch`: what it accepts, what it leaves behind, and how it is undone."""

import copy
import functools
import pickle
from importlib import import_module
from types import MethodType

import pytest
import torch

import fastddpm
from fastddpm.integrations import PEERS
from fastddpm.integrations import diffusers as ours
from fastddpm.integrations.patch import MARK, Method, original
from fastddpm.integrations.sources import digest

pytest.importorskip("diffusers")

import diffusers

SAMPLE = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)


def scheduler(cls=diffusers.DDPMScheduler, steps=5, **config):
    made = cls(**config)
    made.set_timesteps(steps)
    return made


def same(before, after):
    """The same attributes in the same order, and the same objects."""
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)


# ---- undo ----


def test_undone_it_is_what_it_was():
    plain = scheduler()
    before = dict(vars(plain))
    handle = fastddpm.patch(plain)
    assert isinstance(plain.step, MethodType) and plain.step.__func__ is not type(plain).step
    handle.undo()
    same(before, vars(plain))
    handle.undo()  # a second time nothing happens
    same(before, vars(plain))


def test_at_the_end_of_a_with_it_is_undone():
    plain = scheduler()
    before = dict(vars(plain))
    with pytest.raises(KeyError), fastddpm.patch(plain) as handle:
        assert handle.obj is plain and isinstance(handle, fastddpm.Patch)
        raise KeyError
    same(before, vars(plain))


def test_what_it_did_meanwhile_stays():
    plain = scheduler()
    with fastddpm.patch(plain):
        plain.set_timesteps(7)
    assert len(plain.timesteps) == 7 and plain.num_inference_steps == 7


def test_no_other_object_is_changed():
    one, other = scheduler(), scheduler()
    before, of_class = dict(vars(other)), dict(vars(diffusers.DDPMScheduler))
    with fastddpm.patch(one):
        same(before, vars(other))
        same(of_class, dict(vars(diffusers.DDPMScheduler)))


def test_an_attribute_of_its_own_comes_back():
    """Which `force` replaces."""
    plain = scheduler()
    plain.step = mine = lambda *given: given
    with pytest.raises(ValueError, match=r"obj: expected an unpatched diffusers.DDPMScheduler, got one with a step of its own"):
        fastddpm.patch(plain)
    assert plain.step is mine and MARK not in vars(plain)
    with fastddpm.patch(plain, force=True):
        assert plain.step is not mine
    assert plain.step is mine


# ---- what is refused ----


class Overriding(diffusers.DDPMScheduler):
    def _get_variance(self, t, predicted_variance=None, variance_type=None):
        return super()._get_variance(t, predicted_variance, variance_type) * 2


class Adding(diffusers.DDPMScheduler):
    def more(self):
        return 1


def test_a_subclass_that_overrides_what_is_replaced_is_refused():
    plain = scheduler(Overriding)
    before = dict(vars(plain))
    with pytest.raises(ValueError, match=r"got a \S*Overriding whose _get_variance is one that fastddpm does not know"):
        fastddpm.patch(plain)
    same(before, vars(plain))
    with fastddpm.patch(plain, force=True) as handle:
        assert handle.peer.name == "diffusers.DDPMScheduler"


class Wrapping(diffusers.DDPMScheduler):
    @functools.wraps(diffusers.DDPMScheduler.step)
    def step(self, *given, **named):
        return super().step(*given, **named)


class Finding(diffusers.EulerDiscreteScheduler):
    def index_for_timestep(self, timestep, schedule_timesteps=None):
        return 7


@pytest.mark.parametrize(("cls", "name"), [(Wrapping, "step"), (Finding, "index_for_timestep")])
def test_an_override_in_disguise_is_refused(cls, name):
    with pytest.raises(ValueError, match=f"whose {name} is one that fastddpm does not know"):
        fastddpm.patch(scheduler(cls))


def test_a_subclass_that_does_not_is_taken():
    with fastddpm.patch(scheduler(Adding)) as handle:
        assert handle.obj.more() == 1 and handle.obj.step.__self__ is handle.obj


def test_twice_is_refused():
    plain = scheduler()
    with fastddpm.patch(plain), pytest.raises(ValueError, match=r"got one that is patched already .* undo"):
        fastddpm.patch(plain)
    with fastddpm.patch(plain), pytest.raises(ValueError, match="patched already"):
        fastddpm.patch(plain, force=True)


def test_a_part_that_is_patched_already_keeps_its_patch():
    one = scheduler()
    own, pipeline = fastddpm.patch(one, noise="philox"), diffusers.DDPMPipeline(torch.nn.Identity(), one)
    with fastddpm.patch(pipeline) as handle:
        assert handle.parts == [] and vars(one)[MARK] is own
    assert vars(one)[MARK] is own and one.step.__func__ is not type(one).step


def test_a_part_that_is_a_subclass_of_ours_is_left_as_it_is():
    pipeline = diffusers.DDPMPipeline(torch.nn.Identity(), scheduler(ours.DDPMScheduler))
    before = dict(vars(pipeline.scheduler))
    with fastddpm.patch(pipeline) as handle:
        assert handle.parts == []
        same(before, vars(pipeline.scheduler))


def test_a_pipeline_without_a_scheduler_is_refused():
    pipeline = diffusers.DDPMPipeline(torch.nn.Identity(), scheduler())
    pipeline.scheduler = None
    with pytest.raises(ValueError, match="expected a pipeline with a scheduler, got a DDPMPipeline without one"):
        fastddpm.patch(pipeline)


@pytest.mark.parametrize("unknown", [None, 3, torch.nn.Linear(2, 2), diffusers.DDPMScheduler])
def test_an_unknown_object_is_refused_with_those_that_are_known(unknown):
    with pytest.raises(TypeError, match=r"obj: expected one of diffusers.DDPMScheduler, .*, got "):
        fastddpm.patch(unknown)


def test_another_noise_is_refused():
    plain = scheduler()
    with pytest.raises(ValueError, match="noise: expected one of 'torch', 'philox', got 'numpy'"):
        fastddpm.patch(plain, noise="numpy")
    assert MARK not in vars(plain)


def test_a_pipeline_whose_part_is_refused_is_left_alone():
    pipeline = diffusers.DDPMPipeline(torch.nn.Identity(), scheduler(Overriding))
    before = dict(vars(pipeline))
    with pytest.raises(ValueError, match="Overriding"):
        fastddpm.patch(pipeline)
    same(before, vars(pipeline))


# ---- copies ----


def test_a_copy_is_patched_for_itself():
    plain = scheduler()
    handle = fastddpm.patch(plain)
    copied = copy.deepcopy(plain)
    own = vars(copied)[MARK]
    assert own is not handle and own.obj is copied and copied.step.__self__ is copied
    copied.set_timesteps(3)
    assert len(plain.timesteps) == 5
    handle.undo()
    assert MARK in vars(copied)
    own.undo()
    assert list(vars(copied)) == list(vars(plain))


def test_a_shallow_copy_is_patched_anew():
    """Its methods are the first one's, as copy.copy copies attributes; until it has a patch of its own."""
    plain = scheduler()
    with fastddpm.patch(plain):
        copied = copy.copy(plain)
        with fastddpm.patch(copied) as handle:
            assert copied.step.__self__ is copied and handle.obj is copied and plain.step.__self__ is plain
        assert copied.step.__func__ is type(copied).step


def test_a_method_kept_over_undo_is_the_original_s():
    plain = scheduler()
    with fastddpm.patch(plain):
        step = plain.step
    wanted = plain.step(SAMPLE, plain.timesteps[-1], SAMPLE).prev_sample
    assert torch.equal(step(SAMPLE, plain.timesteps[-1], SAMPLE).prev_sample, wanted)


def test_a_pickled_one_comes_back_with_its_class_s_methods():
    plain = scheduler()
    with fastddpm.patch(plain):
        read = pickle.loads(pickle.dumps(plain))
    assert read.step.__func__ is type(read).step
    with fastddpm.patch(read):
        assert read.step.__func__ is not type(read).step


def test_a_config_is_saved_as_it_was(tmp_path):
    plain = scheduler(prediction_type="sample")
    config = plain.to_json_string()
    with fastddpm.patch(plain):
        plain.save_pretrained(tmp_path)
        assert plain.to_json_string() == config
    assert diffusers.DDPMScheduler.from_pretrained(tmp_path).config.prediction_type == "sample"


# ---- falling back ----


def test_what_falls_back_is_counted_and_told():
    plain, patched = scheduler(thresholding=True), scheduler(thresholding=True)
    with fastddpm.patch(patched) as handle:
        for _ in range(2):
            wanted = plain.step(SAMPLE, plain.timesteps[0], SAMPLE, torch.Generator().manual_seed(1))
            came = patched.step(SAMPLE, patched.timesteps[0], SAMPLE, torch.Generator().manual_seed(1))
            assert torch.equal(wanted.prev_sample, came.prev_sample)
    ((reason, count),) = handle.fell_back.items()
    assert reason.startswith("step: thresholding") and count == 2
    assert f"fell back 2 times: {reason}" in handle.summary() and "left to the original: thresholding" in handle.summary()


def test_reasons_do_not_grow_with_shapes():
    plain = scheduler()
    with fastddpm.patch(plain) as handle:
        for n in range(2, 20):
            plain.add_noise(SAMPLE.expand(n, 3, 4, 4), SAMPLE, torch.zeros(n, dtype=torch.int64))
    assert len(handle.fell_back) == 1 and sum(handle.fell_back.values()) == 18


def test_original_is_the_one_below():
    plain = scheduler(Adding)
    with fastddpm.patch(plain):
        function = plain.step.__func__
        assert original(plain, function, "") == MethodType(diffusers.DDPMScheduler.step, plain)


# ---- sources ----


def test_a_digest_is_of_what_is_computed():
    def one(x: int, y=1):
        """Adds."""
        return x + y  # a sum

    first = digest(one)

    def one(x, y=1) -> int:
        return (x
                + y)  # fmt: skip

    assert digest(one) == first != ""

    def one(x, y=2):
        return x + y

    assert digest(one) != first


def test_a_method_without_source_is_not_known():
    assert digest(len) == ""


@pytest.mark.parametrize("name", PEERS)
def test_methods_bear_the_names_of_those_they_stand_for(name):
    """Copies and pickles find them so."""
    peer = import_module(PEERS[name], "fastddpm.integrations").PEERS[name]
    assert peer.name == name
    assert all(isinstance(method, Method) and pickle.loads(pickle.dumps(method)) == method for method in peer.methods)
