"""A scheduler's own steps as rows, found by the timestep that its caller gives."""

import math
from numbers import Integral
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ...functional import reverse_step
from ...samplers import StepRows
from ..draws import drawn_key
from ..patch import Patch

HALF = (torch.float16, torch.bfloat16)


class Walk:
    """The rows of a scheduler's steps.

    Args:
        timesteps: int64 `[S]` on the CPU, the first step's first.
        columns: of `rows.StepRow`, float64 `[S]` in the same order. A step with a column that is not finite (a division by 0)
            is the original's.
        draws: `[S]`, at which steps the scheduler draws noise, be its sigma 0.
        variance_type: "learned_range" where the network's output has the variance's channels.
    """

    def __init__(self, timesteps: Tensor, columns: dict[str, Tensor], draws: Tensor, variance_type: str = "fixed_small"):
        finite = torch.stack([column.isfinite() for name, column in columns.items() if name != "bound"]).all(0)
        given = {name: torch.where(finite, column, 0.0).flip(0) for name, column in columns.items()}
        self.rows = StepRows(timesteps.flip(0), variance_type, None, True, False, **given)
        self.learned = variance_type == "learned_range"
        self.draws = draws.flip(0).tolist()
        rows = zip(timesteps.tolist(), reversed(range(len(timesteps))), finite.tolist(), strict=True)
        self.row_at = {t: row for t, row, good in rows if good}
        self.rows_in_order = [self.row_at.get(t, -1) for t in timesteps.tolist()]

    def row(self, timestep: Any, timesteps: Tensor) -> int:
        """The row of a timestep; -1 where there is none."""
        if isinstance(timestep, Tensor):
            if timestep.numel() != 1:
                return -1
            if timestep.device.type != "cpu" and _lies_in(timestep, timesteps):  # known by where it lies: a read would wait
                return self.rows_in_order[timestep.storage_offset() - timesteps.storage_offset()]
            timestep = timestep.item()
        return self.row_at.get(timestep, -1) if isinstance(timestep, Integral) else -1


def _lies_in(part: Tensor, whole: Tensor) -> bool:
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def bound_of(config: Any, like: Tensor) -> Tensor:
    """The bound of x_0_hat: a scheduler's clip_sample_range where it clips."""
    return torch.full_like(like, config.clip_sample_range if config.clip_sample else math.inf)


def why_not(patch: Patch, walk: Walk, row: int, output: Tensor, sample: Tensor, returns_output: bool) -> str:
    """Why a step is the original's; "" where it is ours."""
    if row < 0:
        return "a timestep that is none of the scheduler's, or where it divides by 0"
    shape = list(sample.shape)
    if walk.learned:
        shape[1:2] = [2 * n for n in shape[1:2]]
    if list(output.shape) != shape or output.device != sample.device:
        return "a model_output of another shape or device than the sample's"
    if output.dtype is not sample.dtype and (returns_output or torch.promote_types(output.dtype, sample.dtype) != sample.dtype):
        return "a result of another dtype than the sample's"
    if not sample.is_floating_point() or sample.dim() == 0:
        return "a sample that is no floating tensor [B, ...]"
    if patch.strict and (sample.dtype in HALF or output.dtype in HALF):
        return "strict, in half precision"
    return ""


def stepped(
    patch: Patch, walk: Walk, row: int, output: Tensor, sample: Tensor, generator: Any, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x_prev, x_0_hat) of a row, with noise that is given or drawn where it adds any."""
    if noise is None and walk.draws[row]:
        if patch.noise == "philox":
            noise = drawn_key(len(sample), sample.device, generator)
        else:
            noise = randn_tensor(sample.shape, generator=generator, device=output.device, dtype=output.dtype)
    return reverse_step(output, sample, row, walk.rows, "none" if noise is None else noise)
