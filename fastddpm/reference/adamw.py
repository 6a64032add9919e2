"""The norm of all gradients, then clipping, AdamW (Loshchilov & Hutter 2019) and the moving average (twins:
kernels/cpu/adamw.h, kernels/triton/adamw.py), by torch's foreach calls.

p = (1 - lr weight_decay) p - step m / (root sqrt(v) + eps), step = lr / (1 - beta_1^n), root = 1 / sqrt(1 - beta_2^n)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rows import AdamWRow, unpack


def adamw_(
    params, grads, exp_avgs, exp_avg_sqs, averages, counts, rows, steps, grad_scale, found_inf, max_grad_norm, decay,
    update_after, warmup, zero_grads,
) -> Tensor:  # fmt: skip
    """One step in place, but where found_inf is not 0. Returns the gradients' norm before clipping, `[0]` where not wanted."""
    factor = torch.ones((), dtype=torch.float64, device=steps.device)
    factor = factor if grad_scale is None else factor / grad_scale.double().reshape(())
    norm = steps.new_empty(0)
    if max_grad_norm is not None:
        length = total_norm(grads) * factor
        factor, norm = factor * (max_grad_norm / (length + 1e-6)).clamp(max=1), length.to(steps.dtype)
    taken = None if found_inf is None else found_inf.reshape(()) == 0
    _commit([steps], [steps + 1], taken)
    first = 0
    for part, count in enumerate(counts):
        these = [i for i in range(first, first + count) if grads[i].numel()]
        p, g, m, v = ([x[i] for i in these] for x in (params, grads, exp_avgs, exp_avg_sqs))
        _update(p, g, m, v, unpack(AdamWRow, rows[part]), steps[1 + part].double(), factor, taken)
        first += count
    if averages:
        _average(averages, params, _decay(decay, steps[0], update_after, warmup), taken)
    if zero_grads:
        torch._foreach_zero_(list(grads))
    return norm


def total_norm(tensors) -> Tensor:
    """Of all tensors together, in float64."""
    some = [x for x in tensors if x.numel()]
    if not some:
        return torch.zeros((), dtype=torch.float64, device=tensors[0].device if tensors else "cpu")
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(some, 2, dtype=torch.float64)))


def _update(params, grads, exp_avgs, exp_avg_sqs, k: AdamWRow, n: Tensor, factor: Tensor, taken: Tensor | None) -> None:
    if not params:
        return
    g = torch._foreach_mul(_like(grads, exp_avgs), k.sign * factor)
    m = torch._foreach_add(exp_avgs, torch._foreach_mul(torch._foreach_sub(g, exp_avgs), 1 - k.beta_1))
    squares = torch._foreach_mul(torch._foreach_mul(g, g), 1 - k.beta_2)
    v = torch._foreach_add(torch._foreach_mul(exp_avg_sqs, k.beta_2), squares)
    below = torch._foreach_add(torch._foreach_mul(torch._foreach_sqrt(v), (1 - k.beta_2**n).rsqrt()), k.eps)
    moved = torch._foreach_mul(torch._foreach_div(m, below), k.lr / (1 - k.beta_1**n))
    p = torch._foreach_sub(torch._foreach_mul(_like(params, exp_avgs), 1 - k.lr * k.weight_decay), moved)
    for old, new in ((params, p), (exp_avgs, m), (exp_avg_sqs, v)):
        _commit(old, new, taken)


def _decay(decay: float, n: Tensor, update_after: int, warmup: bool) -> Tensor:
    """The average's at its n-th update, n from 1: with warm-up diffusers' EMAModel's, whose first update is a copy too."""
    since = n.double() - 1 - update_after
    now = ((1 + since) / (10 + since)).clamp(max=decay) if warmup else torch.full_like(since, decay)
    return torch.where(since < (1 if warmup else 0), 0.0, now)


def _average(averages: list[Tensor], params: list[Tensor], decay: Tensor, taken: Tensor | None) -> None:
    away = torch._foreach_sub(_like(params, averages), averages)
    _commit(averages, torch._foreach_add(averages, torch._foreach_mul(away, 1 - decay)), taken)


def _like(tensors: list[Tensor], wide: list[Tensor]) -> list[Tensor]:
    return [x.to(w.dtype) for x, w in zip(tensors, wide, strict=True)]


def _commit(old: Sequence[Tensor], new: Sequence[Tensor], taken: Tensor | None) -> None:
    for mine, now in zip(old, new, strict=True):
        mine.copy_(now if taken is None else torch.where(taken, now, mine))
