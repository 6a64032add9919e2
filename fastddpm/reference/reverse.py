"""One update of any sampler (twins: kernels/cpu/reverse.h, kernels/triton/reverse.py): the formula of `rows.StepRow`."""

import torch
from torch import Tensor

from ..rows import StepRow
from .operands import each_sample, fused, halves, like, noise_of, row_of


def _row(index, rows, guidance, bound, x_t) -> StepRow:
    """Each sample's row, with what the call gives in place of its columns: clamp(x, -b, b) / b = clamp(x / b, -1, 1)."""
    k = row_of(StepRow, rows, index, x_t, "i")
    if guidance is not None:
        k = k._replace(g=each_sample(guidance, x_t, rows.dtype))
    if bound is not None:
        inverse = 1 / each_sample(bound, x_t, rows.dtype)
        k = k._replace(p_x=k.p_x * inverse, p_o=k.p_o * inverse, bound=torch.ones_like(inverse))
    return k


def _masked(k: Tensor, x: Tensor) -> Tensor:
    """x, or 0 where its factor k is 0: x may hold anything there."""
    return torch.where(k != 0, x, 0)


def _sum(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """k x of each, the later fused to the earlier."""
    (k, x), *others = terms
    total = k * _masked(k, x)
    for k, x in others:
        total = fused(k, _masked(k, x), total)
    return total


def _guided(k: StepRow, model_output, uncond_output, x_t, dtype) -> tuple[Tensor, Tensor | None]:
    """out' and v."""
    out, v = halves(model_output, x_t, dtype)
    if uncond_output is None:
        return out, v
    u, _ = halves(uncond_output, x_t, dtype)
    return fused(k.g, _masked(k.g, out - u), u), v


def _deviation(k: StepRow, v: Tensor | None) -> Tensor:
    return k.sigma if v is None else k.sigma * (k.k_v * _masked(k.k_v, v)).exp()


def reverse_step(
    model_output, x_t, noise, index, rows, return_x_0,
    uncond_output=None, guidance=None, bound=None, history=None, return_kept=False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    k = _row(index, rows, guidance, bound, x_t)
    (out, v), x = _guided(k, model_output, uncond_output, x_t, rows.dtype), x_t.to(rows.dtype)
    x_0 = _sum((k.p_x, x), (k.p_o, out))
    x_0 = torch.where(x_0 < -k.bound, -k.bound, torch.where(x_0 > k.bound, k.bound, x_0))
    past = zip((k.k_h1, k.k_h2, k.k_h3), (h.to(rows.dtype) for h in history or ()), strict=False)
    x_prev = _sum((k.k_x, x), (k.k_0, x_0), (k.k_o, out), *past)
    if noise is not None:
        noisy = fused(_deviation(k, v), noise_of(noise, x_t, rows.dtype), x_prev)
        x_prev = torch.where(k.sigma != 0, noisy, x_prev)
    return (
        like(x_prev, x_t),
        like(x_0, x_t) if return_x_0 else x_t.new_empty(0),
        like(_sum((k.c_x, x), (k.c_0, x_0)), x_t) if return_kept else x_t.new_empty(0),
    )


def reverse_step_backward(
    grad_x_prev, grad_x_0, model_output, x_t, noise, index, rows,
    uncond_output=None, guidance=None, bound=None, grad_kept=None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    k = _row(index, rows, guidance, bound, x_t)
    (out, v), x = _guided(k, model_output, uncond_output, x_t, rows.dtype), x_t.to(rows.dtype)
    zero = torch.zeros(x_t.shape, dtype=rows.dtype, device=x_t.device)
    g = zero if grad_x_prev is None else grad_x_prev.to(rows.dtype)
    through = k.k_0 * g if grad_x_0 is None else k.k_0 * g + grad_x_0.to(rows.dtype)
    past = k.k_x * g
    if grad_kept is not None:
        m = grad_kept.to(rows.dtype)
        through, past = fused(k.c_0, m, through), fused(k.c_x, m, past)
    through = torch.where(_sum((k.p_x, x), (k.p_o, out)).abs() > k.bound, zero, through)
    grad_out, grad_uncond = fused(k.p_o, through, k.k_o * g), None
    if uncond_output is not None:
        grad_out, grad_uncond = k.g * grad_out, fused(-k.g, grad_out, grad_out)
    if v is not None:
        grad_v = zero
        if noise is not None:
            by_v = k.k_v * _deviation(k, v) * noise_of(noise, x_t, rows.dtype)
            grad_v = torch.where(k.sigma != 0, g * by_v, zero)
        grad_out = torch.cat((grad_out, grad_v), 1)
        grad_uncond = None if grad_uncond is None else torch.cat((grad_uncond, zero), 1)
    return (
        like(grad_out, model_output),
        like(fused(k.p_x, through, past), x_t),
        x_t.new_empty(0) if grad_uncond is None else like(grad_uncond, uncond_output),
    )
