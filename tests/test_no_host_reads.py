"""A training step never waits for the host: no value is read from a tensor, nothing moves between devices, and after the
first step nothing is uploaded. Seen from the dispatcher, so that it holds on a machine without a GPU."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from helpers import every_column, values
from torch.utils._python_dispatch import TorchDispatchMode

from fastddpm import GaussianDiffusion, NoiseSchedule, advance, noise_key, prior_kl, reference, reverse_step, samplers
from fastddpm.optim import AdamW
from fastddpm.schedule import PREDICTION_TYPES

READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2", "bincount")
UPLOADS = ("lift_fresh", "lift_fresh_copy", "scalar_tensor")


class HostReadError(Exception):
    pass


class NoHostReads(TorchDispatchMode):
    """Raises where an op waits for a GPU: a value read, an output whose size depends on values, a copy between devices, an
    index by a boolean mask; with `uploads=False` also where numbers or a table become a tensor on the device."""

    def __init__(self, uploads=True, armed=True):
        super().__init__()
        self.uploads, self.armed = uploads, armed
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        self.seen.append(name)
        if not self.armed:
            return func(*args, **kwargs)
        devices = {x.device for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        masks = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in torch.utils._pytree.tree_leaves(args[1:])
        )
        moved = name in ("_to_copy", "to") and kwargs.get("device") not in (None, *devices)
        if name in READS or masks or moved or (name.startswith("copy") and len(devices) > 1):
            raise HostReadError(name)
        if not self.uploads and (name in UPLOADS or name == "_to_copy"):
            raise HostReadError(f"upload: {name}")
        return func(*args, **kwargs)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.time = torch.nn.Embedding(1000, 3)

    def forward(self, x, t):
        return self.net(x) + self.time(t)[:, :, None, None]


def test_an_optimizers_step_neither_reads_nor_uploads():
    """Its learning rate a tensor; after the first step, which makes its tables."""
    model = torch.nn.Linear(3, 3)
    optimizer = AdamW(model.parameters(), torch.tensor(1e-3), max_grad_norm=1.0, ema_decay=0.9, ema_warmup=True)
    for armed in (False, True, True):
        optimizer.zero_grad()
        model(values(2, 3)).sum().backward()
        with NoHostReads(uploads=False, armed=armed) as ops_seen:
            optimizer.step()
    assert ops_seen.seen.count("adamw_") == 1


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("weight", [None, "min_snr", "table"])
@pytest.mark.parametrize("respaced", [False, True])
def test_a_training_step(prediction_type, weight, respaced):
    if prediction_type == "previous" and weight == "min_snr":
        pytest.skip("no such weight")
    schedule = NoiseSchedule.linear(1000).respace(50) if respaced else NoiseSchedule.linear(1000)
    weight = torch.ones(len(schedule)) if weight == "table" else weight
    diffusion, model = GaussianDiffusion(schedule, prediction_type, weight=weight), Model()
    optimizer, key, x_0 = torch.optim.SGD(model.parameters(), 1e-3), noise_key(1, 0, 4), values(4, 3, 8, 8)
    for uploads in (True, False):
        with NoHostReads(uploads) as mode:
            diffusion.training_loss(model, x_0, key).backward()
            optimizer.step()
            optimizer.zero_grad()
            advance(key)
    assert {"noising_uniform", "advance_"} <= set(mode.seen) and any(name.startswith("mse_loss") for name in mode.seen)


class Doubled(Model):
    """Twice the channels: for a learned variance."""

    def __init__(self):
        super().__init__()
        self.net, self.time = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Embedding(1000, 6)


@pytest.mark.parametrize("loss", ["hybrid", "kl", "rescaled_kl"])
@pytest.mark.parametrize("weight", [None, "table"])
def test_a_training_step_of_the_bound(loss, weight):
    if weight and loss != "hybrid":
        pytest.skip("no such weight")
    weight = torch.ones(1000) if weight == "table" else None
    diffusion = GaussianDiffusion(NoiseSchedule.linear(1000), "v_prediction", "learned_range", loss, weight)
    model, key, x_0 = Doubled(), noise_key(1, 0, 4), values(4, 3, 8, 8)
    for uploads in (True, False):
        with NoHostReads(uploads) as mode:
            diffusion.training_loss(model, x_0, key).backward()
            advance(key)
    assert any(name.startswith("hybrid_loss" if loss == "hybrid" else "vlb_loss") for name in mode.seen)


DRAWS = {"uniform": {"noising_uniform"}, "importance": {"timesteps", "noising"}}


@pytest.mark.parametrize("sampling", DRAWS)
def test_the_trainers_step(tmp_path, sampling):
    """With the network and the update of its weights. The network casts t in each step, which is no upload."""
    pytest.importorskip("diffusers")
    from fastddpm.train.trainer import TrainConfig, Trainer

    config = TrainConfig(data="digits", steps=30, batch_size=4, width=8, timesteps=4, timestep_sampling=sampling, dropout=0.1)
    trainer = Trainer(config, tmp_path)
    for trainer.step in range(30):
        with NoHostReads() as mode:
            trainer.metrics.add(trainer.step, trainer.train_step())
    assert DRAWS[sampling] | {"adamw_"} <= set(mode.seen)
    assert not set(UPLOADS) & set(mode.seen)


def test_the_benchmarks_step(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks.loops import Loop, Parts

    loop = Loop("mlp", 4)
    loss_of = loop._fused_loss()
    for uploads in (True, False):
        with NoHostReads(uploads) as mode:
            loop.train(loss_of, Parts())
    assert "_foreach_lerp_" in mode.seen


def test_a_prior():
    x_0, schedule = values(4, 3, 8, 8), NoiseSchedule.linear(1000)
    for uploads in (True, False):
        with NoHostReads(uploads):
            prior_kl(x_0, schedule)


def test_a_key_is_made_without_an_upload():
    with NoHostReads(uploads=False):
        noise_key(1, 2, 8)
        noise_key(torch.arange(4), 2)


@pytest.mark.parametrize("index", ["tensor", "int"])
def test_a_reverse_step(index):
    rows, x, key = samplers.ddpm(NoiseSchedule.linear(1000)), values(4, 3, 8, 8), noise_key(1, 0, 4)
    for uploads in (True, False):
        with NoHostReads(uploads):
            for i in (999, 998, 0):
                reverse_step(x, x, torch.full((4,), i) if index == "tensor" else i, rows, key)
                advance(key)


def test_a_reverse_step_with_every_option():
    """A number for guidance is filled where the data are."""
    rows, x, key = every_column(), values(4, 3, 8, 8), noise_key(1, 0, 4)
    for uploads in (True, False):
        with NoHostReads(uploads):
            for guidance in (2.5, torch.ones(4)):
                own = {"guidance": guidance, "bound": torch.ones(4), "history": [x, x, x], "return_kept": True}
                reverse_step(x, x, 5, rows, key, uncond_output=x, **own)


def test_a_sampling_loop_reads_nothing():
    """From the first call of the model on; before it, the respaced chain's tables are checked on the CPU."""
    diffusion, net, mode = GaussianDiffusion(NoiseSchedule.linear(1000)), Model(), NoHostReads(armed=False)

    def model(x, t):
        mode.armed = True
        return net(x, t)

    with mode:
        diffusion.sample(model, (2, 3, 8, 8), steps=4, progress=False)
    assert mode.seen.count("reverse_step") == 4 and "advance_" not in mode.seen  # one launch a step: all keys are made before


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("call", ["sample", "bits_per_dim"])
def test_a_second_call_of_a_loop_uploads_nothing(call, steps):
    """From its first line on: rows, indices and timesteps are the first call's."""
    diffusion, net = GaussianDiffusion(NoiseSchedule.linear(8)), Model()
    given = (2, 3, 8, 8) if call == "sample" else values(2, 3, 8, 8).clamp(-1, 1)

    def run():
        return getattr(diffusion, call)(net, given, steps=steps, seed=0, progress=False)

    run()
    with NoHostReads(uploads=False):
        run()


LABELS = {"model_kwargs": {"label": torch.ones(2)}, "uncond_kwargs": {"label": torch.zeros(2)}, "guidance_scale": 2.0}
WALKS = {
    **{name: {"sampler": name} for name in samplers.SAMPLERS},
    "listed": {"sampler": "ddim", "steps": [7, 5, 3]},
    "ddpm listed": {"steps": [7, 5, 3]},
    "from the middle": {"sampler": "dpmpp_2m", "start": 2, "x_t": values(2, 3, 8, 8)},
    "guided": {"sampler": "dpmpp_2m", **LABELS},
    "guided in one call": {"sampler": "heun", "stacked": True, **LABELS},
    "rescaled": {"guidance_rescale": 0.5, **LABELS},
    "inpainted": {"inpaint": (values(2, 3, 8, 8), torch.ones(8))},
    "thresholded": {"sampler": "unipc_2", "thresholding": 0.9},
    "edited": {"sampler": "lms", "denoised_fn": lambda x_0, t: x_0 / 2, "callback": lambda i, t, x, x_0: x + x_0},
    "by its score": {"sampler": "euler", "cond_fn": lambda x, t, **_: x},
    "by its mean": {"cond_fn": lambda x, t, **_: x},
}


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("walk", WALKS)
def test_no_loop_reads_nor_uploads_anything_at_its_second_call(walk, variance_type):
    diffusion = GaussianDiffusion(NoiseSchedule.linear(50), variance_type=variance_type)

    def model(x, t, label=None):
        out = x / 2 + 1e-3 * t[:, None, None, None]  # timesteps of any kind, without a cast
        return out if variance_type == "fixed_small" else torch.cat((out, out), 1)

    options = {"steps": 5, "seed": 0, "progress": False, **WALKS[walk]}
    diffusion.sample(model, (2, 3, 8, 8), **options)
    kept = len(diffusion._kept)
    with NoHostReads(uploads=False):
        diffusion.sample(model, (2, 3, 8, 8), **options)
    assert len(diffusion._kept) == kept


def test_a_loop_finds_no_rows_of_another_attribute_and_a_copy_makes_its_own():
    def run(diffusion):
        return diffusion.sample(zero, (2, 3, 8, 8), steps=4, seed=0, progress=False)

    def zero(x, t):
        return torch.zeros_like(x)

    diffusion = GaussianDiffusion(NoiseSchedule.linear(8))
    before = run(diffusion)
    assert torch.equal(run(copy.deepcopy(diffusion)), before)
    assert torch.equal(run(pickle.loads(pickle.dumps(diffusion))), before)
    diffusion.schedule = NoiseSchedule.cosine(8)
    assert torch.equal(run(diffusion), run(GaussianDiffusion(NoiseSchedule.cosine(8))))
    assert not torch.equal(run(diffusion), before)


BAD_STEPS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.mean()),
    "if": lambda x: x if x.sum() > 0 else -x,
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask set": lambda x: x.clone().__setitem__(x > 0, 0.0),
    "equal": lambda x: torch.equal(x, x),
    "another device": lambda x: x.to("meta"),
    "copy to another device": lambda x: torch.empty(x.shape, device="meta").copy_(x),
}


@pytest.mark.parametrize("bad", BAD_STEPS)
def test_the_mode_sees(bad):
    """The test of the tests above."""
    with NoHostReads(), pytest.raises(HostReadError):
        BAD_STEPS[bad](values(4, 3))


BAD_UPLOADS = {
    "numbers": lambda x: torch.tensor([1.0, 2.0]),
    "a table": lambda x: torch.ones(4, dtype=torch.float64).to(torch.float32),
}


@pytest.mark.parametrize("bad", BAD_UPLOADS)
def test_the_mode_sees_uploads(bad):
    with NoHostReads(uploads=False), pytest.raises(HostReadError, match="upload"):
        BAD_UPLOADS[bad](values(4, 3))


def test_the_reference_uploads_no_number():
    """A GPU runs it in float64: a coefficient made on the host would wait there three times a call."""
    key, mode = noise_key(0, batch_size=2), NoHostReads()
    with mode:
        reference.randn_(torch.empty(2, 3, 8, 8, dtype=torch.float64), key)
    assert "full" in mode.seen and "lift_fresh" not in mode.seen
