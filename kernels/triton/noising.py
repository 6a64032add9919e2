# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""Forward noising and its gradient, the same kernel without its noise (twin: kernels/cpu/noising.h).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) z:   out[b, e] = fma(a, x[b, e], s * z[b, e]),  (a, s) = rows[t[b]]

Moves: read x, write out (and read z where it is a tensor).
"""

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import reference
from .tile import column, like, read, result, row_of, tile, tile_noise, tiles_of, write


@triton.jit(do_not_specialize=["num_rows"])
def noising_kernel(
    out_ptr, x_ptr, noise_ptr, t_ptr, rows_ptr, num_rows, elements,
    T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, 2)
    a, s = column(row, 0), column(row, 1)
    x = read(x_ptr, place)
    out = a * x
    if noise_ptr is not None:
        out = tl.fma(a, x, s * tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK))
    write(out_ptr, place, out)


def noising(x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    if rows.dtype != torch.float32 or x.numel() == 0:
        return reference.noising(x, noise, t, rows)
    tiles = tiles_of(x, noise)
    out = result(x, tiles.layout)
    tiles.launch(noising_kernel, (out,), (x, noise), t, rows)
    return like(out, x, tiles.layout)
