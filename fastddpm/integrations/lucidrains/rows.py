"""lucidrains' buffers as the kernels' rows: every number is the one that the original reads, in the dtype that it has there."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ...rows import MseRow, NoisingRow, StepRow, pack
from ...tables import real_tensors
from ..patch import MARK
from ..tables import cached

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, eq=False)
class Table:
    """What rows are made of."""

    buffers: tuple[str, ...]
    make: Callable[..., Any]
    """The columns, of the buffers as float64 `[T]` on the CPU."""


class Rows:
    """A table's rows, for every dtype of arithmetic that asked.

    Attributes:
        dtype: of the buffers, which what is computed from them is promoted to.
        device: theirs.
        why_not: why the kernels do not take them; "" where they do.
    """

    def __init__(self, make: Callable[..., Any], buffers: tuple[Tensor, ...]):
        self.dtype, self.device = reduce(torch.promote_types, (buffer.dtype for buffer in buffers)), buffers[0].device
        self._made: dict[torch.dtype, Tensor] = {}
        self.why_not = "a device that has no kernels"
        if self.device.type in DEVICES:
            with real_tensors():
                self._row = make(*(buffer.detach().cpu().double() for buffer in buffers))
            finite = bool(pack(self._row, torch.float32).isfinite().all())
            self.why_not = "" if finite else "a schedule that divides by 0, or is infinite in half precision"

    def on(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._made:
            with real_tensors():
                self._made[dtype] = pack(self._row, dtype).to(self.device)
        return self._made[dtype]


def rows_of(self: Any, table: Table) -> Rows:
    """Made again when a buffer is another (`.to`, `.half`) or was written into (load_state_dict)."""
    buffers = tuple([self._buffers[name] for name in table.buffers])
    return cached(getattr(self, MARK), table, buffers, lambda: Rows(table.make, buffers))


# ---- out = a x + s z ----

LEVELS = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
RECIPROCALS = ("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod")

X_T = Table(LEVELS, NoisingRow)
V = Table(LEVELS, lambda a, s: NoisingRow(-s, a))
X_0_OF_V = Table(LEVELS, lambda a, s: NoisingRow(a, -s))
X_0_OF_NOISE = Table(RECIPROCALS, lambda r, m: NoisingRow(r, -m))
NOISE_OF_X_0 = Table(RECIPROCALS, lambda r, m: NoisingRow(r / m, -1 / m))

# ---- losses, by objective ----

LOSSES = {
    "pred_noise": Table(("loss_weight",), lambda w: _mse(w, 1, 0)),
    "pred_x0": Table(("loss_weight",), lambda w: _mse(w, 0, 1)),
    "pred_v": Table(("loss_weight", *LEVELS), lambda w, a, s: _mse(w, a, -s)),
}


def _mse(w: Tensor, p: Tensor | int, q: Tensor | int) -> MseRow:
    zero = torch.zeros_like(w)
    return MseRow(zero + p, zero + q, zero, w)


# ---- steps, by objective ----

X_0 = {"pred_noise": X_0_OF_NOISE, "pred_x0": Table((), lambda: (0, 1)), "pred_v": X_0_OF_V}
"""p_x and p_o of x_0_hat."""
POSTERIOR = ("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2")


def _ddpm(objective: str) -> Table:
    def make(log_variance: Tensor, k_0: Tensor, k_x: Tensor, *levels: Tensor) -> StepRow:
        return _step(X_0[objective].make(*levels), k_x, k_0, sigma=(0.5 * log_variance).exp())

    return Table((*POSTERIOR, *X_0[objective].buffers), make)


def _step(x_0: Any, k_x: Tensor, k_0: Tensor, sigma: Tensor) -> StepRow:
    zero, (p_x, p_o) = torch.zeros_like(k_x), x_0
    columns = {"p_x": zero + p_x, "p_o": zero + p_o, "bound": zero + 1, "g": zero + 1, "k_x": k_x, "k_0": k_0, "sigma": sigma}
    return StepRow(**{name: columns.get(name, zero) for name in StepRow._fields})


DDPM = {objective: _ddpm(objective) for objective in X_0}


def ddim(objective: str, times: list[int], eta: float) -> Table:
    """A row for each of the times but the last, which is -1: the image."""
    now = times[:-1]

    def make(abar: Tensor, r: Tensor, m: Tensor, *levels: Tensor) -> StepRow:
        r, m, *at = (column[now] for column in (r, m, *levels))
        before, after = abar[now], torch.cat((abar[now[1:]], torch.ones_like(abar[:1])))
        sigma = eta * ((1 - before / after) * (1 - after) / (1 - before)).sqrt()
        direction = (1 - after - sigma**2).sqrt()  # times (r x - x_0_hat) / m, the noise that the clipped x_0_hat leaves
        return _step(X_0[objective].make(*at), direction * r / m, after.sqrt() - direction / m, sigma)

    return Table(("alphas_cumprod", *RECIPROCALS, *X_0[objective].buffers), make)
