# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""Forward noising and its gradient, the same kernel without its noise (twin: kernels/cpu/noising.h).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) z:   out[b, e] = fma(a, x[b, e], s * z[b, e]),  (a, s) = rows[t[b]]

noising_uniform draws t from the key on the way (keys.py), each program for itself; a sample's first writes it.

Moves: read x, write out (and read z where it is a tensor).
"""

from torch import Tensor

import triton
import triton.language as tl

from .columns import NOISING, NOISING_A, NOISING_S
from .keys import uniform_timestep
from .launcher import launch
from .tile import (
    VIEWS,
    column,
    like,
    operands,
    read,
    result,
    row_of,
    tile,
    tile_noise,
    tile_normals,
    tiles_of,
    write,
)


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


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=VIEWS)
def noising_uniform_kernel(
    out_ptr, t_ptr, x_ptr, noise_ptr, rows_ptr, num_rows, elements, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    seed, subsequence = tl.load(noise_ptr + sample * 2), tl.load(noise_ptr + sample * 2 + 1)
    t = uniform_timestep(seed, subsequence, tl.full((), 0, tl.uint32), num_rows)
    tl.store(t_ptr + sample, t, mask=place[0] == sample * elements)
    row = (rows_ptr + t * NOISING, t < num_rows)
    a, s = column(row, NOISING_A), column(row, NOISING_S)
    z = tile_normals(noise_ptr, elements, CHANNELS, BLOCK)
    write(out_ptr, place, tl.fma(a, read(x_ptr, place), s * z))


def noising(x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    tiles = tiles_of(x, noise)
    out = result(x, tiles.layout)
    tiles.launch(noising_kernel, (out,), (x, noise), t, rows)
    return like(out, x, tiles.layout)


def noising_uniform(x: Tensor, key: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    layout, channels, elements, (programs, block, num_warps) = tiles_of(x, key)
    out, t = result(x, layout), key.new_empty(key.shape[0])
    arguments = (out, t, *operands((x, key), layout), rows.contiguous(), rows.shape[0], elements)
    launch(x, noising_uniform_kernel, programs, num_warps, arguments, (channels, block))
    return like(out, x, layout), t
