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
from .tile import (
    FLAGS,
    coefficient,
    device_of,
    elements_of,
    like,
    memory_format,
    operand,
    per_sample,
    plan,
    result,
    tile,
    tile_noise,
)


@triton.jit(do_not_specialize=["num_rows"])
def noising_kernel(
    out_ptr,
    x_ptr,
    noise_ptr,
    t_ptr,
    rows_ptr,
    num_rows,
    elements,
    T_STRIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, first, offsets, mask = tile(elements, CHANNELS, BLOCK)
    t = tl.load(t_ptr + sample * T_STRIDE).to(tl.int64)
    a = coefficient(rows_ptr, t, num_rows, 0, 2)
    s = coefficient(rows_ptr, t, num_rows, 1, 2)
    x = tl.load(x_ptr + first + offsets, mask=mask).to(tl.float32)
    if noise_ptr is None:
        out = a * x
    else:
        out = tl.fma(a, x, s * tile_noise(noise_ptr, elements, first, offsets, mask, CHANNELS, BLOCK))
    tl.store(out_ptr + first + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


def noising(x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    if rows.dtype != torch.float32:
        return reference.noising(x, noise, t, rows)
    layout, channels = memory_format(x, noise)
    out = result(x, layout)
    if out.numel() == 0:
        return out
    t, stride = per_sample(t)
    grid, block, warps = plan(x.shape[0], elements_of(x), channels)
    with device_of(x):
        noising_kernel[grid](
            out, operand(x, layout), operand(noise, layout), t, rows.contiguous(), len(rows), elements_of(x),
            T_STRIDE=stride, CHANNELS=channels, BLOCK=block, num_warps=warps, **FLAGS,
        )  # fmt: skip
    return like(out, x, layout)
