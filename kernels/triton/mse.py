# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The weighted squared error of a prediction, and its gradient (twin: kernels/cpu/mse.h).

    target = p z + q x_0 + r x_t = fma(r, x_t, fma(q, x_0, p * z)), without the terms that are not given
    d = out - target;  loss_b = w * (sum_e d^2 / D);  grad = (2 w / count * d) * upstream_b,  count = D, or D B for the mean

Moves: read out (and x_0, x_t, z where they are given as tensors), write grad where it is wanted: loss, both, or in a backward
that comes later the gradient are one kernel. Each program sums its tile; where a loss spans programs a second, tiny kernel
adds the sums in order. A loss's cut depends on D alone, so a sample's has the same bits in any batch.
"""

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import reference
from .columns import MSE, MSE_P, MSE_Q, MSE_R, MSE_W
from .launcher import launch
from .reduce import count_of, finish
from .tile import (
    VIEWS,
    column,
    like,
    per_sample,
    read,
    result,
    row_of,
    tile,
    tile_noise,
    tiles_of,
    upstream_of,
    write,
)


@triton.jit
def _difference(out_ptr, noise_ptr, x_0_ptr, x_t_ptr, row, elements, place, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """out - target; 0 - target beyond the sample's end."""
    target = tl.zeros((BLOCK,), tl.float32)
    if noise_ptr is not None:
        target = column(row, MSE_P) * tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK)
    if x_0_ptr is not None:
        target = tl.fma(column(row, MSE_Q), read(x_0_ptr, place), target)
    if x_t_ptr is not None:
        target = tl.fma(column(row, MSE_R), read(x_t_ptr, place), target)
    return read(out_ptr, place) - target


@triton.jit(do_not_specialize=["num_rows", "count"], do_not_specialize_on_alignment=VIEWS)
def mse_kernel(
    loss_ptr, grad_ptr, out_ptr, noise_ptr, x_0_ptr, x_t_ptr, t_ptr, rows_ptr, num_rows, elements, upstream_ptr, count,
    UPSTREAM_STRIDE: tl.constexpr, T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is wanted of this program's share of its sample's loss, w / D sum d^2 over the tile, and the gradient."""
    sample, place = tile(elements, CHANNELS, BLOCK)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, MSE)
    if grad_ptr is not None:
        upstream = upstream_of(upstream_ptr, sample, UPSTREAM_STRIDE, 1.0)
        scale = tl.div_rn(2.0 * column(row, MSE_W), count)
    d = _difference(out_ptr, noise_ptr, x_0_ptr, x_t_ptr, row, elements, place, CHANNELS, BLOCK)
    if loss_ptr is not None:
        total = tl.sum(tl.where(place[2], d * d, 0.0))
        tl.store(loss_ptr + tl.program_id(0), column(row, MSE_W) * tl.div_rn(total, elements * 1.0))
    if grad_ptr is not None:
        write(grad_ptr, place, scale * d * upstream)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def scale_kernel(grad_ptr, upstream_ptr, elements, UPSTREAM_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """In place. Most losses are the last node, whose upstream gradient is 1: there nothing is read or written."""
    sample, place = tile(elements, CHANNELS, BLOCK)
    upstream = upstream_of(upstream_ptr, sample, UPSTREAM_STRIDE, 1.0)
    if upstream != 1.0:
        write(grad_ptr, place, read(grad_ptr, place) * upstream)


def mse_loss(model_output, noise, x_0, x_t, t, rows, reduction, with_grad) -> tuple[Tensor, Tensor]:
    tiles = tiles_of(model_output, noise, any_batch=True)
    shares, grad = rows.new_empty(tiles.plan.programs), result(model_output, tiles.layout, with_grad)
    data, others = (model_output, noise, x_0, x_t), (None, count_of(model_output, reduction))
    tiles.launch(mse_kernel, (shares, grad), data, t, rows, others, (0,))
    return finish(shares, model_output.shape[0], reduction), like(grad, model_output, tiles.layout)


def mse_loss_backward(model_output, noise, x_0, x_t, t, rows, reduction, grad_loss) -> Tensor:
    tiles = tiles_of(model_output, noise)
    grad = result(model_output, tiles.layout)
    upstream, stride = per_sample(grad_loss)
    data, others = (model_output, noise, x_0, x_t), (upstream, count_of(model_output, reduction))
    tiles.launch(mse_kernel, (None, grad), data, t, rows, others, (stride,))
    return like(grad, model_output, tiles.layout)


def scale_grad_(grad: Tensor, grad_loss: Tensor) -> None:
    tiles = tiles_of(grad) if grad.dtype is not torch.float64 and grad.numel() else None
    if tiles is None or not grad.is_contiguous(memory_format=tiles.layout):
        return reference.scale_grad_(grad, grad_loss)
    upstream, stride = per_sample(grad_loss)
    programs, block, num_warps = tiles.plan
    launch(grad, scale_kernel, programs, num_warps, (grad, upstream, tiles.elements), (stride, 0, block))
