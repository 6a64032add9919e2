"""diffusers' DDPMScheduler side by side: its tables and steps; and, given the same noise, add_noise, get_velocity and step.

Its tables are float32: abar is a product of a thousand rounded factors, so two right implementations agree to 1e-5 of the
largest value in x_t. Its step takes 1 - abar from them, which at small t is 1e-4 less half of float32's digits, and divides
by sqrt(abar), 0.006 at large t: 5e-4.
"""

import numpy as np
import pytest
import schedules
import torch
from helpers import spread, values

pytest.importorskip("diffusers")

from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from fastddpm import NoiseSchedule, mse_loss, noise_key, q_sample, randn, reverse_step, samplers

SHAPE = (8, 3, 6, 5)
SCHEDULES = {
    "linear": ({}, NoiseSchedule.linear),
    "scaled_linear": ({"beta_start": 0.00085, "beta_end": 0.012}, NoiseSchedule.scaled_linear),
    "squaredcos_cap_v2": ({}, NoiseSchedule.cosine),
}
STEPS = (0, 1, 2, 100, 500, 900, 999)


def pair(name, num_timesteps=1000, **config):
    ends, make = SCHEDULES[name]
    return DDPMScheduler(num_timesteps, beta_schedule=name, **ends, **config), make(num_timesteps)


def close(got, expected, tolerance):
    """Relative to the largest value."""
    error = (got - expected).abs().max() / expected.abs().max()
    assert float(error) <= tolerance, f"{float(error):.2e} of the largest value, {tolerance} allowed"


# ---- the chain ----


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [10, 1000])
def test_betas(name, num_timesteps):
    """Equal to float32's rounding, abar to that of a thousand products."""
    theirs, ours = pair(name, num_timesteps)
    schedules.close(ours.betas, theirs.betas, 3e-7)
    schedules.close(ours.alphas_cumprod[:-1], theirs.alphas_cumprod[:-1], 1e-4)
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_betas_of_a_zero_terminal_snr(name):
    _, ours = pair(name)
    theirs = scheduling_ddpm.rescale_zero_terminal_snr(ours.betas)
    schedules.close(ours.zero_terminal_snr().betas, theirs, 1e-9)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50, 64, 250, 999, 1000])
def test_respacing(spacing, steps):
    if spacing == "linspace" and steps == 1:
        pytest.skip("diffusers takes index 999 for one step of a linspace, numpy's linspace index 0")
    theirs, ours = pair("linear", timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    assert ours.respace(steps, spacing).timesteps.tolist() == theirs.timesteps.flip(0).tolist()


def test_an_explicit_list():
    theirs, ours = pair("linear")
    theirs.set_timesteps(timesteps=[999, 500, 20, 3])
    for given in ([999, 500, 20, 3], [3, 20, 500, 999], torch.tensor([3, 20, 500, 999]), np.array([999, 500, 20, 3])):
        assert ours.respace(given).timesteps.tolist() == theirs.timesteps.flip(0).tolist() == [3, 20, 500, 999]


# ---- on data ----


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("noise", ["key", "tensor"])
def test_add_noise(name, noise):
    theirs, ours = pair(name)
    x_0, t, key = values(*SHAPE), spread(8), noise_key(1, 2, 8)
    z = randn(key, SHAPE) if noise == "key" else values(*SHAPE, seed=1)
    close(q_sample(x_0, t, ours, key if noise == "key" else z), theirs.add_noise(x_0, z, t), 1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_get_velocity(name):
    theirs, ours = pair(name)
    x_0, out, t, key = values(*SHAPE), values(*SHAPE, seed=1), spread(8), noise_key(1, 2, 8)
    velocity = theirs.get_velocity(x_0, randn(key, SHAPE), t)
    loss = mse_loss(out, t, ours, key, x_0, prediction_type="v_prediction", reduction="none")
    close(loss, (out - velocity).square().flatten(1).mean(1), 1e-5)
    assert float(mse_loss(velocity, t, ours, key, x_0, prediction_type="v_prediction")) < 1e-9


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [True, False])
def test_step(name, prediction_type, variance_type, clip, monkeypatch):
    theirs, ours = pair(name, prediction_type=prediction_type, variance_type=variance_type, clip_sample=clip)
    rows = samplers.ddpm(ours, prediction_type, variance_type, clip)
    out, x, z = values(*SHAPE), values(*SHAPE, seed=1), values(*SHAPE, seed=2)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: z)
    for t in STEPS:
        expected = theirs.step(out, t, x)
        x_prev, x_0 = reverse_step(out, x, t, rows, z)
        # cosine's abar ends at 2e-9, a product of factors near 0.001, each a float32 difference
        tolerance = 2e-2 if name == "squaredcos_cap_v2" and t == 999 else 5e-4
        close(x_0, expected.pred_original_sample, tolerance)
        close(x_prev, expected.prev_sample, tolerance)


@pytest.mark.parametrize("clip_range", [0.5, 2.0])
def test_step_clips_where_it_is_told(clip_range):
    theirs, ours = pair("linear", clip_sample_range=clip_range)
    out, x = values(*SHAPE), values(*SHAPE, seed=1)
    _, x_0 = reverse_step(out, x, 500, samplers.ddpm(ours, clip_range=clip_range), "none")
    close(x_0, theirs.step(out, 500, x).pred_original_sample, 1e-5)
    assert float(x_0.abs().max()) == clip_range


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_a_respaced_loop(spacing, variance_type, monkeypatch):
    """All ten steps, each from where the one before came to. The last but for diffusers' noise: it adds none only at t = 0,
    and a trailing chain ends at t = 99 (with fixed_small its variance is 0 there all the same)."""
    theirs, schedule = pair("linear", timestep_spacing=spacing, variance_type=variance_type)
    theirs.set_timesteps(10)
    rows = samplers.ddpm(schedule.respace(10, spacing), variance_type=variance_type)
    mine = other = values(*SHAPE, seed=1)
    for i, t in zip(range(9, -1, -1), theirs.timesteps, strict=True):
        z = values(*SHAPE, seed=10 + i)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, z=z, **kwargs: z)
        assert int(rows.timesteps[i]) == int(t)
        mine = reverse_step(0.5 * mine, mine, i, rows, z)[0]
        other = theirs.step(0.5 * other, t, other).prev_sample
        if i > 0 or int(t) == 0 or variance_type == "fixed_small":
            close(mine, other, 5e-4)


def test_zero_terminal_snr():
    theirs, ours = pair("linear", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours = ours.zero_terminal_snr()
    x_0, z, t = values(*SHAPE), values(*SHAPE, seed=1), spread(8)
    close(q_sample(x_0, t, ours, z), theirs.add_noise(x_0, z, t), 1e-5)
    assert torch.equal(q_sample(x_0, 999, ours, z), z)
