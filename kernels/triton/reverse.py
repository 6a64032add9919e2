# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""One reverse update of any sampler that is a table of rows, and its gradients (twin: kernels/cpu/reverse.h).

    x_0_hat = clamp(fma(p_o, out, p_x * x), -bound, bound)
    x_prev  = fma(sigma_e, z, fma(k_o, out, fma(k_0, x_0_hat, k_x * x))), without z where it is not given or sigma is 0
    sigma_e = sigma, or sigma e^(k_v v) of an output with variance channels v
    through = k_0 g + h where |x_0_hat before the clamp| <= bound, else 0;  g, h the gradients of x_prev, x_0_hat
    grad_out = fma(p_o, through, k_o * g);  grad_x = fma(p_x, through, k_x * g);  grad_v = g k_v sigma_e z

Moves: read x, out, write x_prev (and x_0_hat where it is asked for; read z where it is a tensor);
backward: read g (h), x, out, write grad_out, grad_x. The backward makes the noise again where the variance is learned.
"""

from torch import Tensor

import triton
import triton.language as tl

from .columns import STEP, STEP_BOUND, STEP_K_0, STEP_K_O, STEP_K_V, STEP_K_X, STEP_P_O, STEP_P_X, STEP_SIGMA
from .gaussian import exponential
from .tile import VIEWS, column, halves, is_learned, like, read, result, row_of, served, tile, tile_noise, tiles_of, write

_PER_THREAD = {False: 32, True: 16}
"""Elements a thread at most, without and with variance channels."""


@triton.jit
def _growth(out_ptr, variance, row):
    """e^(k_v v)."""
    e, _, _ = exponential(column(row, STEP_K_V) * read(out_ptr, variance))
    return e


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=VIEWS)
def reverse_kernel(
    x_prev_ptr, x_0_ptr, out_ptr, x_ptr, noise_ptr, t_ptr, rows_ptr, num_rows, elements,
    LEARNED: tl.constexpr, T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    mean, variance = halves(sample, place, elements, LEARNED, CHANNELS)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, STEP)
    bound, sigma = column(row, STEP_BOUND), column(row, STEP_SIGMA)
    k_x, k_0, k_o = column(row, STEP_K_X), column(row, STEP_K_0), column(row, STEP_K_O)
    x, out = read(x_ptr, place), read(out_ptr, mean)
    x_0 = tl.fma(column(row, STEP_P_O), out, column(row, STEP_P_X) * x)
    x_0 = tl.maximum(x_0, -bound, propagate_nan=tl.PropagateNan.ALL)
    x_0 = tl.minimum(x_0, bound, propagate_nan=tl.PropagateNan.ALL)
    if x_0_ptr is not None:
        write(x_0_ptr, place, x_0)
    x_prev = tl.fma(k_o, out, tl.fma(k_0, x_0, k_x * x))
    if noise_ptr is not None:
        deviation = sigma * _growth(out_ptr, variance, row) if LEARNED else sigma
        noisy = tl.fma(deviation, tile_noise(noise_ptr, elements, place, CHANNELS, BLOCK), x_prev)
        x_prev = tl.where(sigma != 0, noisy, x_prev)
    write(x_prev_ptr, place, x_prev)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=VIEWS)
def reverse_backward_kernel(
    grad_out_ptr, grad_x_ptr, grad_x_prev_ptr, grad_x_0_ptr, out_ptr, x_ptr, noise_ptr, t_ptr, rows_ptr, num_rows, elements,
    LEARNED: tl.constexpr, T_STRIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, place = tile(elements, CHANNELS, BLOCK)
    mean, variance = halves(sample, place, elements, LEARNED, CHANNELS)
    _, row = row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE, STEP)
    p_x, p_o, bound = column(row, STEP_P_X), column(row, STEP_P_O), column(row, STEP_BOUND)
    k_x, k_0, k_o = column(row, STEP_K_X), column(row, STEP_K_0), column(row, STEP_K_O)
    x, out = read(x_ptr, place), read(out_ptr, mean)
    g = tl.zeros((BLOCK,), tl.float32)
    if grad_x_prev_ptr is not None:
        g = read(grad_x_prev_ptr, place)
    through = k_0 * g
    if grad_x_0_ptr is not None:
        through += read(grad_x_0_ptr, place)
    through = tl.where(tl.abs(tl.fma(p_o, out, p_x * x)) > bound, 0.0, through)
    grad_out, grad_x = tl.fma(p_o, through, k_o * g), tl.fma(p_x, through, k_x * g)
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


@served
def reverse_step(model_output, x_t, noise, index, rows, return_x_0) -> tuple[Tensor, Tensor]:
    learned = is_learned(model_output, x_t)
    tiles = tiles_of(x_t, noise, learned=learned, most=_PER_THREAD[learned])
    x_prev, x_0 = result(x_t, tiles.layout), result(x_t, tiles.layout) if return_x_0 else None
    tiles.launch(reverse_kernel, (x_prev, x_0), (model_output, x_t, noise), index, rows, LEARNED=learned)
    x_0 = x_t.new_empty(0) if x_0 is None else like(x_0, x_t, tiles.layout)
    return like(x_prev, x_t, tiles.layout), x_0


@served
def reverse_step_backward(grad_x_prev, grad_x_0, model_output, x_t, noise, index, rows) -> tuple[Tensor, Tensor]:
    learned = is_learned(model_output, x_t)
    noise = noise if learned else None
    tiles = tiles_of(x_t, noise, learned=learned, most=_PER_THREAD[learned])
    grads = result(model_output, tiles.layout), result(x_t, tiles.layout)
    data = (grad_x_prev, grad_x_0, model_output, x_t, noise)
    tiles.launch(reverse_backward_kernel, grads, data, index, rows, LEARNED=learned)
    return like(grads[0], model_output, tiles.layout), like(grads[1], x_t, tiles.layout)
