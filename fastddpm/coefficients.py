"""The tables of rows that the kernels take, as they follow from a schedule: made once, kept on every device (tables.py).

All that is made here is float64 on the CPU. The functions that end in `_rows` are what the public functions call.
"""

import math

import torch
from torch import Tensor

from .checks import check_one_of
from .process import Process, x_0_of
from .rows import MseRow, NoisingRow, VlbRow, pack
from .schedule import FIRST_VARIANCES, PREDICTION_TYPES, VARIANCE_TYPES, NoiseSchedule

WEIGHTS = (None, "min_snr", "sigma_sqrt", "cosmap")


# ---- what several tables share ----


def x_0_columns(process: Process, prediction_type: str, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """p_x, p_o of `x_0_hat = p_x x_t + p_o out`."""
    if isinstance(process, NoiseSchedule) and prediction_type == "previous":
        return -process.posterior_mean_x_t / process.posterior_mean_x_0, 1 / process.posterior_mean_x_0
    return x_0_of(*_levels(process, t), prediction_type, process.target_of)


def target_columns(process: Process, target: str, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, q, r of the mean squared error's `target = p z + q x_0 + r x_t`, at levels a, s."""
    zero = torch.zeros_like(a)
    if not isinstance(process, NoiseSchedule) or not target.startswith("previous"):
        return *process.target_of(a, s, target), zero
    if target == "previous_from_x_t":
        return zero, process.posterior_mean_x_0, process.posterior_mean_x_t
    return process.posterior_mean_x_t * s, process.posterior_mean_x_0 + process.posterior_mean_x_t * a, zero


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


def _levels(process: Process, t: Tensor | None) -> tuple[Tensor, Tensor]:
    return process.levels if t is None else process.levels_at(t)


def _weights(process: Process, prediction_type: str, weight: str | None, a: Tensor, s: Tensor) -> Tensor:
    if weight is None:
        return torch.ones_like(a)
    if weight == "min_snr":
        return process.min_snr_weights_at(a, s, prediction_type)
    return s**-2 if weight == "sigma_sqrt" else 2 / (math.pi * (a**2 + s**2))  # SD3's, a = 1 - s


# ---- noising ----


def q_sample_rows(process: Process, device: torch.device, dtype: torch.dtype, t: Tensor | None = None) -> Tensor:
    """`NoisingRow` of each index, or of numbers t: the levels a, s."""
    return process.table(_q_sample, device, dtype) if t is None else pack(NoisingRow(*process.levels_at(t)))


def _q_sample(process: Process) -> Tensor:
    return pack(NoisingRow(*process.levels))


def q_step_rows(schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`NoisingRow` of each t: sqrt(alpha), sqrt(beta)."""
    return schedule.table(_q_step, device, dtype)


def _q_step(schedule: NoiseSchedule) -> Tensor:
    return pack(NoisingRow(schedule.alphas.sqrt(), schedule.betas.sqrt()))


def velocity_rows(schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`NoisingRow` of each t: v = a x_0 + s z of -sqrt(1 - abar), sqrt(abar)."""
    return schedule.table(_velocity, device, dtype)


def _velocity(schedule: NoiseSchedule) -> Tensor:
    signal, noise = schedule.levels
    return pack(NoisingRow(-noise, signal))


def perturbation_rows(
    process: Process, strength: float, device: torch.device, dtype: torch.dtype, t: Tensor | None = None
) -> Tensor:
    """`NoisingRow` of each index, or of numbers t: 1, strength s."""
    return process.table(_perturbation, device, dtype, strength) if t is None else _perturbation(process, strength, t)


def _perturbation(process: Process, strength: float, t: Tensor | None = None) -> Tensor:
    a, s = _levels(process, t)
    return pack(NoisingRow(torch.ones_like(a), strength * s))


def x_0_rows(
    process: Process, prediction_type: str, device: torch.device, dtype: torch.dtype, t: Tensor | None = None
) -> Tensor:
    """`NoisingRow` of each index, or of numbers t: x_0_hat = a x_t + s out, and 0 where no x_0 follows."""
    return process.table(_x_0, device, dtype, prediction_type) if t is None else _x_0(process, prediction_type, t)


def _x_0(process: Process, prediction_type: str, t: Tensor | None = None) -> Tensor:
    return pack(NoisingRow(*x_0_columns(process, prediction_type, t))).nan_to_num(0.0, 0.0, 0.0)


# ---- losses ----


def mse_rows(
    process: Process, target: str, weight: str | None, device: torch.device, dtype: torch.dtype, t: Tensor | None = None
) -> Tensor:
    """`MseRow` of each index, or of numbers t. `target` is a prediction type, or "previous_from_x_t" where x_t is at hand in
    place of the noise."""
    _check_weight(process, weight)
    return process.table(_mse, device, dtype, target, weight) if t is None else _mse(process, target, weight, t)


def _mse(process: Process, target: str, weight: str | None, t: Tensor | None = None) -> Tensor:
    levels = _levels(process, t)
    return pack(MseRow(*target_columns(process, target, *levels), _weights(process, target, weight, *levels)))


def prior_kl_rows(schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One `MseRow`: a mean squared error against 0, of weight abar_T / (2 ln 2)."""
    return schedule.table(_prior_kl, device, dtype)


def _prior_kl(schedule: NoiseSchedule) -> Tensor:
    weight = schedule.alphas_cumprod[-1:] / (2 * math.log(2))
    zero = torch.zeros_like(weight)
    return pack(MseRow(zero, zero, zero, weight))


def vlb_rows(
    schedule: NoiseSchedule,
    prediction_type: str,
    variance_type: str,
    clip_denoised: bool,
    first_variance: str,
    weight: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """`VlbRow` of each t: the variational bound's, and beside it the mean squared error's."""
    if not isinstance(clip_denoised, bool):
        raise TypeError(f"clip_denoised: expected True or False, got {clip_denoised!r}")
    if prediction_type not in PREDICTION_TYPES or variance_type not in VARIANCE_TYPES or first_variance not in FIRST_VARIANCES:
        check_one_of("prediction_type", prediction_type, PREDICTION_TYPES)
        check_one_of("variance_type", variance_type, VARIANCE_TYPES)
        check_one_of("first_variance", first_variance, FIRST_VARIANCES)
    _check_weight(schedule, weight)
    return schedule.table(_vlb, device, dtype, prediction_type, variance_type, clip_denoised, first_variance, weight)


def _vlb(
    schedule: NoiseSchedule, prediction_type: str, variance_type: str, clip: bool, first_variance: str, weight: str | None
) -> VlbRow:
    one, zero = torch.ones_like(schedule.betas), torch.zeros_like(schedule.betas)
    a, s = schedule.levels
    p_x, p_o = x_0_columns(schedule, prediction_type)
    lower, _ = log_variance_ends(schedule, first_variance)
    u_0, u_1 = variance_columns(schedule, variance_type, first_variance)
    mean_x_0, mean_x_t = schedule.posterior_mean_x_0, schedule.posterior_mean_x_t
    direct = prediction_type == "previous"
    p, q, r = target_columns(schedule, "previous_from_x_t" if direct else prediction_type, a, s)
    return VlbRow(
        a=a,
        s=s,
        p_x=p_x,
        p_o=p_o,
        bound=one * (1.0 if clip else math.inf),
        c=zero if direct else mean_x_0,
        e_0=mean_x_0 if direct else zero,
        e_x=mean_x_t if direct else zero,
        e_o=-one if direct else zero,
        v_0=u_0 - lower,
        v_1=u_1,
        precision=(-lower).exp(),
        p=p,
        q=q,
        r=r,
        w=_weights(schedule, prediction_type, weight, a, s),
    )


def _check_weight(process: Process, weight: str | None) -> None:
    if weight is not None and weight != "min_snr":
        check_one_of("weight", weight, WEIGHTS if process.is_rectified else WEIGHTS[:2])
