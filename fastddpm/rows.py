"""What a row of coefficients holds: the columns' names, their meaning and their order, which stand nowhere else.

A kernel knows no diffusion, only a row for each sample. C++ (`kernels/columns.py`) and Triton take the names from here. A
VlbRow begins as a NoisingRow and ends as an MseRow.
"""

from collections import namedtuple

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

StepRow = namedtuple("StepRow", "p_x p_o bound k_x k_0 k_o sigma k_v")
"""x_0_hat = clamp(p_x x + p_o out, -bound, bound);  x_prev = k_x x + k_0 x_0_hat + k_o out + sigma exp(k_v v) z"""


def pack(row: NoisingRow | MseRow | VlbRow | StepRow) -> Tensor:
    """Columns `[T]` to a table `[T, columns]`."""
    return torch.stack(row, 1)
