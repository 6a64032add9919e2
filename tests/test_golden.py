"""OpenAI's figures (tests/data): q(x_t | x_0), the posterior mean, p_sample, the MSE losses and their gradients, to 1e-6 of the
largest figure in float64 and 2e-5 in float32."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fastddpm import NoiseSchedule, mse_loss, q_sample, reverse_step, samplers

GOLDEN = np.load(Path(__file__).with_name("data") / "openai_gaussian_diffusion.npz")
SCHEDULES = {"linear1000": NoiseSchedule.linear, "cosine1000": NoiseSchedule.cosine}
TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-5}
CASES = list(itertools.product(SCHEDULES, ("epsilon", "sample", "previous"), ("fixed_small", "fixed_large"), TOLERANCES))
each_case = pytest.mark.parametrize(("schedule", "prediction_type", "variance_type", "dtype"), CASES)
each_table = pytest.mark.parametrize(("name", "dtype"), list(itertools.product(SCHEDULES, TOLERANCES)))


def golden(name, dtype=torch.float64):
    return torch.from_numpy(GOLDEN[name]).to(dtype)


def close(got, name, at_least=0.0):
    expected = golden(name)
    error = (got.detach().double() - expected).abs().max() / expected.abs().max()
    assert float(error) <= max(TOLERANCES[got.dtype], at_least), f"{name}: {float(error):.2e} of the largest figure"


def timesteps_of(name):
    return torch.from_numpy(GOLDEN[f"{name}/t0/t"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_betas(name):
    ours, theirs = SCHEDULES[name](1000).betas.numpy(), GOLDEN[f"betas/{name}"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=0)


@each_table
def test_q_sample(name, dtype):
    schedule, t = SCHEDULES[name](1000), timesteps_of(name)
    close(q_sample(golden("x0", dtype), t, schedule, golden("noise", dtype)), f"{name}/t0/x_t_exact")


@each_table
def test_q_posterior(name, dtype):
    """The mean is what a reverse step without noise makes of the true x_0."""
    schedule, t = SCHEDULES[name](1000), timesteps_of(name)
    rows = samplers.ddpm(schedule, "sample", clip_denoised=False)
    mean, _ = reverse_step(golden("x0", dtype), golden(f"{name}/t0/x_t", dtype), t, rows)
    close(mean, f"{name}/t0/q_posterior_mean")
    close(schedule.posterior_variance[t], f"{name}/t0/q_posterior_variance")


@each_case
@pytest.mark.parametrize("clip", [0, 1])
def test_p_sample(schedule, prediction_type, variance_type, dtype, clip):
    at = f"{schedule}/t0/{prediction_type}/{variance_type}"
    rows = samplers.ddpm(SCHEDULES[schedule](1000), prediction_type, variance_type, bool(clip))
    out, x_t = golden(f"{at}/model_output", dtype), golden(f"{schedule}/t0/x_t", dtype)
    t = timesteps_of(schedule)
    mean, x_0 = reverse_step(out, x_t, t, rows)
    close(mean, f"{at}/clip{clip}/mean")
    # a mean's x_0_hat is a difference times 1e4 at the last t: in float32 1e-4 is left of it, beside a largest value of 1
    close(x_0, f"{at}/clip{clip}/pred_xstart", 2e-4 if prediction_type == "previous" and clip and dtype == torch.float32 else 0)
    close(reverse_step(out, x_t, t, rows, golden("step_noise", dtype))[0], f"{at}/clip{clip}/p_sample")


@each_case
@pytest.mark.parametrize("given_x_t", [False, True])
def test_mse(schedule, prediction_type, variance_type, dtype, given_x_t):
    """For "previous" with the x_t that theirs was given too; without it x_t is the one theirs was rounded from."""
    at, t = f"{schedule}/t0/{prediction_type}/{variance_type}", timesteps_of(schedule)
    x_t = golden(f"{schedule}/t0/x_t", dtype) if given_x_t else None
    out = golden(f"{at}/model_output", dtype).requires_grad_()
    loss = mse_loss(
        out,
        t,
        SCHEDULES[schedule](1000),
        golden("noise", dtype),
        golden("x0", dtype),
        x_t,
        prediction_type=prediction_type,
        reduction="none",
    )
    loss.sum().backward()
    rounded = 1e-5 if prediction_type == "previous" and not given_x_t else 0
    close(loss, f"{at}/mse/loss", rounded)
    close(out.grad, f"{at}/mse/grad", rounded)
