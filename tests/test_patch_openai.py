"""OpenAI's diffusions, patched, beside their own."""

import copy
import itertools
import random
from importlib import import_module
from pathlib import Path
from shutil import copytree

import numpy as np
import openai_peers as peers
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastddpm
from fastddpm import randn
from fastddpm.integrations.draws import _draws_a_word_each, drawn_key, skip_randn_like

NAMES = ("twin", "guided_diffusion", "improved_diffusion")
TYPES = list(itertools.product(peers.MEANS, peers.VARIANCES))
ROUNDING = 2e-5
"""Their tables are rounded to float32: what follows from them in float64 too."""
LIKELIHOOD = 1e-4
"""Theirs takes a probability of 1e-12 and up as a difference of two near 1: float64 leaves four digits of it."""
SPACINGS = ({}, {"rescaled": True}, {"spacing": "ddim10", "rescaled": True}, {"spacing": "10"})


@pytest.fixture(params=NAMES)
def peer(request):
    return peers.Peer(request.param)


def states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def of_both(plain, patched, name, *given, **options):
    """What a method of both returns, from the same seed; it must leave the generators alike."""
    results, after = [], []
    for diffusion in (plain, patched):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        result = getattr(diffusion, name)(*given, **options)
        results.append(result if isinstance(result, dict) else {name: result})
        after.append(states())
    assert after[0] == after[1]
    assert list(results[0]) == list(results[1])
    return results


# ---- losses ----


@pytest.mark.parametrize(("mean", "variance"), TYPES)
def test_losses_and_gradients(peer, mean, variance):
    """Float32's are as near to theirs of float64 at t = 0, where theirs of float32 are not, as at every other t."""
    for loss, dtype in itertools.product(peers.LOSSES, (torch.float32, torch.float64)):
        plain, patched, handle = peer.pair(mean, variance, loss)
        exact, x = peers.network(variance, torch.float64), peers.images(dtype)
        model, noise = peers.network(variance, dtype), peers.noise_like(peers.images())
        wanted = plain.training_losses(exact, x.double(), peers.BATCH, noise=noise.double())
        got = patched.training_losses(model, x, peers.BATCH, noise=noise.to(dtype))
        assert list(got) == list(wanted) and not handle.fell_back
        for name, term in got.items():
            peers.close(term, wanted[name].to(dtype), LIKELIHOOD)
            exact.zero_grad()
            model.zero_grad()
            wanted[name].sum().backward(retain_graph=True)
            term.sum().backward(retain_graph=True)
            peers.close(model.weight.grad, exact.weight.grad.to(dtype), LIKELIHOOD)


@pytest.mark.parametrize("dtypes", list(itertools.product((torch.float32, torch.float16), repeat=3)), ids=str)
def test_dtypes_of_losses(peer, dtypes):
    """Half precision is promoted by their float32 tables, but for an error of two half tensors."""
    of_x, of_noise, of_output = dtypes
    kinds = (("LEARNED_RANGE", "MSE"), ("LEARNED_RANGE", "KL"), ("FIXED_SMALL", "MSE"))
    for mean, (variance, loss) in itertools.product(peers.MEANS, kinds):
        plain, patched, handle = peer.pair(mean, variance, loss)
        x = peers.images(of_x)
        model, noise = peers.network(variance, output=of_output), peers.noise_like(x).to(of_noise)
        wanted, got = (d.training_losses(model, x, peers.BATCH, noise=noise) for d in (plain, patched))
        assert not handle.fell_back
        assert {name: term.dtype for name, term in got.items()} == {name: term.dtype for name, term in wanted.items()}
        later = peers.BATCH > 0
        peers.close(got["loss"][later], wanted["loss"][later], 2e-3)


@pytest.mark.parametrize("options", SPACINGS, ids=str)
def test_what_the_model_is_given(peer, options):
    plain, patched, _ = peer.pair("EPSILON", "FIXED_SMALL", "MSE", **options)
    t = torch.tensor([0, 1, 5, plain.num_timesteps - 1])
    calls = []
    for diffusion in (plain, patched):
        model = peers.network("FIXED_SMALL")
        diffusion.training_losses(model, peers.images(), t, {"y": 3})
        with torch.no_grad():
            diffusion.p_sample(model, peers.images(), t.int())
        calls.append(model.calls)
    for (one, one_kwargs), (other, other_kwargs) in zip(*calls, strict=True):
        assert torch.equal(one, other) and one.dtype is other.dtype and one_kwargs == other_kwargs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_noising(peer, dtype):
    plain, patched, handle = peer.pair()
    x = peers.images(dtype)
    wanted, got = of_both(plain, patched, "q_sample", x, peers.BATCH)
    peers.close(got["q_sample"], wanted["q_sample"], 1e-6)
    leaf = x.clone().requires_grad_()
    patched.q_sample(leaf, peers.BATCH).sum().backward()
    assert leaf.grad is not None and not handle.fell_back


def test_keys_in_place_of_noise(peer):
    """The loss's noise is x_t's, and a step's is a draw of its own."""
    for mean, variance, loss in itertools.product(peers.MEANS, ("FIXED_LARGE", "LEARNED_RANGE"), ("MSE", "KL")):
        plain, patched, handle = peer.pair(mean, variance, loss, noise="philox")
        model, x = peers.network(variance), peers.images()
        torch.manual_seed(5)
        key = drawn_key(len(x), x.device)
        torch.manual_seed(5)
        got = patched.training_losses(model, x, peers.BATCH)["loss"]
        with fastddpm.patch(plain, force=peer.twin):
            wanted = plain.training_losses(model, x, peers.BATCH, noise=randn(key, x.shape))["loss"]
        peers.close(got, wanted, 1e-6)
        with torch.no_grad():
            one, other = (patched.p_sample(model, x, peers.BATCH)["sample"] for _ in range(2))
        assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
        bound = patched.calc_bpd_loop(model, x)
        assert all(term.isfinite().all() for term in bound.values()) and not handle.fell_back


def test_a_key_is_made_noise_of_where_the_original_takes_over(peer):
    _, patched, handle = peer.pair("START_X", "FIXED_SMALL", "MSE", noise="philox")
    model, x = peers.network("FIXED_SMALL", output=torch.float64), peers.images()
    torch.manual_seed(5)
    got = patched.training_losses(model, x, peers.BATCH)["loss"]
    torch.manual_seed(5)
    noise = randn(drawn_key(len(x), x.device), x.shape)
    ((reason, count),) = handle.fell_back.items()
    assert count == 1 and "precision" in reason
    peers.close(got, patched.training_losses(model, x, peers.BATCH, noise=noise)["loss"], 1e-6)


# ---- steps ----


@pytest.mark.parametrize(("mean", "variance"), TYPES)
def test_steps(peer, mean, variance):
    for options, dtype in zip(SPACINGS, (torch.float32, torch.float16, torch.float64, torch.float32), strict=True):
        plain, patched, handle = peer.pair(mean, variance, **options)
        x, t = peers.images(dtype) * 1.5, torch.tensor([0, 1, 5, plain.num_timesteps - 1])
        model = peers.network(variance, torch.float64 if dtype is torch.float64 else torch.float32)
        calls = [("p_sample", {}), ("ddim_sample", {}), ("ddim_sample", {"eta": 1.0}), ("ddim_reverse_sample", {})]
        for (name, given), clip in itertools.product(calls, (True, False)):
            with torch.no_grad():
                wanted, got = of_both(plain, patched, name, model, x, t, clip_denoised=clip, **given)
            for part in wanted:
                peers.close(got[part], wanted[part], ROUNDING)
        assert not handle.fell_back


def test_dtypes_of_steps(peer):
    """Of a network in half precision: what it predicts directly stays so."""
    for mean, of_x in itertools.product(peers.MEANS, (torch.float32, torch.float16)):
        plain, patched, handle = peer.pair(mean, "LEARNED")
        model = peers.network("LEARNED", output=torch.float16)
        with torch.no_grad():
            wanted, got = of_both(plain, patched, "p_sample", model, peers.images(of_x), peers.BATCH)
        for part in wanted:
            peers.close(got[part], wanted[part], 2e-3)
        assert not handle.fell_back


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("mean", "variance"), TYPES)
def test_twenty_steps_draw_what_theirs_draw(peer, mean, variance, layout):
    """Also where the network's images have another layout than the noise: then the next draw has it."""
    plain, patched, handle = peer.pair(mean, variance, spacing="20")
    network, after = peers.network(variance), []

    def model(*given):
        return network(*given).contiguous(memory_format=layout)

    for diffusion in (plain, patched):
        torch.manual_seed(0)
        x, t = peers.images(), torch.full((len(peers.BATCH),), 19)
        with torch.no_grad():
            while t[0] >= 0:
                x = diffusion.p_sample(model, x, t)["sample"]
                x, t = diffusion.ddim_sample(model, x, t, eta=0.5)["sample"], t - 1
        after.append((x, torch.get_rng_state()))
    (wanted, state), (got, other) = after
    assert torch.equal(state, other)
    peers.close(got, wanted, 1e-4)
    assert got.stride() == wanted.stride() and not handle.fell_back


@pytest.mark.parametrize("shape", [(1,), (15,), (16,), (1, 3, 8, 8), (2, 3, 5, 5), (7, 11), (0, 4)], ids=str)
def test_noise_that_is_passed_over(shape):
    """The generator's state, and what it draws next: also after one normal of a pair."""
    layouts = (torch.empty(shape), torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.bfloat16))
    for x in (*layouts, *([layouts[0].to(memory_format=torch.channels_last)] if len(shape) == 4 else [])):
        after = []
        for draw in (torch.randn_like, skip_randn_like):
            torch.manual_seed(0)
            torch.randn(3)
            draw(x)
            after.append((torch.get_rng_state(), torch.randn(3), torch.randn(40)))
        assert all(map(torch.equal, *after))


def test_the_default_device_is_not_the_datas(peer):
    plain, patched, handle = peer.pair()
    model, x = peers.network("LEARNED_RANGE"), peers.images()
    _draws_a_word_each.cache_clear()
    with torch.no_grad(), torch.device("meta"):
        for name in ("p_sample", "ddim_sample", "ddim_reverse_sample", "training_losses"):
            of_both(plain, patched, name, model, x, peers.BATCH)
    assert not handle.fell_back


def test_gradients_through_a_step(peer):
    plain, patched, handle = peer.pair()
    grads = []
    for diffusion in (plain, patched):
        x, model = peers.images().requires_grad_(), peers.network("LEARNED_RANGE")
        torch.manual_seed(0)
        step = diffusion.p_sample(model, x, peers.BATCH)
        (step["sample"].square().sum() + step["pred_xstart"].sum()).backward()
        grads.append((x.grad, model.weight.grad))
    for got, wanted in zip(grads[1], grads[0], strict=True):
        peers.close(got, wanted, 1e-5)
    assert not handle.fell_back


# ---- bits per dimension ----


@pytest.mark.parametrize(("mean", "variance"), TYPES)
def test_bits_per_dimension(peer, mean, variance):
    """Theirs of float32 is far off at t = 0 alone: the last column, and with it the sum."""
    for clip, options in itertools.product((True, False), ({}, {"spacing": "10"})):
        plain, patched, handle = peer.pair(mean, variance, **options)
        model, x = peers.network(variance), peers.images()
        wanted, got = of_both(plain, patched, "calc_bpd_loop", model, x, clip_denoised=clip)
        for name in ("prior_bpd", "xstart_mse", "mse"):
            peers.close(got[name], wanted[name], ROUNDING)
        peers.close(got["vb"][:, :-1], wanted["vb"][:, :-1], ROUNDING)
        assert torch.equal(got["total_bpd"], got["vb"].sum(1) + got["prior_bpd"]) and not handle.fell_back


@pytest.mark.parametrize("clip", [True, False])
def test_one_term(peer, clip):
    for mean, variance in TYPES:
        plain, patched, handle = peer.pair(mean, variance)
        x = peers.images()
        x_t = plain.q_sample(x, peers.BATCH, peers.noise_like(x))
        exact, model = peers.network(variance, torch.float64), peers.network(variance)
        wanted = plain._vb_terms_bpd(exact, x.double(), x_t.double(), peers.BATCH, clip_denoised=clip)
        got = patched._vb_terms_bpd(model, x, x_t, peers.BATCH, clip_denoised=clip)
        for name in wanted:
            peers.close(got[name], wanted[name].float(), LIKELIHOOD)
        assert not handle.fell_back


def test_a_model_that_answers_in_float64_is_theirs_step_by_step(peer):
    plain, patched, handle = peer.pair()
    model, x = peers.network("LEARNED_RANGE", output=torch.float64), peers.images()
    wanted, got = of_both(plain, patched, "calc_bpd_loop", model, x)
    for name in wanted:
        peers.close(got[name], wanted[name], ROUNDING)
    assert sum(handle.fell_back.values()) == peers.STEPS


# ---- what is left to the original ----


def half_way(x, *_, **__):
    return x * 0.5


def in_float64(model):
    return lambda *given: model(*given).double()


FALLBACKS = {
    "denoised_fn": ("p_sample", lambda m, x, t: ((m, x, t), {"denoised_fn": half_way})),
    "an eta above 1": ("ddim_sample", lambda m, x, t: ((m, x, t), {"eta": 1.5})),
    "an eta that is a tensor": ("ddim_sample", lambda m, x, t: ((m, x, t), {"eta": torch.tensor(0.5)})),
    "a gradient through the data": ("training_losses", lambda m, x, t: ((m, x.clone().requires_grad_(), t), {})),
    "a gradient through noise": ("q_sample", lambda m, x, t: ((x, t, x.clone().requires_grad_()), {})),
    "noise of float64": ("training_losses", lambda m, x, t: ((m, x, t, None, x.double()), {})),
    "a negative timestep": ("training_losses", lambda m, x, t: ((m, x, t - 1), {})),
    "a loss of float64": ("training_losses", lambda m, x, t: ((in_float64(m), x, t), {})),
    "a step of float64": ("p_sample", lambda m, x, t: ((in_float64(m), x, t), {})),
    "one timestep for all": ("q_sample", lambda m, x, t: ((x, t[1:2]), {})),
}


@pytest.mark.parametrize("kind", FALLBACKS)
def test_what_falls_back_is_theirs(peer, kind):
    plain, patched, handle = peer.pair()
    name, arguments = FALLBACKS[kind]
    given, options = arguments(peers.network("LEARNED_RANGE"), peers.images(), peers.BATCH)
    wanted, got = of_both(plain, patched, name, *given, **options)
    for part in wanted:
        torch.testing.assert_close(got[part], wanted[part], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert handle.fell_back and all(reason in handle.summary() for reason in handle.fell_back)


def test_cond_fn_is_theirs(peer):
    if "improved" in peer.name:
        pytest.skip("improved-diffusion has no cond_fn")
    plain, patched, handle = peer.pair()
    given = (peers.network("LEARNED_RANGE"), peers.images(), peers.BATCH)
    wanted, got = of_both(plain, patched, "p_sample", *given, cond_fn=half_way, model_kwargs={})
    assert torch.equal(got["sample"], wanted["sample"]) and len(handle.fell_back) == 1


@pytest.mark.parametrize("name", ["twin of improved", "improved_diffusion"])
def test_improved_diffusions_samplers_have_no_cond_fn(name):
    peer = peers.Peer(name)
    patched, model = peer.diffusion(), peers.network("LEARNED_RANGE")
    with fastddpm.patch(patched, force=peer.twin) as handle:
        assert handle.peer.name == "improved_diffusion.GaussianDiffusion"
        for sample in (patched.p_sample, patched.ddim_sample):
            sample(model, peers.images(), peers.BATCH, True, None, {"y": 1})
            with pytest.raises(TypeError):
                sample(model, peers.images(), peers.BATCH, cond_fn=half_way)
    assert [kwargs for _, kwargs in model.calls] == [{"y": 1}] * 2 and not handle.fell_back


def test_an_error_is_theirs(peer):
    plain, patched, _ = peer.pair()
    model, x = peers.network("FIXED_SMALL"), peers.images()
    calls = (
        lambda d: d.training_losses(model, x, peers.BATCH),  # an output without the variance's channels
        lambda d: d.training_losses(model, x, peers.BATCH + 1),
        lambda d: d.q_sample(x, peers.BATCH, x[:1]),
        lambda d: d.ddim_reverse_sample(model, x, peers.BATCH, eta=1.0),
        lambda d: d.p_sample(model, x, peers.BATCH.float()),
        lambda d: d.calc_bpd_loop(model, x.long()),
    )
    for call in calls:
        raised = []
        for diffusion in (plain, patched):
            with pytest.raises(Exception) as error:
                call(diffusion)
            raised.append(error.type)
        assert raised[0] is raised[1]


def test_strict_calls_theirs_in_half_precision(peer):
    plain, patched, handle = peer.pair(strict=True)
    model, x = peers.network("LEARNED_RANGE"), peers.images(torch.float16)
    wanted, got = of_both(plain, patched, "training_losses", model, x, peers.BATCH)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted) and handle.fell_back


@pytest.mark.parametrize("name", ["alphas_cumprod", "posterior_mean_coef1", "sqrt_one_minus_alphas_cumprod"])
def test_a_table_that_is_assigned_is_noticed(peer, name):
    plain, patched, handle = peer.pair()
    model, x = peers.network("LEARNED_RANGE"), peers.images()
    with torch.no_grad():
        patched.ddim_sample(model, x, peers.BATCH)
        assert not handle.fell_back
        for diffusion in (plain, patched):
            setattr(diffusion, name, getattr(diffusion, name) * 0.9)
        wanted, got = of_both(plain, patched, "ddim_sample", model, x, peers.BATCH)
    assert torch.equal(got["sample"], wanted["sample"])
    assert list(handle.fell_back) == ["ddim_sample: tables that do not follow from the betas"]


def test_a_type_that_is_assigned_is_noticed(peer):
    plain, patched, handle = peer.pair("EPSILON", "FIXED_SMALL", "MSE")
    x, noise = peers.images(), peers.noise_like(peers.images())
    patched.training_losses(peers.network("FIXED_SMALL"), x, peers.BATCH)
    for diffusion in (plain, patched):
        diffusion.model_mean_type, diffusion.loss_type = peer.code.ModelMeanType.START_X, peer.code.LossType.KL
    wanted, got = (
        d.training_losses(peers.network("FIXED_SMALL"), x, peers.BATCH, noise=noise)["loss"] for d in (plain, patched)
    )
    peers.close(got[1:], wanted[1:], ROUNDING)
    assert not handle.fell_back


# ---- compilers and tracers ----


def test_a_whole_graph_compiles_as_theirs(peer):
    x, noise = peers.images(), peers.noise_like(peers.images())
    graphs = (
        lambda d: d.q_sample(x, peers.BATCH, noise),
        lambda d: d.training_losses(lambda x, t: torch.cat((x, x), 1), x, peers.BATCH, noise=noise)["loss"],
        lambda d: d.ddim_sample(lambda x, t: torch.cat((x, x), 1), x, peers.BATCH)["pred_xstart"],
    )
    plain, patched, handle = peer.pair()
    for graph in graphs:
        torch._dynamo.reset()
        got = torch.compile(lambda graph=graph: graph(patched), backend="eager", fullgraph=True)()
        assert torch.equal(got, graph(plain))
    assert not handle.fell_back


def test_a_first_call_of_no_values_leaves_nothing_behind(peer):
    plain, patched, handle = peer.pair()
    model, x, noise = peers.network("LEARNED_RANGE"), peers.images(), peers.noise_like(peers.images())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = patched.q_sample(*map(mode.from_tensor, (x, peers.BATCH, noise)))
        patched.ddim_sample(lambda x, t: torch.cat((x, x), 1), *map(mode.from_tensor, (x, peers.BATCH)))
    assert fake.shape == x.shape and fake.dtype is x.dtype
    handle.fell_back.clear()
    wanted, got = of_both(plain, patched, "ddim_sample", model, x, peers.BATCH)
    peers.close(got["sample"], wanted["sample"], ROUNDING)
    assert not handle.fell_back


# ---- copies ----


def test_undone_it_is_what_it_was(peer):
    plain = peer.diffusion(spacing="10")
    before = dict(vars(plain))
    with fastddpm.patch(plain, force=peer.twin):
        plain.training_losses(peers.network("LEARNED_RANGE"), peers.images(), torch.tensor([0, 1, 2, 3]))
    assert list(vars(plain)) == list(before) and all(vars(plain)[name] is before[name] for name in before)


def test_a_copy_is_patched_for_itself(peer):
    patched = peer.diffusion(spacing="10")
    handle = fastddpm.patch(patched, force=peer.twin)
    copied = copy.deepcopy(patched)
    handle.undo()
    assert copied.training_losses.__self__ is copied
    copied.training_losses(peers.network("LEARNED_RANGE"), peers.images(), torch.tensor([0, 1, 2, 3]), noise=peers.images())


# ---- whose they are ----


def test_a_subclass_that_overrides_what_is_gone_round_is_refused(peer):
    if peer.twin:
        pytest.skip("the stand-in's methods are none that are known")

    class Mine(peer.respace.SpacedDiffusion):
        def p_mean_variance(self, *args, **kwargs):
            return super().p_mean_variance(*args, **kwargs)

    class Same(peer.respace.SpacedDiffusion):
        def more(self):
            return 1

    plain = peer.diffusion(spacing="10")
    plain.__class__ = Mine
    with pytest.raises(ValueError, match="Mine whose p_mean_variance is one that fastddpm does not know"):
        fastddpm.patch(plain)
    plain.__class__ = Same
    assert fastddpm.patch(plain).peer.name == f"{peer.name}.SpacedDiffusion"


def test_a_changed_function_of_the_module_is_refused(peer, monkeypatch):
    if peer.twin:
        pytest.skip("the stand-in's functions are none that are known")
    monkeypatch.setattr(peer.code, "mean_flat", lambda x: x.flatten(1).sum(1))
    with pytest.raises(ValueError, match="whose mean_flat is one that fastddpm does not know"):
        fastddpm.patch(peer.diffusion())


def test_a_copy_of_the_files_in_another_package_is_taken(peer, tmp_path, monkeypatch):
    if peer.twin:
        pytest.skip("the stand-in is no file of theirs")
    copytree(Path(peer.code.__file__).parent, tmp_path / f"copy_of_{peer.name}")
    monkeypatch.syspath_prepend(tmp_path)
    modules = ("gaussian_diffusion", "respace")
    peer.code, peer.respace = (import_module(f"copy_of_{peer.name}.{module}") for module in modules)
    for spacing in (None, "10"):
        handle = fastddpm.patch(peer.diffusion(spacing=spacing))
        assert handle.peer.name == f"{peer.name}.{type(handle.obj).__name__}"
