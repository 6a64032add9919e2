"""What a row of coefficients holds: the columns' names, their meaning and their order, which stand nowhere else.

A kernel knows no diffusion, only a row for each sample. C++ (`kernels/columns.py`) and Triton take the names from here. A
VlbRow begins as a NoisingRow and ends as an MseRow.
"""

from collections import namedtuple
from typing import TypeVar

import torch
from torch import Tensor

NoisingRow = namedtuple("NoisingRow", "a s")
"""out = a x + s z"""

MseRow = namedtuple("MseRow", "p q r w")
"""w mean (out - target)^2, target = p z + q x_0 + r x_t"""

VlbRow = namedtuple("VlbRow", "a s p_x p_o bound c e_0 e_x e_o v_0 v_1 precision p q r w")
"""The variational bound's term, and the mean squared error beside it.

x_t = a x_0 + s z;  x_0_hat = clamp(p_x x_t + p_o out, -bound, bound)
mu~ - mu = c (x_0 - x_0_hat) + e_0 x_0 + e_x x_t + e_o out. Where the network predicts x_0_hat in one way or another, both
    means are the posterior's and the x_t in them cancels: c is posterior_mean_x_0, no e. Where it predicts the mean
    ("previous"), mu is the output itself, whatever is clipped.
log sigma^2 - log beta~ = v_0 + v_1 v, v the network's variance channel;  precision = 1 / beta~
"""

StepRow = namedtuple("StepRow", "p_x p_o bound k_x k_0 k_o k_h1 k_h2 k_h3 sigma k_v g c_x c_0")
"""One step of any sampler that is linear in what it reads. v: the network's variance channel; u: its output without the
condition; h_1, h_2, h_3: what earlier steps kept, the last one's first.

out'    = u + g (out - u), out where there is no u;  a [B] tensor may take g's place
x_0_hat = clamp(p_x x + p_o out', -bound, bound);  a [B] bound b too: clamp(x_0_hat, -b, b) / b
x_prev  = k_x x + k_0 x_0_hat + k_o out' + k_h1 h_1 + k_h2 h_2 + k_h3 h_3 + sigma exp(k_v v) z
kept    = c_x x + c_0 x_0_hat, for samplers whose later steps want more than x_0_hat
A coefficient of 0 leaves its term out, whatever it would multiply: an infinity that is clipped ends there.
"""

AdamWRow = namedtuple("AdamWRow", "lr beta_1 beta_2 eps weight_decay sign")
"""An optimizer's settings for some of its weights (not a sample's); sign: -1 to maximize"""

Columns = TypeVar("Columns", NoisingRow, MseRow, VlbRow, StepRow, AdamWRow)


def width(kind: type[Columns]) -> int:
    """The columns of a packed row, the last ones unused: a power of two, so that a float32 row lies in one cache line."""
    return 1 << (len(kind._fields) - 1).bit_length()


def pack(row: Columns, dtype: torch.dtype | None = None) -> Tensor:
    """Columns `[T]` to a table `[T, width]`, of a dtype or as they are."""
    if dtype is not None and isinstance(row, (VlbRow, StepRow)):
        p_x, p_o = rounded_together(row.p_x, row.p_o, dtype)
        row = row._replace(p_x=p_x, p_o=p_o)
    columns, unused = torch.stack(row, 1).to(dtype=dtype), width(type(row)) - len(row)
    return torch.nn.functional.pad(columns, (0, unused)) if unused else columns


def rounded_together(p_x: Tensor, p_o: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """p_x and p_o as a dtype shall hold them: the larger is rounded and the smaller follows it. Where x_0_hat is small beside
    p_x x and p_o out their ratio decides, and eager code too rounds but one number of it, s of (x - s out) / a."""
    x_is_larger = p_x.abs() >= p_o.abs()
    by_x, by_o = p_x.to(dtype) / p_x, p_o.to(dtype) / p_o
    followed_x = torch.where(x_is_larger | ~by_o.isfinite(), p_x, p_x * by_o)
    followed_o = torch.where(~x_is_larger | ~by_x.isfinite(), p_o, p_o * by_x)
    return followed_x, followed_o


def unpack(kind: type[Columns], table: Tensor) -> Columns:
    """The columns of `[.., width]`."""
    return kind(*table.unbind(-1)[: len(kind._fields)])
