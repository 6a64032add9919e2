"""Samplers: each is a function that makes the table of rows that `reverse_step` walks, from the last row to row 0."""

import math

import torch
from torch import Tensor

from .checks import check_one_of
from .rows import variance_columns, x_0_columns
from .schedule import FIXED_VARIANCE_TYPES, PREDICTION_TYPES, VARIANCE_TYPES, NoiseSchedule
from .tables import Tables


class StepRows:
    """A sampler's coefficients.

    Attributes:
        table: float64 `[S, 8]` on the CPU: p_x, p_o, bound, k_x, k_0, k_o, sigma, k_v of `reverse_step`.
        timesteps: int64 `[S]`, what the network is given at each row.
        variance_type: "learned" and "learned_range" want a network's output of twice the channels.
    """

    def __init__(self, table: Tensor, timesteps: Tensor, variance_type: str = "fixed_small"):
        self.table, self.timesteps, self.variance_type = table, timesteps, variance_type
        self._tables = Tables(self._make_table)

    def __len__(self) -> int:
        return len(self.table)

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The table on a device, uploaded once."""
        return self._tables.get("rows", tuple(self.table.shape), device, dtype)

    def indices_on(self, device: torch.device) -> Tensor:
        """0..S-1 on a device: an int index is a view of it, so that none is uploaded."""
        return self._tables.get("indices", (len(self),), device, torch.int64)

    def _make_table(self, name: str) -> Tensor:
        return self.table if name == "rows" else torch.arange(len(self), device="cpu")


def ddpm(
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip_denoised: bool = True,
    clip_range: float = 1.0,
) -> StepRows:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the posterior mean at x_0_hat, and noise.

    Args:
        schedule: the chain, respaced or not.
        prediction_type: "epsilon", "sample", "v_prediction" or "previous" (the output is the mean itself).
        variance_type: of the noise: "fixed_small" (beta~), "fixed_large" (beta), or from the network's variance channels v:
            "learned" (v is log sigma^2) or "learned_range" (between log beta~ at -1 and log beta at +1; Nichol & Dhariwal
            2021, eq. 15). The last step, row 0, adds none.
        clip_denoised: clamp x_0_hat to [-clip_range, clip_range]. "previous" clamps the x_0_hat returned, not the mean.
        clip_range: that bound.

    Raises:
        ValueError: an unknown type, a bound not above 0, or epsilon prediction at zero terminal SNR.
    """
    check_one_of("prediction_type", prediction_type, PREDICTION_TYPES)
    check_one_of("variance_type", variance_type, VARIANCE_TYPES)
    schedule.check_prediction(prediction_type)
    if not clip_range > 0:
        raise ValueError(f"clip_range: expected a value above 0, got {clip_range}")
    p_x, p_o = x_0_columns(schedule, prediction_type)
    zero, one = torch.zeros_like(p_x), torch.ones_like(p_x)
    direct = prediction_type == "previous"
    sigma, k_v = _deviation(schedule, variance_type)
    sigma[0] = 0
    columns = (
        p_x,
        p_o,
        one * (clip_range if clip_denoised else math.inf),
        zero if direct else schedule.posterior_mean_x_t,
        zero if direct else schedule.posterior_mean_x_0,
        one if direct else zero,
        sigma,
        k_v,
    )
    return StepRows(torch.stack(columns, 1), schedule.timesteps, variance_type)


def _deviation(schedule: NoiseSchedule, variance_type: str) -> tuple[Tensor, Tensor]:
    """sigma and k_v of a standard deviation sigma exp(k_v v), v the network's variance channel."""
    if variance_type in FIXED_VARIANCE_TYPES:
        sigma = schedule.variance(variance_type).sqrt()
        return sigma, torch.zeros_like(sigma)
    u_0, u_1 = variance_columns(schedule, variance_type)
    return (u_0 / 2).exp(), u_1 / 2
