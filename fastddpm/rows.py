"""How the rows of coefficients follow from a schedule's tables: the columns that several tables share, and the VLB's.

All is float64 `[T]` on the CPU. `schedule` is a `NoiseSchedule`, which caches what is made here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .schedule import NoiseSchedule


def x_0_columns(schedule: NoiseSchedule, prediction_type: str) -> tuple[Tensor, Tensor]:
    """p_x, p_o of `x_0_hat = p_x x_t + p_o out`."""
    a, s = _levels(schedule)
    if prediction_type == "epsilon":
        return 1 / a, -s / a
    if prediction_type == "v_prediction":
        return a, -s
    if prediction_type == "sample":
        return torch.zeros_like(a), torch.ones_like(a)
    return -schedule.posterior_mean_x_t / schedule.posterior_mean_x_0, 1 / schedule.posterior_mean_x_0


def target_columns(schedule: NoiseSchedule, target: str) -> tuple[Tensor, Tensor, Tensor]:
    """p, q, r of the mean squared error's `target = p z + q x_0 + r x_t`."""
    a, s = _levels(schedule)
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    if target == "epsilon":
        return one, zero, zero
    if target == "sample":
        return zero, one, zero
    if target == "v_prediction":  # Salimans & Ho 2022, appendix D
        return a, -s, zero
    if target == "previous_from_x_t":
        return zero, schedule.posterior_mean_x_0, schedule.posterior_mean_x_t
    return schedule.posterior_mean_x_t * s, schedule.posterior_mean_x_0 + schedule.posterior_mean_x_t * a, zero


def log_variance_ends(schedule: NoiseSchedule, first_variance: str = "posterior") -> tuple[Tensor, Tensor]:
    """log beta~ and log beta, between which a learned variance ranges (Nichol & Dhariwal 2021, eq. 15).

    beta~ is 0 at index 0: its logarithm takes index 1's value there ("posterior", Ho's and OpenAI's convention; beta_1 where
    T = 1) or log beta_1 ("beta", Ho et al. 2020 as written).
    """
    upper = schedule.betas.log()
    lower = schedule.posterior_variance.log()
    lower[0] = upper[0] if first_variance == "beta" or len(schedule) == 1 else lower[1]
    return lower, upper


def variance_columns(schedule: NoiseSchedule, variance_type: str, first_variance: str = "posterior") -> tuple[Tensor, Tensor]:
    """u_0, u_1 of `log sigma^2 = u_0 + u_1 v`, v the network's variance channel (none where u_1 is 0)."""
    lower, upper = log_variance_ends(schedule, first_variance)
    zero = torch.zeros_like(lower)
    if variance_type == "learned":
        return zero, torch.ones_like(lower)
    if variance_type == "learned_range":  # f upper + (1 - f) lower, f = (v + 1)/2
        return (upper + lower) / 2, (upper - lower) / 2
    if variance_type == "fixed_small":
        return lower, zero
    return torch.cat((lower[:1], upper[1:])), zero  # fixed_large: OpenAI's [beta~_2, beta_2, ..]


def vlb_rows(
    schedule: NoiseSchedule,
    prediction_type: str,
    variance_type: str,
    clip_denoised: bool,
    first_variance: str,
    weights: Tensor,
) -> Tensor:
    """`[T, 16]` for the variational bound's ops:

    a, s:            x_t = a x_0 + s z
    p_x, p_o, bound: x_0_hat = clamp(p_x x_t + p_o out, -bound, bound)
    c, e_0, e_x, e_o: mu~ - mu = c (x_0 - x_0_hat) + e_0 x_0 + e_x x_t + e_o out. Where the network predicts x_0_hat in one way
                     or another, both means are the posterior's and the x_t in them cancels: c is posterior_mean_x_0, no e.
                     Where it predicts the mean ("previous"), mu is the output itself, whatever is clipped.
    v_0, v_1:        log sigma^2 - log beta~ = v_0 + v_1 v, v the network's variance channel
    precision:       1 / beta~
    p, q, r, w:      the mean squared error's target p z + q x_0 + r x_t, and its weight
    """
    one, zero = torch.ones_like(schedule.betas), torch.zeros_like(schedule.betas)
    lower, _ = log_variance_ends(schedule, first_variance)
    u_0, u_1 = variance_columns(schedule, variance_type, first_variance)
    if prediction_type == "previous":
        difference = (zero, schedule.posterior_mean_x_0, schedule.posterior_mean_x_t, -one)
        target = "previous_from_x_t"
    else:
        difference = (schedule.posterior_mean_x_0, zero, zero, zero)
        target = prediction_type
    columns = (
        *_levels(schedule),
        *x_0_columns(schedule, prediction_type),
        one * (1.0 if clip_denoised else math.inf),
        *difference,
        u_0 - lower,
        u_1,
        (-lower).exp(),
        *target_columns(schedule, target),
        weights,
    )
    return torch.stack(columns, 1)


def _levels(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    return schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()
