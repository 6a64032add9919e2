"""The sampler of the discrete chain itself: the only one that knows the posterior, and learned variances."""

from typing import Any

import torch
from torch import Tensor

from ..checks import check_one_of
from ..coefficients import variance_columns, x_0_columns
from ..schedule import FIXED_VARIANCE_TYPES, PREDICTION_TYPES, VARIANCE_TYPES, NoiseSchedule, check_schedule
from ..spacings import EVEN
from ..tables import real_tensors
from .levels import spaced
from .sampler import check_clip
from .step_rows import StepRows


@real_tensors()
def ddpm(
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip_denoised: bool | None = None,
    clip_range: float = 1.0,
    steps: Any = None,
    spacing: str | None = None,
    steps_offset: int = 0,
) -> StepRows:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the posterior mean at x_0_hat, and noise.

    Args:
        schedule: the chain, respaced or not.
        prediction_type: "epsilon", "sample", "v_prediction" or "previous" (the output is the mean itself).
        variance_type: of the noise: "fixed_small" (beta~), "fixed_large" (beta), or from the network's variance channels v:
            "learned" (v is log sigma^2) or "learned_range" (between log beta~ at -1 and log beta at +1; Nichol & Dhariwal
            2021, eq. 15). The last step, row 0, adds none.
        clip_denoised: clamp x_0_hat to [-clip_range, clip_range]; None for True. "previous" clamps the x_0_hat returned, not
            the mean.
        clip_range: that bound.
        steps, spacing, steps_offset: over fewer steps the chain is respaced, as `Sampler` says (None: "leading").

    Raises:
        TypeError, ValueError: an unknown type, a bound not above 0, steps that can not be, or epsilon prediction at zero
            terminal SNR.
    """
    check_schedule(schedule)
    check_one_of("prediction_type", prediction_type, PREDICTION_TYPES)
    check_one_of("variance_type", variance_type, VARIANCE_TYPES)
    bound = check_clip(True if clip_denoised is None else clip_denoised, clip_range)
    schedule.check_prediction(prediction_type)
    if steps is not None:
        schedule = schedule.respace(spaced(len(schedule), steps, spacing or "leading", steps_offset, EVEN).long())
    p_x, p_o = x_0_columns(schedule, prediction_type)
    direct = prediction_type == "previous"
    sigma, k_v = _deviation(schedule, variance_type)
    sigma[0] = 0
    return StepRows(
        schedule.timesteps,
        variance_type,
        schedule.alphas_cumprod,
        draws_posterior=True,
        p_x=p_x,
        p_o=p_o,
        bound=bound,
        k_x=0.0 if direct else schedule.posterior_mean_x_t,
        k_0=0.0 if direct else schedule.posterior_mean_x_0,
        k_o=1.0 if direct else 0.0,
        sigma=sigma,
        k_v=k_v,
    )


def _deviation(schedule: NoiseSchedule, variance_type: str) -> tuple[Tensor, Tensor]:
    """sigma and k_v of a standard deviation sigma exp(k_v v), v the network's variance channel."""
    if variance_type in FIXED_VARIANCE_TYPES:
        sigma = schedule.variance(variance_type).sqrt()
        return sigma, torch.zeros_like(sigma)
    u_0, u_1 = variance_columns(schedule, variance_type)
    return (u_0 / 2).exp(), u_1 / 2
