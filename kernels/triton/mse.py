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

from .columns import MSE, MSE_P, MSE_Q, MSE_R, MSE_W
from .reduce import count_of, finish
from .tile import VIEWS, column, like, per_sample, read, result, row_of, served, tile, tile_noise, tiles_of, write


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


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=VIEWS)
def mse_kernel(
    loss_ptr, out_ptr, noise_ptr, x_0_ptr, x_t_ptr, t_ptr, rows_ptr, num_rows, elements,
    T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """This program's share of its sample's loss, w / D sum d^2 over the tile."""
    sample, place = tile(elements, CHANNELS, BLOCK)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, MSE)
    d = _difference(out_ptr, noise_ptr, x_0_ptr, x_t_ptr, row, elements, place, CHANNELS, BLOCK)
    total = tl.sum(tl.where(place[2], d * d, 0.0))
    tl.store(loss_ptr + tl.program_id(0), column(row, MSE_W) * tl.div_rn(total, elements * 1.0))


@triton.jit(do_not_specialize=["num_rows", "count"], do_not_specialize_on_alignment=VIEWS)
def mse_backward_kernel(
    grad_ptr, out_ptr, noise_ptr, x_0_ptr, x_t_ptr, t_ptr, rows_ptr, num_rows, elements, upstream_ptr, count,
    UPSTREAM_STRIDE: tl.constexpr, T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, MSE)
    upstream = tl.load(upstream_ptr + sample * UPSTREAM_STRIDE).to(tl.float32)
    scale = tl.div_rn(2.0 * column(row, MSE_W), count)
    d = _difference(out_ptr, noise_ptr, x_0_ptr, x_t_ptr, row, elements, place, CHANNELS, BLOCK)
    write(grad_ptr, place, scale * d * upstream)


@served
def mse_loss(model_output, noise, x_0, x_t, t, rows, reduction, with_grad) -> tuple[Tensor, Tensor]:
    tiles = tiles_of(model_output, noise, any_batch=True)
    shares = rows.new_empty(tiles.programs)
    tiles.launch(mse_kernel, (shares,), (model_output, noise, x_0, x_t), t, rows)
    loss = finish(shares, model_output.shape[0], reduction)
    if not with_grad:
        return loss, model_output.new_empty(0)
    return loss, mse_loss_backward(model_output, noise, x_0, x_t, t, rows, reduction, torch.ones_like(loss))


@served
def mse_loss_backward(model_output, noise, x_0, x_t, t, rows, reduction, grad_loss) -> Tensor:
    tiles = tiles_of(model_output, noise)
    grad = result(model_output, tiles.layout)
    upstream, stride = per_sample(grad_loss)
    data, others = (model_output, noise, x_0, x_t), (upstream, count_of(model_output, reduction))
    tiles.launch(mse_backward_kernel, (grad,), data, t, rows, *others, UPSTREAM_STRIDE=stride)
    return like(grad, model_output, tiles.layout)
