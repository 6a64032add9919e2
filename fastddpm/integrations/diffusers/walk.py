"""A scheduler's own steps as rows, found by the timestep that its caller gives."""

import math
from numbers import Integral
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ... import autograd
from ...checks import FLOAT_DTYPES, HALF_DTYPES
from ...functional import arithmetic
from ...samplers import StepRows
from ..draws import drawn_key
from ..patch import Patch
from ..torch_normals import quick_normals


class Steps:
    """A scheduler's steps as rows."""

    rows: StepRows

    def step(
        self,
        i: int,
        output: Tensor,
        x: Tensor,
        noise: Tensor | None = None,
        return_x_0: bool = True,
        history: list[Tensor] | None = None,
        return_kept: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`functional.reverse_step` of what was found fit, by `unfit` and its like: (x_prev, x_0_hat, kept)."""
        table, index = self.rows.on(x.device, arithmetic(x)), self.rows.index_on(x.device, i)
        options = (None, None, None, history or [], return_kept) if history or return_kept else ()
        return autograd.reverse_step(output, x, noise, index, table, return_x_0, *options)


class Walk(Steps):
    """The steps of a scheduler that finds them by timestep.

    Args:
        timesteps: int64 `[S]` on the CPU, the first step's first.
        columns: of `rows.StepRow`, floating `[S]` in the same order. A step with a column that is not finite (a division by 0)
            is the original's.
        draws: `[S]`, at which steps the scheduler draws noise, be its sigma 0.
        variance_type: "learned_range" where the network's output has the variance's channels.
        own: the scheduler's timesteps, where they may be others.
    """

    def __init__(
        self,
        timesteps: Tensor,
        columns: dict[str, Tensor],
        draws: Tensor,
        variance_type: str = "fixed_small",
        own: Tensor | None = None,
    ):
        self.rows, finite = finite_rows(
            timesteps.flip(0), {name: column.flip(0) for name, column in columns.items()}, variance_type
        )
        self.learned = variance_type == "learned_range"
        self.draws = draws.flip(0).tolist()
        rows = zip(reversed(timesteps.tolist()), range(len(timesteps)), finite, strict=True)
        self.row_at = {t: row if good else -1 for t, row, good in rows}  # of two equal ones the first step's, as theirs
        self.rows_in_order = [self.row_at.get(t, -1) for t in (timesteps if own is None else own).tolist()]

    def row(self, timestep: Any, timesteps: Tensor) -> int:
        """The row of a timestep; -1 where there is none."""
        if isinstance(timestep, Tensor):
            if timestep.dim():  # theirs broadcasts the coefficients then, and promotes half precision
                return -1
            if not timestep.is_cpu and _lies_in(timestep, timesteps):  # known by where it lies: a read would wait
                return self.rows_in_order[timestep.storage_offset() - timesteps.storage_offset()]
            timestep = timestep.item()
        return self.row_at.get(timestep, -1) if type(timestep) is int or isinstance(timestep, Integral) else -1


def finite_rows(
    timesteps: Tensor, columns: dict[str, Tensor], variance_type: str = "fixed_small", there: Tensor | bool = True
) -> tuple[StepRows, list[bool]]:
    """Rows, and which of those that are there hold: one with a column that is not finite is the original's."""
    finite = there & torch.stack([column.isfinite() for name, column in columns.items() if name != "bound"]).all(0)
    given = {name: torch.where(finite, column.double(), 0.0) for name, column in columns.items()}
    return StepRows(timesteps, variance_type, None, True, False, **given), finite.tolist()


def _lies_in(part: Tensor, whole: Tensor) -> bool:
    """Whether a number is one of a vector's own."""
    if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr() or part.dtype is not whole.dtype:
        return False
    return whole.is_contiguous() and 0 <= part.storage_offset() - whole.storage_offset() < whole.numel()


NOT_WALKABLE = "timesteps that are no int64 [S], or alphas_cumprod that is no floating [T]"


def walkable(abar: Any, t: Any) -> bool:
    """Whether there can be a table: scripts put lists and arrays in the place of tensors."""
    tensors = isinstance(abar, Tensor) and isinstance(t, Tensor)
    return tensors and abar.dim() == t.dim() == 1 and t.dtype is torch.int64 and len(t) > 0 and abar.is_floating_point()


def bound_of(config: Any, like: Tensor) -> Tensor:
    """The bound of x_0_hat: a scheduler's clip_sample_range where it clips."""
    return bounded(config.clip_sample, config.clip_sample_range, like)


def bounded(clip: bool, clip_range: float, like: Tensor) -> Tensor:
    return torch.full_like(like, clip_range if clip else math.inf)


NO_TENSOR = "a model_output or a sample that is no tensor"


def why_not(patch: Patch, walk: Walk, row: int, output: Tensor, sample: Tensor, returns_output: bool) -> str:
    """Why a step is the original's; "" where it is ours."""
    if not isinstance(output, Tensor) or not isinstance(sample, Tensor):
        return NO_TENSOR
    if row < 0:
        return "a timestep that is none of the scheduler's or no number, or where it divides by 0"
    if output.dtype is not sample.dtype and (returns_output or torch.promote_types(output.dtype, sample.dtype) != sample.dtype):
        return "a result of another dtype than the sample's"
    return unfit(patch, output, sample, walk.learned)


def unfit(patch: Patch, output: Tensor, sample: Tensor, learned: bool = False) -> str:
    """Why no kernel takes these; "" where one does."""
    shape = sample.shape
    if learned:
        shape = torch.Size((*shape[:1], *(2 * n for n in shape[1:2]), *shape[2:]))
    if output.shape != shape or output.device != sample.device or sample.dim() <= learned:
        return "a model_output of another shape or device than the sample's, or without a batch"
    if output.dtype not in FLOAT_DTYPES or sample.dtype not in FLOAT_DTYPES:
        return "a model_output or a sample of an unusual dtype"
    if patch.strict and (sample.dtype in HALF_DTYPES or output.dtype in HALF_DTYPES):
        return "strict, in half precision"
    return ""


def drawn(patch: Patch, sample: Tensor, dtype: torch.dtype, generator: Any) -> Tensor:
    """A step's noise, of theirs in that dtype; or the key of it."""
    if patch.noise == "philox":
        return drawn_key(len(sample), sample.device, generator)
    if isinstance(generator, list) and len(generator) == 1:
        generator = generator[0]
    normals = quick_normals(sample.shape, dtype, sample.device, generator)
    return randn_tensor(sample.shape, generator, sample.device, dtype) if normals is None else normals


def stepped(
    patch: Patch, walk: Walk, row: int, output: Tensor, sample: Tensor, generator: Any, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x_prev, x_0_hat) of a row, with noise that is given or drawn where it adds any."""
    if noise is None and walk.draws[row]:
        noise = drawn(patch, sample, output.dtype, generator)
    x, x_0, _ = walk.step(row, output, sample, noise)
    return x, x_0
