"""What a row of coefficients holds: the columns' names, their meaning and their order, which stand nowhere else.

A kernel knows no diffusion, only a row for each sample. `kernels/columns.py` writes the same names for C++ and Triton. A VlbRow
begins as a NoisingRow and ends as an MseRow.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Column = Tensor | float


class NoisingRow(NamedTuple):
    """out = a x + s z"""

    a: Column
    s: Column


class MseRow(NamedTuple):
    """w mean (out - target)^2, target = p z + q x_0 + r x_t"""

    p: Column
    q: Column
    r: Column
    w: Column


class VlbRow(NamedTuple):
    """The variational bound's term, and the mean squared error beside it.

    x_t = a x_0 + s z;  x_0_hat = clamp(p_x x_t + p_o out, -bound, bound)
    mu~ - mu = c (x_0 - x_0_hat) + e_0 x_0 + e_x x_t + e_o out. Where the network predicts x_0_hat in one way or another, both
        means are the posterior's and the x_t in them cancels: c is posterior_mean_x_0, no e. Where it predicts the mean
        ("previous"), mu is the output itself, whatever is clipped.
    log sigma^2 - log beta~ = v_0 + v_1 v, v the network's variance channel;  precision = 1 / beta~
    """

    a: Column
    s: Column
    p_x: Column
    p_o: Column
    bound: Column
    c: Column
    e_0: Column
    e_x: Column
    e_o: Column
    v_0: Column
    v_1: Column
    precision: Column
    p: Column
    q: Column
    r: Column
    w: Column


class StepRow(NamedTuple):
    """x_0_hat = clamp(p_x x + p_o out, -bound, bound);  x_prev = k_x x + k_0 x_0_hat + k_o out + sigma exp(k_v v) z"""

    p_x: Column = 0.0
    p_o: Column = 0.0
    bound: Column = math.inf
    k_x: Column = 0.0
    k_0: Column = 0.0
    k_o: Column = 0.0
    sigma: Column = 0.0
    k_v: Column = 0.0


def pack(row: NoisingRow | MseRow | VlbRow | StepRow) -> Tensor:
    """Columns `[T]` to a table `[T, columns]`."""
    return torch.stack(row, 1)
