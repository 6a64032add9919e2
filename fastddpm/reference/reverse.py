"""One update of any sampler (twins: kernels/cpu/reverse.h, kernels/triton/reverse.py).

x_0_hat = clamp(p_x x + p_o out, bound);  x_prev = k_x x + k_0 x_0_hat + k_o out + sigma exp(k_v v) z
"""

import torch
from torch import Tensor

from ..rows import StepRow
from .operands import fused, halves, like, noise_of, row_of


def _deviation(k: StepRow, v: Tensor | None) -> Tensor:
    return k.sigma if v is None else k.sigma * (k.k_v * v).exp()


def reverse_step(model_output, x_t, noise, index, rows, return_x_0) -> tuple[Tensor, Tensor]:
    k = row_of(StepRow, rows, index, x_t, "i")
    (out, v), x = halves(model_output, x_t, rows.dtype), x_t.to(rows.dtype)
    x_0 = fused(k.p_o, out, k.p_x * x)
    x_0 = torch.where(x_0 < -k.bound, -k.bound, torch.where(x_0 > k.bound, k.bound, x_0))
    x_prev = fused(k.k_o, out, fused(k.k_0, x_0, k.k_x * x))
    if noise is not None:
        noisy = fused(_deviation(k, v), noise_of(noise, x_t, rows.dtype), x_prev)
        x_prev = torch.where(k.sigma != 0, noisy, x_prev)
    return like(x_prev, x_t), like(x_0, x_t) if return_x_0 else x_t.new_empty(0)


def reverse_step_backward(grad_x_prev, grad_x_0, model_output, x_t, noise, index, rows) -> tuple[Tensor, Tensor]:
    k = row_of(StepRow, rows, index, x_t, "i")
    (out, v), x = halves(model_output, x_t, rows.dtype), x_t.to(rows.dtype)
    zero = torch.zeros(x_t.shape, dtype=rows.dtype, device=x_t.device)
    g = zero if grad_x_prev is None else grad_x_prev.to(rows.dtype)
    through = k.k_0 * g if grad_x_0 is None else k.k_0 * g + grad_x_0.to(rows.dtype)
    through = torch.where(fused(k.p_o, out, k.p_x * x).abs() > k.bound, zero, through)
    grad_output = fused(k.p_o, through, k.k_o * g)
    if v is not None:
        grad_v = zero
        if noise is not None:
            by_v = k.k_v * _deviation(k, v) * noise_of(noise, x_t, rows.dtype)
            grad_v = torch.where(k.sigma != 0, g * by_v, zero)
        grad_output = torch.cat((grad_output, grad_v), 1)
    return like(grad_output, model_output), like(fused(k.p_x, through, k.k_x * g), x_t)
