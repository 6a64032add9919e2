"""What a sampler is: the table of rows that `reverse_step` walks, from the last row to row 0."""

import math
from functools import cached_property

import torch
from torch import Tensor

from ..checks import check_one_of, describe
from ..rows import StepRow
from ..schedule import VARIANCE_TYPES
from ..tables import Tables


class StepRows(Tables):
    """A sampler: the coefficients of each of its steps, and what the network is given there.

    Args:
        timesteps: int64 or float32 `[S]`, what the network is given at each row; row 0 is the last step.
        variance_type: "learned" and "learned_range" want a network's output of twice the channels.
        alphas_cumprod: `[S]`, abar of x at each row (of x = a x_0 + b z the square of a), for a loop that noises what it puts
            into x (inpainting) or moves the score (cond_fn); None where no such loop will walk the rows.
        takes_edits: whether a loop may edit x between the steps (docs/samplers.md).
        draws_posterior: whether the steps are draws of the chain's own posterior, whose mean a cond_fn moves.
        noise_levels: `[S]`, b; None for sqrt(1 - abar).
        columns: of `rows.StepRow`, by name, each `[S]` or one number for all; 0 where not given, but g 1, and no bound.

    Attributes:
        timesteps, variance_type, alphas_cumprod, takes_edits, draws_posterior: as given.
        columns: the `StepRow` of float64 `[S]` on the CPU.
        adds_noise, reads_x_0: whether any sigma, any k_0 is not 0.
        history: how many earlier steps' tensors the rows read, 0 to 3.
        stream: of the noise that a loop draws for the steps of a seed.
        keeps: whether a step hands on c_x x + c_0 x_0_hat; else what later steps read is its x_0_hat.

    Raises:
        TypeError, ValueError: an unknown column, one of another length, a NaN, or timesteps of another kind, named.
    """

    stream = "reverse"

    def __init__(
        self,
        timesteps: Tensor,
        variance_type: str = "fixed_small",
        alphas_cumprod: Tensor | None = None,
        takes_edits: bool = True,
        draws_posterior: bool = False,
        noise_levels: Tensor | None = None,
        **columns: Tensor | float,
    ):
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
        self.takes_edits, self.draws_posterior = takes_edits, draws_posterior
        self.alphas_cumprod = None if alphas_cumprod is None else _column("alphas_cumprod", alphas_cumprod, len(timesteps))
        self.noise_levels = None if noise_levels is None else _column("noise_levels", noise_levels, len(timesteps))
        given = {"bound": math.inf, "g": 1.0, **columns}
        self.columns = StepRow(*(_column(name, given.get(name, 0.0), len(timesteps)) for name in StepRow._fields))
        k = self.columns
        self.adds_noise, self.reads_x_0 = bool(k.sigma.any()), bool(k.k_0.any())
        self.history = max((j for j, k_h in enumerate((k.k_h1, k.k_h2, k.k_h3), 1) if k_h.any()), default=0)
        self.keeps = bool(k.c_x.any() or k.c_0.any())
        levels = (x for x in (self.alphas_cumprod, self.noise_levels) if x is not None)
        super().__init__(self.timesteps, *self.columns, *levels)

    def __len__(self) -> int:
        return len(self.timesteps)

    def levels(self) -> tuple[Tensor, Tensor]:
        """a, b of x at each row, where they are needed."""
        if self.alphas_cumprod is None:
            raise ValueError("alphas_cumprod: expected StepRows that have them (inpaint and cond_fn want the levels), got None")
        b = (1 - self.alphas_cumprod).sqrt() if self.noise_levels is None else self.noise_levels
        return self.alphas_cumprod.sqrt(), b

    @cached_property
    def of_x_0(self) -> "StepRows":
        """The same steps where x_0_hat itself is given in place of the output (one that was edited): what they took of the
        output then follows from x and x_0_hat, clipped."""
        k = self.columns
        share = torch.where(k.k_o != 0, k.k_o / k.p_o, 0.0)
        if not bool(share.isfinite().all()):
            raise ValueError("denoised_fn: expected steps whose output tells x_0_hat, got one that begins without noise")
        columns = k._replace(p_x=0.0, p_o=1.0, k_x=k.k_x - share * k.p_x, k_0=k.k_0 + share, k_o=0.0)
        about = (self.timesteps, self.variance_type, self.alphas_cumprod, self.takes_edits, self.draws_posterior)
        rows = StepRows(*about, self.noise_levels, **columns._asdict())
        rows.stream = self.stream
        return rows

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The table that the kernels read, on a device, uploaded once."""
        return self.table(_columns, device, dtype)


def _column(name: str, values: Tensor | float, steps: int) -> Tensor:
    column = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if column.shape not in ((), (steps,)):
        raise ValueError(f"{name}: expected a number or [{steps}] (one a step), got shape {list(column.shape)}")
    if bool(column.isnan().any()):
        raise ValueError(f"{name}: expected numbers, got NaN")
    return column.expand(steps).clone()


def _columns(rows: StepRows) -> StepRow:
    return rows.columns
