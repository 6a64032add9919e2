# ruff: noqa: F403, F405, N803 (a name for each of many columns; constexpr arguments are written in capitals)
"""A term of the variational bound and its gradients, alone, with the mean squared error (hybrid), and as a step of bits/dim
(twin: kernels/cpu/vlb.h).

    x_0_hat = clamp(fma(p_o, out, p_x x_t), -bound, bound);  delta = v_0 + v_1 v, the variance's log-ratio to the posterior's
    mu~ - mu = c (x_0 - x_0_hat) + e_0 x_0 + e_x x_t + e_o out
    vlb_b = 1 / (D ln 2) sum_e (t > 0: KL;  t = 0: -log P of x_0's level), see gaussian.py
    mse_b = w / D sum_e (out - target)^2,  target = p z + q x_0 + r x_t;  loss = mse + vlb_weight vlb

v are the output's variance channels where it has them (LEARNED). In the hybrid the mean channels get the gradient of mse alone,
the variance channels that of vlb. Where x_t is not given, it is made of x_0 and the noise again, as noising.py does.

Moves: read out, x_0 (and x_t, z where they are given as tensors), write grad where it is wanted: loss, both, or the gradient
alone are one kernel. t is one for a program, so is the branch t = 0. Each program sums its tile; reduce.py adds the shares.
"""

import math

from torch import Tensor

import triton
import triton.language as tl

from .columns import *
from .gaussian import kl, nll
from .reduce import NONE, count_of, finish, finish_hybrid, losses_of, shaped
from .tile import (
    VIEWS,
    column,
    halves,
    is_learned,
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

_LOG2_E = tl.constexpr(1 / math.log(2))
_PER_THREAD = {False: 16, True: 8}
"""Elements a thread at most, in the exact form and in tanh's: the registers hold no more at t = 0 with the gradient. A loss has
the same cut, and so the same bits, without it."""


@triton.jit
def _noised(x_0, z, row, x_0_ptr):
    """x_t as noising.py makes it, rounded to x_0's dtype."""
    return tl.fma(column(row, VLB_A), x_0, column(row, VLB_S) * z).to(x_0_ptr.dtype.element_ty)


@triton.jit
def _x_t(x_t_ptr, x_0_ptr, x_0, z, row, place):
    return _noised(x_0, z, row, x_0_ptr).to(tl.float32) if x_t_ptr is None else read(x_t_ptr, place)


@triton.jit
def _variances(out_ptr, variance, row, LEARNED: tl.constexpr):
    """(delta, precision), the formulas'."""
    delta = column(row, VLB_V_0)
    if LEARNED:
        delta = tl.fma(column(row, VLB_V_1), read(out_ptr, variance), delta)
    return delta, column(row, VLB_PRECISION)


@triton.jit
def _difference(out, x_0, x_t, row):
    """mu~ - mu, its derivative by the output, and x_0 - x_0_hat."""
    p_x, p_o, bound = column(row, VLB_P_X), column(row, VLB_P_O), column(row, VLB_BOUND)
    c, e_o = column(row, VLB_C), column(row, VLB_E_O)
    free = tl.fma(p_o, out, p_x * x_t)
    clamped = tl.abs(free) > bound
    missed = tl.where(clamped, x_0 - tl.where(free < 0, -bound, bound), tl.fma(-p_o, out, tl.fma(-p_x, x_t, x_0)))
    difference = tl.fma(e_o, out, tl.fma(column(row, VLB_E_X), x_t, tl.fma(column(row, VLB_E_0), x_0, c * missed)))
    return difference, tl.where(clamped, e_o, e_o - c * p_o), missed


@triton.jit
def _term(difference, variances, x_0, t, TANH: tl.constexpr):
    """In nats: each element's term, and its derivatives by the difference and by delta."""
    delta, precision = variances
    if t == 0:
        value, by_difference, by_delta = nll(difference, delta, precision, x_0, TANH)
    else:
        value, by_difference, by_delta = kl(difference, delta, precision)
    return value, by_difference, by_delta


@triton.jit
def _target(x_0, x_t, z, row):
    return tl.fma(column(row, VLB_R), x_t, tl.fma(column(row, VLB_Q), x_0, column(row, VLB_P) * z))


@triton.jit
def _mean(values, place, elements):
    """The tile's share of its sample's mean."""
    return tl.div_rn(tl.sum(tl.where(place[2], values, 0.0)), elements * 1.0)


@triton.jit(do_not_specialize=["num_rows", "count"], do_not_specialize_on_alignment=VIEWS)
def vlb_kernel(
    vlb_ptr, grad_ptr, out_ptr, x_0_ptr, x_t_ptr, noise_ptr, t_ptr, rows_ptr, num_rows, elements, upstream_ptr, count,
    LEARNED: tl.constexpr, TANH: tl.constexpr, UPSTREAM_STRIDE: tl.constexpr, T_STRIDE: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is wanted of this program's share of its sample's term, and the gradient."""
    sample, place = tile(elements, CHANNELS, BLOCK)
    mean, variance = halves(sample, place, elements, LEARNED, CHANNELS)
    t, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, VLB)
    x_0 = read(x_0_ptr, place)
    x_t = _x_t(x_t_ptr, x_0_ptr, x_0, tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK), row, place)
    scale = tl.div_rn(upstream_of(upstream_ptr, sample, UPSTREAM_STRIDE, 1.0) * _LOG2_E, count)
    scale_v = scale * column(row, VLB_V_1)
    difference, by_out, _ = _difference(read(out_ptr, mean), x_0, x_t, row)
    variances = _variances(out_ptr, variance, row, LEARNED)
    value, by_difference, by_delta = _term(difference, variances, x_0, t, TANH)
    if grad_ptr is not None:
        write(grad_ptr, mean, scale * by_difference * by_out)
        if LEARNED:
            write(grad_ptr, variance, scale_v * by_delta)
    if vlb_ptr is not None:
        tl.store(vlb_ptr + tl.program_id(0), _mean(value, place, elements) * _LOG2_E)


@triton.jit(do_not_specialize=["num_rows", "count", "vlb_weight"], do_not_specialize_on_alignment=VIEWS)
def hybrid_kernel(
    loss_ptr, mse_ptr, vlb_ptr, grad_ptr, out_ptr, x_0_ptr, x_t_ptr, noise_ptr, t_ptr, rows_ptr, num_rows, elements,
    upstream_ptr, mse_upstream_ptr, vlb_upstream_ptr, count, vlb_weight,
    LEARNED: tl.constexpr, TANH: tl.constexpr, UPSTREAM_STRIDE: tl.constexpr, MSE_STRIDE: tl.constexpr,
    VLB_STRIDE: tl.constexpr, T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is wanted of the shares of mse and vlb, of loss too where a program's shares are a sample's losses, and of the
    gradient: with the losses that of `loss`, alone that of all three."""
    sample, place = tile(elements, CHANNELS, BLOCK)
    mean, variance = halves(sample, place, elements, LEARNED, CHANNELS)
    t, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, VLB)
    upstream = upstream_of(upstream_ptr, sample, UPSTREAM_STRIDE, 0.0 if mse_ptr is None else 1.0)
    to_mse = upstream + upstream_of(mse_upstream_ptr, sample, MSE_STRIDE, 0.0)
    to_vlb = vlb_weight * upstream + upstream_of(vlb_upstream_ptr, sample, VLB_STRIDE, 0.0)
    scale_v = tl.div_rn(to_vlb * _LOG2_E, count) * column(row, VLB_V_1)
    x_0, out = read(x_0_ptr, place), read(out_ptr, mean)
    z = tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK)
    x_t = _x_t(x_t_ptr, x_0_ptr, x_0, z, row, place)
    d, w = out - _target(x_0, x_t, z, row), column(row, VLB_W)
    mse = w * _mean(d * d, place, elements)  # here, so that d need not be kept
    difference, _, _ = _difference(out, x_0, x_t, row)
    variances = _variances(out_ptr, variance, row, LEARNED)
    if grad_ptr is not None:  # after the last read of a coefficient, which could not be scalar any more
        write(grad_ptr, mean, tl.div_rn(2.0 * w, count) * d * to_mse)
    value, _, by_delta = _term(difference, variances, x_0, t, TANH)
    if grad_ptr is not None and LEARNED:
        write(grad_ptr, variance, scale_v * by_delta)
    if mse_ptr is not None:
        vlb = _mean(value, place, elements) * _LOG2_E
        tl.store(mse_ptr + tl.program_id(0), mse)
        tl.store(vlb_ptr + tl.program_id(0), vlb)
        if loss_ptr is not None:
            tl.store(loss_ptr + tl.program_id(0), mse + vlb_weight * vlb)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=VIEWS)
def terms_kernel(
    terms_ptr, next_x_t_ptr, out_ptr, x_0_ptr, x_t_ptr, noise_ptr, next_noise_ptr, t_ptr, rows_ptr, num_rows, elements,
    next_t_ptr, NEXT_T_STRIDE: tl.constexpr,
    LEARNED: tl.constexpr, TANH: tl.constexpr, T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The shares of vlb and of mean (x_0 - x_0_hat)^2, and x_t of the next step."""
    sample, place = tile(elements, CHANNELS, BLOCK)
    mean, variance = halves(sample, place, elements, LEARNED, CHANNELS)
    t, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, VLB)
    x_0 = read(x_0_ptr, place)
    if next_x_t_ptr is not None:
        _, next_row = row_of(sample, next_t_ptr, rows_ptr, num_rows, NEXT_T_STRIDE, VLB)
        z = tile_noise(next_noise_ptr, elements, place, CHANNELS, BLOCK)
        write(next_x_t_ptr, place, _noised(x_0, z, next_row, x_0_ptr))
    x_t = _x_t(x_t_ptr, x_0_ptr, x_0, tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK), row, place)
    difference, _, missed = _difference(read(out_ptr, mean), x_0, x_t, row)
    mse = _mean(missed * missed, place, elements)
    value, _, _ = _term(difference, _variances(out_ptr, variance, row, LEARNED), x_0, t, TANH)
    tl.store(terms_ptr + tl.program_id(0), _mean(value, place, elements) * _LOG2_E)
    tl.store(terms_ptr + tl.num_programs(0) + tl.program_id(0), mse)


def _cut(model_output: Tensor, x_0: Tensor, tanh_cdf: bool, *noises: Tensor | None, any_batch: bool = True):
    """The tiles, which go along the output and its gradient, and the form of the kernels."""
    learned, most = is_learned(model_output, x_0), _PER_THREAD[tanh_cdf]
    tiles = tiles_of(x_0, *noises, learned=learned, walks=model_output, any_batch=any_batch, most=most)
    return tiles, (learned, tanh_cdf)


def vlb_loss(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction, with_grad) -> tuple[Tensor, Tensor]:
    tiles, form = _cut(model_output, x_0, tanh_cdf, noise)
    shares, grad = rows.new_empty(tiles.plan.programs), result(model_output, tiles.layout, with_grad)
    data, others = (model_output, x_0, x_t, noise), (None, count_of(x_0, reduction))
    tiles.launch(vlb_kernel, (shares, grad), data, t, rows, others, (*form, 0))
    return finish(shares, x_0.shape[0], reduction), like(grad, model_output, tiles.layout)


def vlb_loss_backward(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction, grad_loss) -> Tensor:
    tiles, form = _cut(model_output, x_0, tanh_cdf, noise, any_batch=False)
    grad = result(model_output, tiles.layout)
    upstream, stride = per_sample(grad_loss)
    data, others = (model_output, x_0, x_t, noise), (upstream, count_of(x_0, reduction))
    tiles.launch(vlb_kernel, (None, grad), data, t, rows, others, (*form, stride))
    return like(grad, model_output, tiles.layout)


def hybrid_loss(model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction, with_grad) -> tuple[Tensor, ...]:
    tiles, form = _cut(model_output, x_0, tanh_cdf, noise)
    batch = x_0.shape[0]
    mse, vlb = rows.new_empty(tiles.plan.programs), rows.new_empty(tiles.plan.programs)
    loss = rows.new_empty(tiles.plan.programs) if tiles.plan.programs == losses_of(batch, reduction) else None
    grad = result(model_output, tiles.layout, with_grad)
    data, others = (model_output, x_0, x_t, noise), (None, None, None, count_of(x_0, reduction), vlb_weight)
    tiles.launch(hybrid_kernel, (loss, mse, vlb, grad), data, t, rows, others, (*form, 0, 0, 0))
    if loss is None:
        loss, mse, vlb = finish_hybrid(mse, vlb, batch, reduction, vlb_weight)
    else:
        loss, mse, vlb = (shaped(x, reduction) for x in (loss, mse, vlb))
    return loss, mse, vlb, like(grad, model_output, tiles.layout)


def hybrid_loss_backward(
    model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction, grad_loss, grad_mse, grad_vlb
) -> Tensor:
    tiles, form = _cut(model_output, x_0, tanh_cdf, noise, any_batch=False)
    grad = result(model_output, tiles.layout)
    upstream, strides = zip(*((None, 0) if g is None else per_sample(g) for g in (grad_loss, grad_mse, grad_vlb)), strict=True)
    data, others = (model_output, x_0, x_t, noise), (*upstream, count_of(x_0, reduction), vlb_weight)
    tiles.launch(hybrid_kernel, (None, None, None, grad), data, t, rows, others, (*form, *strides))
    return like(grad, model_output, tiles.layout)


def vlb_terms(model_output, x_0, x_t, noise, t, rows, tanh_cdf, next_noise, next_t) -> tuple[Tensor, Tensor]:
    tiles, form = _cut(model_output, x_0, tanh_cdf, noise, next_noise)
    shares = rows.new_empty(2 * tiles.plan.programs)
    next_x_t = None if next_noise is None else result(x_0, tiles.layout)
    next_t, stride = (None, 0) if next_noise is None else per_sample(next_t)
    data = (model_output, x_0, x_t, noise, next_noise)
    tiles.launch(terms_kernel, (shares, next_x_t), data, t, rows, (next_t,), (stride, *form))
    terms = finish(shares, 2 * x_0.shape[0], NONE).view(2, x_0.shape[0])
    return terms, x_0.new_empty(0) if next_x_t is None else like(next_x_t, x_0, tiles.layout)
