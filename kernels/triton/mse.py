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
from .reduce import MEAN, finish
from .tile import column, like, per_sample, read, result, row_of, tile, tile_noise, tiles_of, write


@triton.jit
def _difference(out_ptr, noise_ptr, x_0_ptr, x_t_ptr, row, elements, place, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """out - target; 0 - target beyond the sample's end."""
    target = tl.zeros((BLOCK,), tl.float32)
    if noise_ptr is not None:
        target = column(row, 0) * tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK)
    if x_0_ptr is not None:
        target = tl.fma(column(row, 1), read(x_0_ptr, place), target)
    if x_t_ptr is not None:
        target = tl.fma(column(row, 2), read(x_t_ptr, place), target)
    return read(out_ptr, place) - target


@triton.jit(do_not_specialize=["num_rows"])
def mse_kernel(
    loss_ptr, out_ptr, noise_ptr, x_0_ptr, x_t_ptr, t_ptr, rows_ptr, num_rows, elements,
    T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """This program's share of its sample's loss, w / D sum d^2 over the tile."""
    sample, place = tile(elements, CHANNELS, BLOCK)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, 4)
    d = _difference(out_ptr, noise_ptr, x_0_ptr, x_t_ptr, row, elements, place, CHANNELS, BLOCK)
    total = tl.sum(tl.where(place[2], d * d, 0.0))
    tl.store(loss_ptr + tl.program_id(0), column(row, 3) * tl.div_rn(total, elements * 1.0))


@triton.jit(do_not_specialize=["num_rows", "count"])
def mse_backward_kernel(
    grad_ptr, out_ptr, noise_ptr, x_0_ptr, x_t_ptr, t_ptr, rows_ptr, num_rows, elements, upstream_ptr, count,
    UPSTREAM_STRIDE: tl.constexpr, T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, 4)
    upstream = tl.load(upstream_ptr + sample * UPSTREAM_STRIDE).to(tl.float32)
    scale = tl.div_rn(2.0 * column(row, 3), count)
    d = _difference(out_ptr, noise_ptr, x_0_ptr, x_t_ptr, row, elements, place, CHANNELS, BLOCK)
    write(grad_ptr, place, scale * d * upstream)


def mse_loss(model_output, noise, x_0, x_t, t, rows, reduction) -> Tensor:
    if rows.dtype != torch.float32 or model_output.numel() == 0:
        return reference.mse_loss(model_output, noise, x_0, x_t, t, rows, reduction)
    tiles = tiles_of(model_output, noise, any_batch=True)
    shares = rows.new_empty(tiles.programs)
    tiles.launch(mse_kernel, (shares,), (model_output, noise, x_0, x_t), t, rows)
    return finish(shares, model_output.shape[0], reduction)


def mse_loss_backward(grad_loss, model_output, noise, x_0, x_t, t, rows, reduction) -> Tensor:
    if rows.dtype != torch.float32 or model_output.numel() == 0:
        return reference.mse_loss_backward(grad_loss, model_output, noise, x_0, x_t, t, rows, reduction)
    tiles = tiles_of(model_output, noise)
    grad = result(model_output, tiles.layout)
    upstream, stride = per_sample(grad_loss)
    count = float(tiles.elements * (model_output.shape[0] if reduction == MEAN else 1))
    data = (model_output, noise, x_0, x_t)
    tiles.launch(mse_backward_kernel, (grad,), data, t, rows, upstream, count, UPSTREAM_STRIDE=stride)
    return like(grad, model_output, tiles.layout)
