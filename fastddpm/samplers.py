"""Samplers: each is a function that makes the table of rows that `reverse_step` walks, from the last row to row 0."""

import math

import torch
from torch import Tensor

from .checks import check_one_of
from .schedule import PREDICTION_TYPES, NoiseSchedule
from .tables import Tables


class StepRows:
    """A sampler's coefficients.

    Attributes:
        table: float64 `[S, 7]` on the CPU: p_x, p_o, bound, k_x, k_0, k_o, sigma of `reverse_step`.
        timesteps: int64 `[S]`, what the network is given at each row.
    """

    def __init__(self, table: Tensor, timesteps: Tensor):
        self.table, self.timesteps = table, timesteps
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
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the posterior mean at x_0_hat, and noise of a fixed variance.

    Args:
        schedule: the chain, respaced or not.
        prediction_type: "epsilon", "sample", "v_prediction" or "previous" (the output is the mean itself).
        variance_type: "fixed_small" (beta~) or "fixed_large" (beta). The last step, row 0, adds no noise.
        clip_denoised: clamp x_0_hat to [-clip_range, clip_range]. "previous" clamps the x_0_hat returned, not the mean.
        clip_range: that bound.

    Raises:
        ValueError: an unknown type, a bound not above 0, or epsilon prediction at zero terminal SNR.
    """
    check_one_of("prediction_type", prediction_type, PREDICTION_TYPES)
    schedule.check_prediction(prediction_type)
    if not clip_range > 0:
        raise ValueError(f"clip_range: expected a value above 0, got {clip_range}")
    p_x, p_o = _x_0_from(schedule, prediction_type)
    zero, one = torch.zeros_like(p_x), torch.ones_like(p_x)
    direct = prediction_type == "previous"
    sigma = schedule.variance(variance_type).sqrt()
    sigma[0] = 0
    columns = (
        p_x,
        p_o,
        one * (clip_range if clip_denoised else math.inf),
        zero if direct else schedule.posterior_mean_x_t,
        zero if direct else schedule.posterior_mean_x_0,
        one if direct else zero,
        sigma,
    )
    return StepRows(torch.stack(columns, 1), schedule.timesteps)


def _x_0_from(schedule: NoiseSchedule, prediction_type: str) -> tuple[Tensor, Tensor]:
    """x_0_hat = p_x x_t + p_o out."""
    a, s = schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()
    if prediction_type == "epsilon":
        return 1 / a, -s / a
    if prediction_type == "v_prediction":
        return a, -s
    if prediction_type == "sample":
        return torch.zeros_like(a), torch.ones_like(a)
    return -schedule.posterior_mean_x_t / schedule.posterior_mean_x_0, 1 / schedule.posterior_mean_x_0
