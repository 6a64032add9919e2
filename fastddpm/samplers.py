"""Samplers: each is a function that makes the table of rows that `reverse_step` walks, from the last row to row 0."""

import math

import torch
from torch import Tensor

from .checks import check_one_of, describe
from .coefficients import variance_columns, x_0_columns
from .rows import StepRow, pack
from .schedule import FIXED_VARIANCE_TYPES, PREDICTION_TYPES, VARIANCE_TYPES, NoiseSchedule
from .tables import Tables


class StepRows(Tables):
    """A sampler: the coefficients of each of its steps, and what the network is given there.

    Args:
        timesteps: int64 or float32 `[S]`, what the network is given at each row; row 0 is the last step.
        variance_type: "learned" and "learned_range" want a network's output of twice the channels.
        columns: of `rows.StepRow`, by name, each `[S]` or one number for all; 0 where not given, but g 1, and no bound.

    Attributes:
        timesteps, variance_type: as given.
        columns: the `StepRow` of float64 `[S]` on the CPU.
        adds_noise: whether any sigma is not 0.
        history: how many earlier steps' tensors the rows read, 0 to 3.
        keeps: whether a step hands on c_x x + c_0 x_0_hat; else what later steps read is its x_0_hat.

    Raises:
        TypeError, ValueError: an unknown column, one of another length, a NaN, or timesteps of another kind, named.
    """

    def __init__(self, timesteps: Tensor, variance_type: str = "fixed_small", **columns: Tensor | float):
        check_one_of("variance_type", variance_type, VARIANCE_TYPES)
        unknown = columns.keys() - set(StepRow._fields)
        if unknown:
            raise TypeError(f"columns: expected names among {', '.join(StepRow._fields)}, got {', '.join(sorted(unknown))}")
        if (
            not isinstance(timesteps, Tensor)
            or timesteps.dtype not in (torch.int64, torch.float32)
            or timesteps.dim() != 1
            or not len(timesteps)
        ):
            raise TypeError(f"timesteps: expected int64 or float32 [S] of one step or more, got {describe(timesteps)}")
        self.timesteps, self.variance_type = timesteps.cpu().clone(), variance_type
        given = {"bound": math.inf, "g": 1.0, **columns}
        self.columns = StepRow(*(_column(name, given.get(name, 0.0), len(timesteps)) for name in StepRow._fields))
        k = self.columns
        self.adds_noise = bool(k.sigma.any())
        self.history = max((j for j, k_h in enumerate((k.k_h1, k.k_h2, k.k_h3), 1) if k_h.any()), default=0)
        self.keeps = bool(k.c_x.any() or k.c_0.any())
        super().__init__(self.timesteps, *self.columns)

    def __len__(self) -> int:
        return len(self.timesteps)

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The table that the kernels read, on a device, uploaded once."""
        return self.table(_packed, device, dtype)


def _column(name: str, values: Tensor | float, steps: int) -> Tensor:
    column = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if column.shape not in ((), (steps,)):
        raise ValueError(f"{name}: expected a number or [{steps}] (one a step), got shape {list(column.shape)}")
    if bool(column.isnan().any()):
        raise ValueError(f"{name}: expected numbers, got NaN")
    return column.expand(steps).clone()


def _packed(rows: StepRows) -> Tensor:
    return pack(rows.columns)


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
    direct = prediction_type == "previous"
    sigma, k_v = _deviation(schedule, variance_type)
    sigma[0] = 0
    return StepRows(
        schedule.timesteps,
        variance_type,
        p_x=p_x,
        p_o=p_o,
        bound=clip_range if clip_denoised else math.inf,
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
