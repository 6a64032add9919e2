"""out = a x + s z (twins: kernels/cpu/noising.h, kernels/triton/noising.py)."""

from torch import Tensor

from ..rows import NoisingRow
from .keys import timesteps
from .operands import fused, like, noise_of, row_of


def noising(x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    k = row_of(NoisingRow, rows, t, x)
    data = x.to(rows.dtype)
    return like(k.a * data if noise is None else fused(k.a, data, k.s * noise_of(noise, x, rows.dtype)), x)


def noising_uniform(x: Tensor, key: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    t = timesteps(key, len(rows))
    return noising(x, key, t, rows), t
