# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""One reverse update of any sampler that is a table of rows, and its gradients (twin: kernels/cpu/reverse.h).

    x_0_hat = clamp(fma(p_o, out, p_x * x), -bound, bound)
    x_prev  = fma(sigma, z, fma(k_o, out, fma(k_0, x_0_hat, k_x * x))), without z where it is not given or sigma is 0
    through = k_0 g + h where |x_0_hat before the clamp| <= bound, else 0;  g, h the gradients of x_prev, x_0_hat
    grad_out = fma(p_o, through, k_o * g);  grad_x = fma(p_x, through, k_x * g)

Moves: read x, out, write x_prev (and x_0_hat where it is asked for; read z where it is a tensor);
backward: read g (h), x, out, write grad_out, grad_x.
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


@triton.jit
def _unclamped(x, out, rows_ptr, t, num_rows):
    p_x, p_o = coefficient(rows_ptr, t, num_rows, 0, 7), coefficient(rows_ptr, t, num_rows, 1, 7)
    return tl.fma(p_o, out, p_x * x)


@triton.jit(do_not_specialize=["num_rows"])
def reverse_kernel(
    x_prev_ptr,
    x_0_ptr,
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
    bound, sigma = coefficient(rows_ptr, t, num_rows, 2, 7), coefficient(rows_ptr, t, num_rows, 6, 7)
    k_x, k_0 = coefficient(rows_ptr, t, num_rows, 3, 7), coefficient(rows_ptr, t, num_rows, 4, 7)
    k_o = coefficient(rows_ptr, t, num_rows, 5, 7)
    x = tl.load(x_ptr + first + offsets, mask=mask).to(tl.float32)
    out = tl.load(out_ptr + first + offsets, mask=mask).to(tl.float32)
    x_0 = _unclamped(x, out, rows_ptr, t, num_rows)
    x_0 = tl.maximum(x_0, -bound, propagate_nan=tl.PropagateNan.ALL)
    x_0 = tl.minimum(x_0, bound, propagate_nan=tl.PropagateNan.ALL)
    if x_0_ptr is not None:
        tl.store(x_0_ptr + first + offsets, x_0.to(x_0_ptr.dtype.element_ty), mask=mask)
    x_prev = tl.fma(k_o, out, tl.fma(k_0, x_0, k_x * x))
    if noise_ptr is not None:
        noisy = tl.fma(sigma, tile_noise(noise_ptr, elements, first, offsets, mask, CHANNELS, BLOCK), x_prev)
        x_prev = tl.where(sigma != 0, noisy, x_prev)
    tl.store(x_prev_ptr + first + offsets, x_prev.to(x_prev_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def reverse_backward_kernel(
    grad_out_ptr,
    grad_x_ptr,
    grad_x_prev_ptr,
    grad_x_0_ptr,
    out_ptr,
    x_ptr,
    t_ptr,
    rows_ptr,
    num_rows,
    elements,
    T_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, first, offsets, mask = tile(elements, 0, BLOCK)
    t = tl.load(t_ptr + sample * T_STRIDE).to(tl.int64)
    p_x, p_o = coefficient(rows_ptr, t, num_rows, 0, 7), coefficient(rows_ptr, t, num_rows, 1, 7)
    bound = coefficient(rows_ptr, t, num_rows, 2, 7)
    k_x, k_0 = coefficient(rows_ptr, t, num_rows, 3, 7), coefficient(rows_ptr, t, num_rows, 4, 7)
    k_o = coefficient(rows_ptr, t, num_rows, 5, 7)
    x = tl.load(x_ptr + first + offsets, mask=mask).to(tl.float32)
    out = tl.load(out_ptr + first + offsets, mask=mask).to(tl.float32)
    g = tl.zeros((BLOCK,), tl.float32)
    if grad_x_prev_ptr is not None:
        g = tl.load(grad_x_prev_ptr + first + offsets, mask=mask).to(tl.float32)
    through = k_0 * g
    if grad_x_0_ptr is not None:
        through += tl.load(grad_x_0_ptr + first + offsets, mask=mask).to(tl.float32)
    through = tl.where(tl.abs(_unclamped(x, out, rows_ptr, t, num_rows)) > bound, 0.0, through)
    grad_out, grad_x = tl.fma(p_o, through, k_o * g), tl.fma(p_x, through, k_x * g)
    tl.store(grad_out_ptr + first + offsets, grad_out.to(grad_out_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_x_ptr + first + offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)


def reverse_step(model_output, x_t, noise, index, rows, return_x_0) -> tuple[Tensor, Tensor]:
    if rows.dtype != torch.float32 or x_t.numel() == 0:
        return reference.reverse_step(model_output, x_t, noise, index, rows, return_x_0)
    batch, elements = x_t.shape[0], elements_of(x_t)
    layout, channels = memory_format(x_t, noise)
    grid, block, warps = plan(batch, elements, channels)
    index, stride = per_sample(index)
    x_prev = result(x_t, layout)
    x_0 = result(x_t, layout) if return_x_0 else None
    with device_of(x_t):
        reverse_kernel[grid](
            x_prev, x_0, *(operand(x, layout) for x in (model_output, x_t, noise)), index, rows.contiguous(), len(rows),
            elements, T_STRIDE=stride, CHANNELS=channels, BLOCK=block, num_warps=warps, **FLAGS,
        )  # fmt: skip
    return like(x_prev, x_t, layout), x_t.new_empty(0) if x_0 is None else like(x_0, x_t, layout)


def reverse_step_backward(grad_x_prev, grad_x_0, model_output, x_t, index, rows) -> tuple[Tensor, Tensor]:
    if rows.dtype != torch.float32 or x_t.numel() == 0:
        return reference.reverse_step_backward(grad_x_prev, grad_x_0, model_output, x_t, index, rows)
    batch, elements = x_t.shape[0], elements_of(x_t)
    layout, _ = memory_format(x_t, None)
    grid, block, warps = plan(batch, elements, 0)
    index, stride = per_sample(index)
    grad_out, grad_x = result(model_output, layout), result(x_t, layout)
    operands = (operand(x, layout) for x in (grad_x_prev, grad_x_0, model_output, x_t))
    with device_of(x_t):
        reverse_backward_kernel[grid](
            grad_out, grad_x, *operands, index, rows.contiguous(), len(rows), elements,
            T_STRIDE=stride, BLOCK=block, num_warps=warps, **FLAGS,
        )  # fmt: skip
    return like(grad_out, model_output, layout), like(grad_x, x_t, layout)
