# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""One reverse update of any sampler that is a table of rows, and its gradients (twin: kernels/cpu/reverse.h).

    out'    = fma(g, out - u, u), or out where u is not given
    x_0_hat = clamp(fma(p_o, out', p_x * x), -bound, bound)
    x_prev  = fma(sigma_e, z, fma(k_h3, h_3, fma(k_h2, h_2, fma(k_h1, h_1, fma(k_o, out', fma(k_0, x_0_hat, k_x * x)))))),
              sigma_e = sigma, or sigma e^(k_v v) of an output with variance channels v
    kept    = fma(c_0, x_0_hat, c_x * x)
              in these without what is not given, and any term of a factor that is 0, whatever it would hold
    through = fma(c_0, m, k_0 g + h) where |x_0_hat before the clamp| <= bound, else 0;  g, h, m the gradients of x_prev,
              x_0_hat, kept
    grad_x  = fma(p_x, through, fma(c_x, m, k_x * g));  grad_v = g k_v sigma_e z
    grad_out' = fma(p_o, through, k_o * g), which is grad_out without u;  grad_out = g grad_out';  grad_u = grad_out' - grad_out

A sample's own guidance takes its row's g's place; its own bound b makes p_x / b, p_o / b and a bound of 1.

Moves: read x, out (and u, h_j), write x_prev (and x_0_hat, kept where they are asked for; read z where it is a tensor);
backward: read g (h, m), x, out (u), write grad_out, grad_x (grad_u). The backward makes the noise again where the variance is
learned.
"""

from functools import partial

import torch
from torch import Tensor

import triton
import triton.language as tl

from .columns import (
    STEP,
    STEP_BOUND,
    STEP_C_0,
    STEP_C_X,
    STEP_G,
    STEP_K_0,
    STEP_K_H1,
    STEP_K_H2,
    STEP_K_H3,
    STEP_K_O,
    STEP_K_V,
    STEP_K_X,
    STEP_P_O,
    STEP_P_X,
    STEP_SIGMA,
)
from .gaussian import exponential
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
    unwanted,
    write,
)

_PER_THREAD = {False: 32, True: 16}
"""Elements a thread at most, without and with variance channels; with these and a second output beside them half."""


@triton.jit
def _masked(k, x):
    """x, or 0 where its factor k is 0."""
    return tl.where(k != 0, x, 0.0)


@triton.jit
def _product(k, x):
    return k * _masked(k, x)


@triton.jit
def _term(k, x, total):
    """k x + total: most targets have a predicated fma for it."""
    return tl.where(k != 0, tl.fma(k, x, total), total)


@triton.jit
def _growth(out_ptr, variance, row):
    """e^(k_v v)."""
    e, _, _ = exponential(_product(column(row, STEP_K_V), read(out_ptr, variance)))
    return e


@triton.jit
def _prediction(sample, row, bound_ptr, BOUND_STRIDE: tl.constexpr):
    """(p_x, p_o, bound)"""
    p_x, p_o, bound = column(row, STEP_P_X), column(row, STEP_P_O), column(row, STEP_BOUND)
    if bound_ptr is not None:
        inverse = tl.div_rn(1.0, tl.load(bound_ptr + sample * BOUND_STRIDE).to(tl.float32))
        p_x, p_o, bound = p_x * inverse, p_o * inverse, 1.0
    return p_x, p_o, bound


@triton.jit
def _scale(sample, row, guidance_ptr, GUIDANCE_STRIDE: tl.constexpr):
    """g"""
    g = column(row, STEP_G)
    if guidance_ptr is not None:
        g = tl.load(guidance_ptr + sample * GUIDANCE_STRIDE).to(tl.float32)
    return g


@triton.jit
def _guided(out_ptr, u_ptr, mean, scale):
    """out'"""
    out = read(out_ptr, mean)
    if u_ptr is not None:
        u = read(u_ptr, mean)
        out = tl.fma(scale, _masked(scale, out - u), u)
    return out


@triton.jit
def _and_history(x_prev, h_ptr, place, k_h):
    if h_ptr is not None:
        x_prev = _term(k_h, read(h_ptr, place), x_prev)
    return x_prev


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=VIEWS)
def reverse_kernel(
    x_prev_ptr, x_0_ptr, kept_ptr, out_ptr, u_ptr, x_ptr, h1_ptr, h2_ptr, h3_ptr, noise_ptr,
    t_ptr, rows_ptr, num_rows, elements, guidance_ptr, bound_ptr,
    LEARNED: tl.constexpr, GUIDANCE_STRIDE: tl.constexpr, BOUND_STRIDE: tl.constexpr,
    T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    mean, variance = halves(sample, place, elements, LEARNED, CHANNELS)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, STEP)
    p_x, p_o, bound = _prediction(sample, row, bound_ptr, BOUND_STRIDE)
    k_x, k_0, k_o, sigma = column(row, STEP_K_X), column(row, STEP_K_0), column(row, STEP_K_O), column(row, STEP_SIGMA)
    x, out = read(x_ptr, place), _guided(out_ptr, u_ptr, mean, _scale(sample, row, guidance_ptr, GUIDANCE_STRIDE))
    x_0 = _term(p_o, out, _product(p_x, x))
    x_0 = tl.maximum(x_0, -bound, propagate_nan=tl.PropagateNan.ALL)
    x_0 = tl.minimum(x_0, bound, propagate_nan=tl.PropagateNan.ALL)
    if x_0_ptr is not None:
        write(x_0_ptr, place, x_0)
    if kept_ptr is not None:
        write(kept_ptr, place, _term(column(row, STEP_C_0), x_0, _product(column(row, STEP_C_X), x)))
    x_prev = _term(k_o, out, _term(k_0, x_0, _product(k_x, x)))
    x_prev = _and_history(x_prev, h1_ptr, place, column(row, STEP_K_H1))
    x_prev = _and_history(x_prev, h2_ptr, place, column(row, STEP_K_H2))
    x_prev = _and_history(x_prev, h3_ptr, place, column(row, STEP_K_H3))
    if noise_ptr is not None:
        deviation = sigma * _growth(out_ptr, variance, row) if LEARNED else sigma
        noisy = tl.fma(deviation, tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK), x_prev)
        x_prev = tl.where(sigma != 0, noisy, x_prev)
    write(x_prev_ptr, place, x_prev)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=VIEWS)
def reverse_backward_kernel(
    grad_out_ptr, grad_x_ptr, grad_u_ptr, grad_x_prev_ptr, grad_x_0_ptr, grad_kept_ptr, out_ptr, u_ptr, x_ptr, noise_ptr,
    t_ptr, rows_ptr, num_rows, elements, guidance_ptr, bound_ptr,
    LEARNED: tl.constexpr, GUIDANCE_STRIDE: tl.constexpr, BOUND_STRIDE: tl.constexpr,
    T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    mean, variance = halves(sample, place, elements, LEARNED, CHANNELS)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, STEP)
    p_x, p_o, bound = _prediction(sample, row, bound_ptr, BOUND_STRIDE)
    k_x, k_0, k_o = column(row, STEP_K_X), column(row, STEP_K_0), column(row, STEP_K_O)
    scale = _scale(sample, row, guidance_ptr, GUIDANCE_STRIDE)
    x, out = read(x_ptr, place), _guided(out_ptr, u_ptr, mean, scale)
    g = tl.zeros((BLOCK,), tl.float32)
    if grad_x_prev_ptr is not None:
        g = read(grad_x_prev_ptr, place)
    through, past = k_0 * g, k_x * g
    if grad_x_0_ptr is not None:
        through += read(grad_x_0_ptr, place)
    if grad_kept_ptr is not None:
        m = read(grad_kept_ptr, place)
        through, past = tl.fma(column(row, STEP_C_0), m, through), tl.fma(column(row, STEP_C_X), m, past)
    through = tl.where(tl.abs(_term(p_o, out, _product(p_x, x))) > bound, 0.0, through)
    grad_out, grad_x = tl.fma(p_o, through, k_o * g), tl.fma(p_x, through, past)
    if u_ptr is not None:
        write(grad_u_ptr, mean, tl.fma(-scale, grad_out, grad_out))
        grad_out = scale * grad_out
        if LEARNED:
            write(grad_u_ptr, variance, tl.zeros((BLOCK,), tl.float32))
    if LEARNED:
        grad_v = tl.zeros((BLOCK,), tl.float32)
        if noise_ptr is not None:
            sigma = column(row, STEP_SIGMA)
            by_v = column(row, STEP_K_V) * (sigma * _growth(out_ptr, variance, row))
            by_v = by_v * tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK)
            grad_v = tl.where(sigma != 0, g * by_v, 0.0)
        write(grad_out_ptr, variance, grad_v)
    write(grad_out_ptr, mean, grad_out)
    write(grad_x_ptr, place, grad_x)


def _launch(tiles, kernel, written, data, index, rows, guidance, bound, learned) -> None:
    guidance, guidance_stride = (None, 0) if guidance is None else per_sample(guidance)
    bound, bound_stride = (None, 0) if bound is None else per_sample(bound)
    tiles.launch(kernel, written, data, index, rows, (guidance, bound), (learned, guidance_stride, bound_stride))


def reverse_step(
    model_output, x_t, noise, index, rows, return_x_0,
    uncond_output=None, guidance=None, bound=None, history=None, return_kept=False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    learned = is_learned(model_output, x_t)
    most = _PER_THREAD[learned] // (2 if learned and uncond_output is not None else 1)
    tiles = tiles_of(x_t, noise, learned=learned, most=most)
    as_x_lies = x_t.is_contiguous(memory_format=tiles.layout)  # asked once: three results are like x
    empty = torch.empty_like if as_x_lies else partial(result, layout=tiles.layout)
    x_prev, x_0, kept = empty(x_t), empty(x_t) if return_x_0 else None, empty(x_t) if return_kept else None
    earlier = (*history, None, None, None)[:3] if history else (None, None, None)
    data = (model_output, uncond_output, x_t, *earlier, noise)
    _launch(tiles, reverse_kernel, (x_prev, x_0, kept), data, index, rows, guidance, bound, learned)
    if not as_x_lies:
        x_prev, x_0, kept = (None if x is None else like(x, x_t, tiles.layout) for x in (x_prev, x_0, kept))
    no_x_0, no_kept = unwanted(x_t.dtype, x_t.device)
    return x_prev, no_x_0 if x_0 is None else x_0, no_kept if kept is None else kept


def reverse_step_backward(
    grad_x_prev, grad_x_0, model_output, x_t, noise, index, rows,
    uncond_output=None, guidance=None, bound=None, grad_kept=None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    learned = is_learned(model_output, x_t)
    noise = noise if learned else None
    tiles = tiles_of(x_t, noise, learned=learned, most=_PER_THREAD[learned])
    inputs = (model_output, x_t, uncond_output)
    grads = tuple(None if x is None else result(x, tiles.layout) for x in inputs)
    data = (grad_x_prev, grad_x_0, grad_kept, model_output, uncond_output, x_t, noise)
    _launch(tiles, reverse_backward_kernel, grads, data, index, rows, guidance, bound, learned)
    by_output, by_x_t, by_uncond = (
        x_t.new_empty(0) if x is None else like(grad, x, tiles.layout) for grad, x in zip(grads, inputs, strict=True)
    )
    return by_output, by_x_t, by_uncond
