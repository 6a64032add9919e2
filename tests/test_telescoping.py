"""The bound is the bound: the identities that define its terms, and a problem that can be solved."""

import math

import pytest
import torch
from helpers import wide
from vlb_inputs import data

from fastddpm import (
    NoiseSchedule,
    noise_key,
    prior_kl,
    q_sample,
    vlb_loss,
)
from fastddpm.coefficients import vlb_rows
from fastddpm.reference import gaussian


def normal_log_density(x, mean, variance):
    return -(((x - mean) ** 2) / variance + torch.log(2 * math.pi * torch.as_tensor(variance, **wide))) / 2


def test_telescoping():
    """For a fixed x_0 the estimate of -log p(x_T) - sum log p(x_{t-1} | x_t) / q(x_t | x_{t-1}) along chains of q is, on
    average, prior_kl and the terms of vlb_loss: within 4 of its standard errors, which shrink as 1 / sqrt(n)."""
    steps, count = 6, 20_000
    schedule = NoiseSchedule.linear(steps, 0.05, 0.4)
    x_0 = data(1, 3, **wide).expand(count, 3).contiguous()
    states = [x_0]
    for i in range(steps):
        noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(i), **wide)
        states.append(schedule.alphas[i].sqrt() * states[-1] + schedule.betas[i].sqrt() * noise)

    def model(x):
        return torch.cat((0.7 * x + 0.1, 0.5 * x), 1)  # any will do

    plain, terms = -normal_log_density(states[-1], 0.0, 1.0), prior_kl(x_0, schedule)
    for i in range(steps):
        before, x_t, out = states[i], states[i + 1], model(states[i + 1])
        terms = terms + vlb_loss(out, x_0, x_t, i, schedule, variance_type="learned_range", reduction="none")
        rows = vlb_rows(schedule, "epsilon", "learned_range", False, "posterior", None, x_t.device, torch.float64)[i]
        variance = ((rows[9] + rows[10] * out[:, 3:]) - rows[11].log()).exp()
        x_0_hat = rows[2] * x_t + rows[3] * out[:, :3]
        mean = schedule.posterior_mean_x_0[i] * x_0_hat + schedule.posterior_mean_x_t[i] * x_t
        forward = normal_log_density(x_t, schedule.alphas[i].sqrt() * before, schedule.betas[i])
        if i:
            reverse = normal_log_density(before, mean, variance)
        else:
            reverse, _, _ = (-x for x in gaussian.nll(x_0 - mean, variance.log(), torch.ones(()), x_0, False))
        plain = plain - reverse + forward
    differences = plain.mean(1) / math.log(2) - terms
    for n in (count // 100, count):
        error = differences[:n].std() / math.sqrt(n)
        assert abs(float(differences[:n].mean())) < 4 * float(error)
    assert float(error) < 0.01


def solvable(shape, steps, sigma=0.2):
    """By how much the bound exceeds -log2 p(x_0), `[B]` a dimension, for x_0 ~ N(0, sigma^2) and the exact reverse process."""
    schedule = NoiseSchedule.linear(steps, 0.1 / steps, 20 / steps)
    x_0 = sigma * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    abar, before, betas = schedule.alphas_cumprod, schedule.alphas_cumprod_prev, schedule.betas
    level, previous = abar * sigma**2 + 1 - abar, before * sigma**2 + 1 - before
    scale, log_variance = ((1 - abar).sqrt() / level).float(), (betas * previous / level).log().float()
    bound = prior_kl(x_0, schedule)
    for i in range(steps):
        key = noise_key(2, i, shape[0])
        x_t = q_sample(x_0, i, schedule, key)
        out = torch.cat((scale[i] * x_t, log_variance[i].expand_as(x_t)), 1)
        bound = bound + vlb_loss(out, x_0, x_t, i, schedule, variance_type="learned", reduction="none")
    exact = -normal_log_density(x_0.double(), 0.0, sigma**2).flatten(1).mean(1) / math.log(2) - math.log2(2 / 255)
    return bound.double() - exact


def assert_tight(shape, steps):
    """Nothing is lost but Monte Carlo's noise, which is 0.024 bits for one image of 3x32x32."""
    gap = solvable(shape, steps)
    assert float(gap.std()) < 0.03 * math.sqrt(3072 / math.prod(shape[1:]))
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(shape[0])


def test_the_bound_of_a_solvable_problem_is_tight():
    assert_tight((32, 3, 16, 16), 250)


@pytest.mark.slow
@pytest.mark.parametrize("images", [32, 512])
def test_the_bound_of_a_solvable_problem_is_tight_at_full_length(images):
    """Of 512 the mean is within 0.0043 bits of the truth."""
    assert_tight((images, 3, 32, 32), 1000)
