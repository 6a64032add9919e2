"""Rows of coefficients are the formulas, and are made once."""

import copy
import pickle

import numpy as np
import pytest
import torch
from schedules import CPU, SCHEDULES, T, close

from fastddpm import NoiseSchedule, mse_loss, noise_key, q_sample, reverse_step, samplers
from fastddpm.coefficients import mse_rows, prior_kl_rows, q_sample_rows, q_step_rows, vlb_rows
from fastddpm.schedule import FIRST_VARIANCES, PREDICTION_TYPES, VARIANCE_TYPES


def test_rows_are_the_formulas():
    schedule = NoiseSchedule.linear(T)
    abar, betas = schedule.alphas_cumprod.numpy(), schedule.betas.numpy()
    rows = q_sample_rows(schedule, CPU, torch.float64).numpy()
    close(rows, np.stack((np.sqrt(abar), np.sqrt(1 - abar)), 1))
    close(q_step_rows(schedule, CPU, torch.float64), np.stack((np.sqrt(1 - betas), np.sqrt(betas)), 1))
    assert torch.equal(q_sample_rows(schedule, CPU, torch.float32), torch.from_numpy(rows).float())


@pytest.mark.parametrize("name", ["linear", "cosine", "short", "one"])
@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("first_variance", FIRST_VARIANCES)
def test_log_variances_of_the_rows(name, variance_type, first_variance):
    """The bound's and the sampler's, at three values of the network's v."""
    schedule = SCHEDULES[name]()
    betas, small = schedule.betas.numpy(), schedule.posterior_variance.numpy().copy()
    small[0] = betas[0] if first_variance == "beta" or len(betas) == 1 else small[1]
    large = np.concatenate((small[:1], betas[1:]))
    rows = vlb_rows(schedule, "sample", variance_type, False, first_variance, None, CPU, torch.float64).numpy()
    sampler = samplers.ddpm(schedule, "sample", variance_type).columns
    close(rows[:, 11], 1 / small)
    for v in (-1.0, 0.0, 1.0):
        f = (v + 1) / 2
        expected = {
            "fixed_small": np.log(small),
            "fixed_large": np.log(large),
            "learned": np.full_like(betas, v),
            "learned_range": f * np.log(betas) + (1 - f) * np.log(small),
        }[variance_type]
        got = -np.log(rows[:, 11]) + rows[:, 9] + rows[:, 10] * v
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
        close((sampler.sigma * (sampler.k_v * v).exp())[1:], np.exp(expected[1:] / 2))
        assert sampler.sigma[0] == 0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("clip", [False, True])
def test_means_of_the_rows(prediction_type, clip):
    """x_t, x_0_hat and the difference of the two means from one x_0, z and output, written out."""
    schedule = NoiseSchedule.cosine(T)
    x_0, z, out = np.float64(0.3), np.float64(-0.8), np.float64(0.45)
    a, s, p_x, p_o, bound, c, e_0, e_x, e_o = (
        vlb_rows(schedule, prediction_type, "fixed_small", clip, "posterior", None, CPU, torch.float64).numpy().T[:9]
    )
    abar = schedule.alphas_cumprod.numpy()
    x_t = np.sqrt(abar) * x_0 + np.sqrt(1 - abar) * z
    close(a * x_0 + s * z, x_t)
    of_x_0, of_x_t = schedule.posterior_mean_x_0.numpy(), schedule.posterior_mean_x_t.numpy()
    x_0_hat = {
        "epsilon": (x_t - np.sqrt(1 - abar) * out) / np.sqrt(abar),
        "v_prediction": np.sqrt(abar) * x_t - np.sqrt(1 - abar) * out,
        "sample": np.full_like(abar, out),
        "previous": (out - of_x_t * x_t) / of_x_0,
    }[prediction_type]
    x_0_hat = np.clip(x_0_hat, -1, 1) if clip else x_0_hat
    got = np.clip(p_x * x_t + p_o * out, -bound, bound)
    np.testing.assert_allclose(got, x_0_hat, rtol=1e-10, atol=1e-10)
    mean = out if prediction_type == "previous" else of_x_0 * x_0_hat + of_x_t * x_t
    difference = c * (x_0 - got) + e_0 * x_0 + e_x * x_t + e_o * out
    np.testing.assert_allclose(difference, of_x_0 * x_0 + of_x_t * x_t - mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_zero_of_x_0_hat_stays_where_it_is_to_one_rounding(prediction_type):
    """p_x / p_o, in float32, is off by the rounding of one number, half an ulp of 2^-23; each of the two by one at the most."""
    schedule = NoiseSchedule.linear(T)
    options = (schedule, prediction_type, "fixed_small", True)
    narrow, wide = (vlb_rows(*options, "posterior", None, CPU, dtype).double() for dtype in (torch.float32, torch.float64))
    assert torch.equal(narrow[:, 2:4], samplers.ddpm(*options).on(CPU, torch.float32)[:, :2].double())
    assert ((narrow[:, 2:4] - wide[:, 2:4]).abs() <= 2**-23 * wide[:, 2:4].abs()).all()
    off = narrow[:, 2] * wide[:, 3] - wide[:, 2] * narrow[:, 3]
    assert (off.abs() <= (1 + 1e-6) * 2**-24 * (wide[:, 2] * wide[:, 3]).abs()).all()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES[:3])
@pytest.mark.parametrize("weight", [None, "min_snr"])
def test_the_bounds_rows_end_in_those_of_the_mse(prediction_type, weight):
    schedule = NoiseSchedule.linear(T)
    rows = vlb_rows(schedule, prediction_type, "learned", True, "posterior", weight, CPU, torch.float64)
    assert torch.equal(rows[:, 12:], mse_rows(schedule, prediction_type, weight, CPU, torch.float64))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_rows_are_made_once(prediction_type):
    schedule = NoiseSchedule.linear(T)
    calls = (
        lambda: q_sample_rows(schedule, CPU, torch.float32),
        lambda: q_step_rows(schedule, CPU, torch.float32),
        lambda: mse_rows(schedule, prediction_type, None, CPU, torch.float32),
        lambda: vlb_rows(schedule, prediction_type, "learned_range", True, "beta", None, CPU, torch.float32),
        lambda: prior_kl_rows(schedule, CPU, torch.float32),
        lambda: schedule.timesteps_on(CPU),
        lambda: schedule.indices_on(CPU),
    )
    assert all(call() is call() for call in calls)
    assert q_sample_rows(schedule, CPU, torch.float32) is not q_sample_rows(schedule, CPU, torch.float64)
    rows = samplers.ddpm(schedule, prediction_type)
    assert rows.on(CPU, torch.float32) is rows.on(CPU, torch.float32) and rows.indices_on(CPU) is rows.indices_on(CPU)


def test_rows_made_in_inference_mode_train():
    """Whoever samples first trains with the same cached rows."""
    with torch.inference_mode():
        schedule, key = NoiseSchedule.linear(10), noise_key(0, 0, 2)
        rows = samplers.ddpm(schedule)
        x = torch.ones(2, 3)
        q_sample(x, 3, schedule, key)
        mse_loss(x, 3, schedule, key)
        reverse_step(x, x, 3, rows, key)
    x, key = torch.ones(2, 3, requires_grad=True), noise_key(0, 0, 2)
    x_t = q_sample(x, 3, schedule, key)
    (mse_loss(x_t, 3, schedule, key) + reverse_step(x_t, x_t, 3, rows, key)[0].sum()).backward()
    assert bool(x.grad.isfinite().all())


def test_a_pickled_schedule_is_the_schedule():
    schedule = NoiseSchedule.cosine(T).respace(10)
    q_sample_rows(schedule, CPU, torch.float32)
    again = pickle.loads(pickle.dumps(schedule))
    assert torch.equal(again.betas, schedule.betas) and torch.equal(again.timesteps, schedule.timesteps)
    assert len(again) == 10 and "T=10" in repr(again)
    for copied in (again, copy.deepcopy(schedule)):
        rows = q_sample_rows(copied, CPU, torch.float32)
        assert torch.equal(rows, q_sample_rows(schedule, CPU, torch.float32)) and rows is q_sample_rows(
            copied, CPU, torch.float32
        )
