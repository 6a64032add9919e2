# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The weighted squared error of a prediction, and its gradient (twin: kernels/cpu/mse.h).

    target = p z + q x_0 + r x_t = fma(r, x_t, fma(q, x_0, p * z)), without the terms that are not given
    d = out - target;  loss_b = w * (sum_e d^2 / D);  grad = (2 w / count * d) * upstream_b,  count = D, or D B for the mean

Moves: read out; backward: read out, write grad (and read x_0, x_t, z where they are given as tensors). The backward makes
the noise again. Each program sums its tile; where a loss spans programs a second, tiny kernel adds the sums in order. The
cut depends on D alone, so a sample's loss has the same bits in any batch.
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

_NONE, _MEAN, _SUM = 0, 1, 2
_FINISH = ((1 << 12, 8192, 8), (1 << 7, 1024, 4), (0, 128, 1))  # from how many shares on: a program's tile, its warps


@triton.jit
def _difference(
    out_ptr, noise_ptr, x_0_ptr, x_t_ptr, rows_ptr, t, num_rows, elements, first, offsets, mask,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out - target; 0 - target beyond the sample's end."""
    target = tl.zeros((BLOCK,), tl.float32)
    if noise_ptr is not None:
        z = tile_noise(noise_ptr, elements, first, offsets, mask, CHANNELS, BLOCK)
        target = coefficient(rows_ptr, t, num_rows, 0, 4) * z
    if x_0_ptr is not None:
        x_0 = tl.load(x_0_ptr + first + offsets, mask=mask).to(tl.float32)
        target = tl.fma(coefficient(rows_ptr, t, num_rows, 1, 4), x_0, target)
    if x_t_ptr is not None:
        x_t = tl.load(x_t_ptr + first + offsets, mask=mask).to(tl.float32)
        target = tl.fma(coefficient(rows_ptr, t, num_rows, 2, 4), x_t, target)
    return tl.load(out_ptr + first + offsets, mask=mask).to(tl.float32) - target


@triton.jit(do_not_specialize=["num_rows"])
def mse_kernel(
    loss_ptr,
    out_ptr,
    noise_ptr,
    x_0_ptr,
    x_t_ptr,
    t_ptr,
    rows_ptr,
    num_rows,
    elements,
    T_STRIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This program's share of its sample's loss, w / D sum d^2 over the tile."""
    sample, first, offsets, mask = tile(elements, CHANNELS, BLOCK)
    t = tl.load(t_ptr + sample * T_STRIDE).to(tl.int64)
    d = _difference(
        out_ptr, noise_ptr, x_0_ptr, x_t_ptr, rows_ptr, t, num_rows, elements, first, offsets, mask, CHANNELS, BLOCK
    )
    total = tl.sum(tl.where(mask, d * d, 0.0))
    loss = coefficient(rows_ptr, t, num_rows, 3, 4) * tl.div_rn(total, elements * 1.0)
    tl.store(loss_ptr + tl.program_id(0), loss)


@triton.jit(do_not_specialize=["count", "divisor"])
def finish_kernel(loss_ptr, shares_ptr, count, divisor, TILE: tl.constexpr):
    """loss[b] = (sum of its `count` shares) / divisor, always in the same order."""
    program = tl.program_id(0)
    lane = tl.arange(0, TILE)
    total = tl.zeros((TILE,), tl.float32)
    shares_ptr += program.to(tl.int64) * count
    for start in range(0, count, TILE):
        total += tl.load(shares_ptr + start + lane, mask=lane < count - start, other=0.0)
    tl.store(loss_ptr + program, tl.div_rn(tl.sum(total), divisor * 1.0))


@triton.jit(do_not_specialize=["num_rows", "count"])
def mse_backward_kernel(
    grad_ptr,
    upstream_ptr,
    out_ptr,
    noise_ptr,
    x_0_ptr,
    x_t_ptr,
    t_ptr,
    rows_ptr,
    num_rows,
    elements,
    count,
    UPSTREAM_STRIDE: tl.constexpr,
    T_STRIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, first, offsets, mask = tile(elements, CHANNELS, BLOCK)
    t = tl.load(t_ptr + sample * T_STRIDE).to(tl.int64)
    d = _difference(
        out_ptr, noise_ptr, x_0_ptr, x_t_ptr, rows_ptr, t, num_rows, elements, first, offsets, mask, CHANNELS, BLOCK
    )
    scale = tl.div_rn(2.0 * coefficient(rows_ptr, t, num_rows, 3, 4), count)
    upstream = tl.load(upstream_ptr + sample * UPSTREAM_STRIDE).to(tl.float32)
    tl.store(grad_ptr + first + offsets, (scale * d * upstream).to(grad_ptr.dtype.element_ty), mask=mask)


def mse_loss(model_output, noise, x_0, x_t, t, rows, reduction) -> Tensor:
    if rows.dtype != torch.float32 or model_output.numel() == 0:
        return reference.mse_loss(model_output, noise, x_0, x_t, t, rows, reduction)
    batch, elements = model_output.shape[0], elements_of(model_output)
    layout, channels = memory_format(model_output, noise)
    grid, block, warps = plan(batch, elements, channels, size=elements)
    t, stride = per_sample(t)
    shares = rows.new_empty(grid)
    with device_of(model_output):
        mse_kernel[grid](
            shares, *(operand(x, layout) for x in (model_output, noise, x_0, x_t)), t, rows.contiguous(), len(rows),
            elements, T_STRIDE=stride, CHANNELS=channels, BLOCK=block, num_warps=warps, **FLAGS,
        )  # fmt: skip
        return _finish(shares, batch, reduction)


def _finish(shares: Tensor, batch: int, reduction: int) -> Tensor:
    losses = batch if reduction == _NONE else 1
    loss = shares
    if len(shares) > losses:
        count = len(shares) // losses
        size, warps = next((size, warps) for least, size, warps in _FINISH if count >= least)
        loss = shares.new_empty(losses)
        divisor = batch if reduction == _MEAN else 1
        finish_kernel[(losses,)](loss, shares, count, divisor, TILE=size, num_warps=warps)
    return loss if reduction == _NONE else loss.view(())


def mse_loss_backward(grad_loss, model_output, noise, x_0, x_t, t, rows, reduction) -> Tensor:
    if rows.dtype != torch.float32 or model_output.numel() == 0:
        return reference.mse_loss_backward(grad_loss, model_output, noise, x_0, x_t, t, rows, reduction)
    batch, elements = model_output.shape[0], elements_of(model_output)
    layout, channels = memory_format(model_output, noise)
    grid, block, warps = plan(batch, elements, channels)
    t, stride = per_sample(t)
    upstream, upstream_stride = per_sample(grad_loss)
    grad = result(model_output, layout)
    with device_of(model_output):
        mse_backward_kernel[grid](
            grad, upstream, *(operand(x, layout) for x in (model_output, noise, x_0, x_t)), t, rows.contiguous(),
            len(rows), elements, float(elements * batch if reduction == _MEAN else elements),
            UPSTREAM_STRIDE=upstream_stride, T_STRIDE=stride, CHANNELS=channels, BLOCK=block, num_warps=warps, **FLAGS,
        )  # fmt: skip
    return like(grad, model_output, layout)
