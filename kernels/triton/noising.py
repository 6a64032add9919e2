# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""Forward noising and its gradient, the same kernel without its noise (twin: kernels/cpu/noising.h).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) z:   out[b, e] = fma(a, x[b, e], s * z[b, e]),  (a, s) = rows[t[b]]

Moves: read x, write out (and read z where it is a tensor).
"""

from torch import Tensor

import triton
import triton.language as tl

from .columns import NOISING, NOISING_A, NOISING_S
from .tile import VIEWS, column, like, read, result, row_of, served, tile, tile_noise, tiles_of, write


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=VIEWS)
def noising_kernel(
    out_ptr, x_ptr, noise_ptr, t_ptr, rows_ptr, num_rows, elements,
    T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, NOISING)
    a, s = column(row, NOISING_A), column(row, NOISING_S)
    x = read(x_ptr, place)
    out = a * x
    if noise_ptr is not None:
        out = tl.fma(a, x, s * tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK))
    write(out_ptr, place, out)


@served
def noising(x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    tiles = tiles_of(x, noise)
    out = result(x, tiles.layout)
    tiles.launch(noising_kernel, (out,), (x, noise), t, rows)
    return like(out, x, tiles.layout)
