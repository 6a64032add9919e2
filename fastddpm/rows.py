"""What a row of coefficients holds: the columns' names, their meaning and their order, which stand nowhere else.

A kernel knows no diffusion, only a row for each sample. `kernels/columns.py` writes the same names for C++ and Triton. A VlbRow
begins as a NoisingRow and ends as an MseRow.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class NoisingRow(NamedTuple):
    """out = a x + s z"""

    a: Tensor
    s: Tensor


class MseRow(NamedTuple):
    """w mean (out - target)^2, target = p z + q x_0 + r x_t"""

    p: Tensor
    q: Tensor
    r: Tensor
    w: Tensor


class VlbRow(NamedTuple):
    """The variational bound's term, and the mean squared error beside it.

    x_t = a x_0 + s z;  x_0_hat = clamp(p_x x_t + p_o out, -bound, bound)
    mu~ - mu = c (x_0 - x_0_hat) + e_0 x_0 + e_x x_t + e_o out. Where the network predicts x_0_hat in one way or another, both
        means are the posterior's and the x_t in them cancels: c is posterior_mean_x_0, no e. Where it predicts the mean
        ("previous"), mu is the output itself, whatever is clipped.
    log sigma^2 - log beta~ = v_0 + v_1 v, v the network's variance channel;  precision = 1 / beta~
    """

    a: Tensor
    s: Tensor
    p_x: Tensor
    p_o: Tensor
    bound: Tensor
    c: Tensor
    e_0: Tensor
    e_x: Tensor
    e_o: Tensor
    v_0: Tensor
    v_1: Tensor
    precision: Tensor
    p: Tensor
    q: Tensor
    r: Tensor
    w: Tensor


class StepRow(NamedTuple):
    """x_0_hat = clamp(p_x x + p_o out, -bound, bound);  x_prev = k_x x + k_0 x_0_hat + k_o out + sigma exp(k_v v) z"""

    p_x: Tensor
    p_o: Tensor
    bound: Tensor
    k_x: Tensor
    k_0: Tensor
    k_o: Tensor
    sigma: Tensor
    k_v: Tensor


def pack(row: NoisingRow | MseRow | VlbRow | StepRow) -> Tensor:
    """Columns `[T]` to a table `[T, columns]`."""
    return torch.stack(row, 1)
