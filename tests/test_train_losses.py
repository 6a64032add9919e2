"""Runs with the bound's losses, learned variances and importance-sampled timesteps: resumed, sampled, exported, timed."""

import json

import numpy as np
import pytest
import torch
from helpers import threads

pytest.importorskip("diffusers")

from crash import CrashError, crash_at
from diffusers import DDPMPipeline

from fastddpm import NoiseSchedule, q_sample, reverse_step, samplers
from fastddpm.train import TrainConfig, UsageError, checkpoint, report, resume, train
from fastddpm.train.drawing import draw
from fastddpm.train.eager import EagerLoss
from fastddpm.train.network import make_scheduler
from fastddpm.train.results import write_results
from fastddpm.train.runs import load_run

TINY = {"data": "digits", "batch_size": 8, "width": 8, "timesteps": 8, "log_every": 3, "checkpoint_every": 10, "dropout": 0.2}
IMPORTANCE = TrainConfig(**TINY, steps=40, loss="kl", timestep_sampling="importance")
LOSSES = [
    ("hybrid", "learned"),
    ("hybrid", "learned_range"),
    ("kl", "fixed_small"),
    ("kl", "learned"),
    ("rescaled_kl", "fixed_large"),
    ("rescaled_kl", "learned_range"),
    ("mse", "fixed_large"),
]


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield


def tensors(state):
    """Every tensor of a checkpoint, by its path."""
    if isinstance(state, torch.Tensor):
        return {"": state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {f"{name}/{path}": x for name, value in items for path, x in tensors(value).items()}


def assert_same_state(a, b):
    a, b = tensors(checkpoint.load(a, "cpu")), tensors(checkpoint.load(b, "cpu"))
    assert a.keys() == b.keys() and all(torch.equal(x, b[path]) for path, x in a.items())


# ---- resuming ----


def test_importance_sampling_is_resumed_to_the_bit(tmp_path, monkeypatch):
    """From a checkpoint before the sampler is filled, and from one after."""
    train(IMPORTANCE, tmp_path / "unbroken")
    state = checkpoint.load(tmp_path / "unbroken", "cpu")["t_sampler"]
    assert int(state["counts"].sum()) == 40 * 8 and int(state["counts"].min()) > 10
    for crash in (7, 38):
        out = tmp_path / str(crash)
        with monkeypatch.context() as patch, pytest.raises(CrashError):
            crash_at(patch, crash)
            train(IMPORTANCE, out)
        assert checkpoint.load(out, "cpu")["step"] == crash // 10 * 10
        resume(out)
        assert_same_state(out, tmp_path / "unbroken")


def test_importance_sampling_changes_the_run_once_filled(tmp_path):
    runs = {}
    for sampling in ("uniform", "importance"):
        config = TrainConfig(**{**IMPORTANCE.to_dict(), "timestep_sampling": sampling})
        train(config, tmp_path / sampling)
        lines = (tmp_path / sampling / "metrics.jsonl").read_text().splitlines()
        runs[sampling] = [json.loads(line)["loss"] for line in lines]
    assert (
        runs["uniform"][:3] == pytest.approx(runs["importance"][:3], rel=1e-5) and runs["uniform"][-1] != runs["importance"][-1]
    )


def test_a_run_from_before_these_settings_goes_on(tmp_path, monkeypatch):
    """Its checkpoint knows nothing of them, and goes on to the bits it would have had."""
    config = TrainConfig(**TINY, steps=20)
    train(config, tmp_path / "unbroken")
    with monkeypatch.context() as patch, pytest.raises(CrashError):
        crash_at(patch, 12)
        train(config, tmp_path / "old")
    state = checkpoint.load(tmp_path / "old", "cpu")
    del state["t_sampler"]
    for name in ("loss", "variance", "timestep_sampling"):
        del state["config"][name]
    checkpoint.save(tmp_path / "old", state)
    assert resume(tmp_path / "old").config == config
    assert_same_state(tmp_path / "old", tmp_path / "unbroken")


@pytest.mark.parametrize("change", [{"loss": "rescaled_kl"}, {"variance": "fixed_large"}, {"timestep_sampling": "uniform"}])
def test_a_run_keeps_its_loss(tmp_path, change):
    train(TrainConfig(**{**IMPORTANCE.to_dict(), "steps": 10}), tmp_path)
    with pytest.raises(UsageError, match=next(iter(change))):
        resume(tmp_path, **change)


# ---- every loss, to the end ----


@pytest.mark.parametrize("loss, variance", LOSSES)
def test_a_run_of_each_loss(tmp_path, loss, variance):
    config = TrainConfig(**{**TINY, "dropout": 0.0}, steps=60, loss=loss, variance=variance, lr=5e-3)
    run = train(config, tmp_path)
    losses = [line["loss"] for line in run.metrics.lines]
    assert np.isfinite(losses).all() and np.mean(losses[-4:]) < 0.9 * np.mean(losses[:2])
    assert run.network.conv_out.out_channels == (2 if config.learns_variance else 1)
    images = draw(load_run(tmp_path), 4, steps=4, seed=1)
    assert images.shape == (4, 1, 8, 8) and images.isfinite().all()


def test_what_a_run_with_a_learned_variance_leaves(tmp_path):
    """diffusers reads learned_range as we do."""
    config = TrainConfig(**TINY, steps=12, loss="hybrid", variance="learned_range", timestep_sampling="importance")
    run = train(config, tmp_path)
    table = write_results(run)
    stages = json.loads((tmp_path / "timing.json").read_text())["stages"]
    assert list(stages) == [*report.STAGES, "importance", "total"] and "importance" in table
    assert stages["importance"]["fastddpm"] == stages["importance"]["eager"] > 0

    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config["variance_type"] == "learned_range" and pipeline.unet.config["out_channels"] == 2
    images = pipeline(batch_size=3, num_inference_steps=8, output_type="np").images
    assert images.shape == (3, 8, 8, 1) and np.isfinite(images).all() and images.std() > 0.05


def test_a_learned_variance_has_no_pipeline(tmp_path):
    """diffusers takes such an output for the variance itself. Nor is one left that another run made in this folder."""
    (tmp_path / "model_index.json").write_text("{}")
    write_results(train(TrainConfig(**TINY, steps=3, loss="hybrid", variance="learned"), tmp_path))
    assert not (tmp_path / "model_index.json").exists() and not (tmp_path / "unet").exists()
    assert (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_our_steps_of_a_learned_range_are_diffusers(prediction):
    """Over the whole chain. Of fewer, trailing, steps the last adds noise in diffusers, whose t is not 0 then."""
    config = TrainConfig(**TINY, loss="hybrid", variance="learned_range", prediction=prediction)
    scheduler = make_scheduler(config)
    scheduler.set_timesteps(8)
    rows = samplers.ddpm(config.diffusion().schedule, prediction, "learned_range")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, t in zip(range(7, -1, -1), scheduler.timesteps, strict=True):
        output = torch.cat((torch.sin(3 * x), torch.cos(5 * x)), 1)
        noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(i))
        theirs = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(i)).prev_sample
        ours, _ = reverse_step(output, x, i, rows, noise)
        assert torch.allclose(ours, theirs, atol=1e-4), i
        x = ours


# ---- the timing table's eager side ----


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("loss, variance", [*LOSSES, ("mse", "fixed_small")])
def test_the_eager_loss_that_is_timed_is_the_same_loss(prediction, loss, variance):
    config = TrainConfig(data="digits", timesteps=50, prediction=prediction, loss=loss, variance=variance)
    diffusion = config.diffusion()
    schedule = diffusion.schedule
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(9, 1, 8, 8, generator=generator).clamp(-0.9, 0.9) for _ in range(2))
    t = torch.tensor([0, 1, 2, 5, 10, 20, 30, 40, 49])
    x_t = q_sample(x_0, t, schedule, noise)
    eager = EagerLoss(config, schedule, torch.device("cpu"))
    output = eager._target(x_0, noise, t) + 0.02 * torch.randn(x_0.shape, generator=generator)
    if config.learns_variance:
        v = torch.randn(x_0.shape, generator=generator)
        output = torch.cat((output, v if variance == "learned_range" else v - 5), 1)
    ours, theirs = (output.clone().requires_grad_() for _ in range(2))
    a, b = diffusion.loss_of(ours, x_0, x_t, t, noise), eager(theirs, x_0, x_t, noise, t)
    assert torch.allclose(a, b, rtol=2e-3)  # their normal CDF is within 1.8e-4
    a.backward()
    b.backward()
    later = slice(1, None)
    assert torch.allclose(ours.grad[later], theirs.grad[later], rtol=1e-3, atol=1e-3 * float(theirs.grad[later].abs().max()))


# ---- what does not go together ----


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"loss": "hybrid"}, "variance: expected learned or learned_range with loss hybrid, got 'fixed_small'"),
        ({"variance": "learned"}, "loss: expected hybrid, kl or rescaled_kl with variance learned, got 'mse'"),
        ({"loss": "l1"}, "loss: expected one of mse, hybrid, kl, rescaled_kl, got 'l1'"),
        ({"variance": "beta"}, "variance: expected one of fixed_small, fixed_large, learned, learned_range, got 'beta'"),
        ({"timestep_sampling": "stratified"}, "timestep_sampling: expected one of uniform, importance, got 'stratified'"),
        (
            {"timestep_sampling": "importance", "steps": 100},
            "steps, batch_size: expected a product of 10000 or more with timestep_sampling importance, .* got 6400",
        ),
    ],
)
def test_mistakes(settings, told):
    with pytest.raises(UsageError, match=told):
        TrainConfig(data="digits", **settings)


def test_defaults_are_those_of_before():
    config = TrainConfig(data="digits")
    assert (config.loss, config.variance, config.timestep_sampling) == ("mse", "fixed_small", "uniform")
    diffusion = config.diffusion()
    assert (diffusion.loss, diffusion.variance_type) == ("mse", "fixed_small") and config.t_sampler(torch.device("cpu")) is None
    assert isinstance(diffusion.schedule, NoiseSchedule)
