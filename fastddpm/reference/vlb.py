"""The variational bound's ops: one of its terms for each sample (twins: kernels/cpu/vlb.h, kernels/triton/vlb.py).

The densities are gaussian.py's, the formulas those of `rows.VlbRow`. All is differentiable in the model's output, twice.
"""

import math

import torch
from torch import Tensor

from ..rows import MseRow, NoisingRow, VlbRow
from . import gaussian
from .mse import mse_loss, mse_loss_backward
from .noising import noising
from .operands import count_of, each_sample, halves, like, mean_of, reduced, row_of

_NOISING, _MSE = len(NoisingRow._fields), len(VlbRow._fields) - len(MseRow._fields)


def _x_t(x_0: Tensor, x_t: Tensor | None, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    """x_t as given, or as q_sample makes it: rounded to x_0's dtype."""
    return noising(x_0, noise, t, rows[:, :_NOISING]) if x_t is None else x_t


def _bound(model_output, x_0, x_t, t, rows, tanh_cdf) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """In nats, of each element: the term, its derivative by the output's mean channel and by its variance channel; and
    x_0 - x_0_hat."""
    k = row_of(VlbRow, rows, t, x_0)
    (out, v), data, x = halves(model_output, x_0, rows.dtype), x_0.to(rows.dtype), x_t.to(rows.dtype)
    free = k.p_x * x + k.p_o * out
    clamped = free.abs() > k.bound
    missed = torch.where(clamped, data - k.bound.copysign(free), _sum(data, (-k.p_x, x), (-k.p_o, out)))
    difference = _sum(k.c * missed, (k.e_0, data), (k.e_x, x), (k.e_o, out))
    delta = (k.v_0 if v is None else k.v_0 + k.v_1 * v).expand_as(difference)
    first = (t == 0).reshape(-1, *[1] * (x_0.dim() - 1))
    nll = gaussian.nll(difference, delta, k.precision, data, tanh_cdf)
    kl = gaussian.kl(difference, delta, k.precision)
    value, by_difference, by_delta = (torch.where(first, *terms) for terms in zip(nll, kl, strict=True))
    by_out = by_difference * (k.e_o - torch.where(clamped, 0.0, k.c * k.p_o))
    return value, by_out, None if v is None else k.v_1 * by_delta, missed


def _mean_detached(model_output: Tensor, x_0: Tensor) -> Tensor:
    """The hybrid's output for the bound, from which its mean does not learn."""
    if model_output.shape == x_0.shape:
        return model_output.detach()
    return torch.cat((model_output[:, : x_0.shape[1]].detach(), model_output[:, x_0.shape[1] :]), 1)


def _sum(start: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """start + a b + .., close numbers among them: float32's in float64, rounded once (the kernels chain fmas in this order)."""
    wide = torch.float32 if start.device.type == "mps" else torch.float64
    total = start.to(wide)
    for a, b in products:
        total = total + a.to(wide) * b.to(wide)
    return total.to(start.dtype)


def _bits(value: Tensor) -> Tensor:
    """`[B]`: bits a dimension."""
    return mean_of(value) / math.log(2)


def _scale(grad_loss: Tensor, x: Tensor, dtype: torch.dtype, reduction: int) -> Tensor:
    """The gradient that each element's nats get."""
    return each_sample(grad_loss, x, dtype) / count_of(x, reduction) / math.log(2)


def vlb_loss(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction, with_grad) -> tuple[Tensor, Tensor]:
    """The loss, and where wanted its gradient for an upstream gradient of one."""
    value, *_ = _bound(model_output, x_0, _x_t(x_0, x_t, noise, t, rows), t, rows, tanh_cdf)
    loss = reduced(_bits(value), reduction)
    if not with_grad:
        return loss, model_output.new_empty(0)
    return loss, vlb_loss_backward(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction, torch.ones_like(loss))


def vlb_loss_backward(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction, grad_loss) -> Tensor:
    _, by_out, by_v, _ = _bound(model_output, x_0, _x_t(x_0, x_t, noise, t, rows), t, rows, tanh_cdf)
    scale = _scale(grad_loss, x_0, rows.dtype, reduction)
    return like(scale * (by_out if by_v is None else torch.cat((by_out, by_v), 1)), model_output)


def hybrid_loss(
    model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction, with_grad
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss = mse + vlb_weight vlb, and where wanted the gradient of loss. The mean channels get the gradient of the mse alone,
    the variance channels the vlb's."""
    x = _x_t(x_0, x_t, noise, t, rows)
    out, _ = halves(model_output, x_0, rows.dtype)
    value, *_ = _bound(_mean_detached(model_output, x_0), x_0, x, t, rows, tanh_cdf)
    mse, _ = mse_loss(out, noise, x_0, x, t, rows[:, _MSE:], reduction, False)
    vlb = reduced(_bits(value), reduction)
    loss, grad = mse + vlb_weight * vlb, model_output.new_empty(0)
    if with_grad:
        inputs = (model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction)
        grad = hybrid_loss_backward(*inputs, torch.ones_like(loss), None, None)
    return loss, mse, vlb, grad


def hybrid_loss_backward(
    model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction, grad_loss, grad_mse, grad_vlb
) -> Tensor:
    x = _x_t(x_0, x_t, noise, t, rows)
    zero = torch.zeros((), dtype=rows.dtype, device=x_0.device)
    both = zero if grad_loss is None else grad_loss
    to_mse = both if grad_mse is None else both + grad_mse
    to_vlb = vlb_weight * both if grad_vlb is None else vlb_weight * both + grad_vlb
    out, _ = halves(model_output, x_0, rows.dtype)
    grad = mse_loss_backward(out, noise, x_0, x, t, rows[:, _MSE:], reduction, to_mse)
    _, _, by_v, _ = _bound(_mean_detached(model_output, x_0), x_0, x, t, rows, tanh_cdf)
    if by_v is not None:
        grad = torch.cat((grad, _scale(to_vlb, x_0, rows.dtype, reduction) * by_v), 1)
    return like(grad, model_output)


def vlb_terms(model_output, x_0, x_t, noise, t, rows, tanh_cdf, next_noise, next_t) -> tuple[Tensor, Tensor]:
    """One step of bits/dim: `[2, B]` of the term and of mean (x_0 - x_0_hat)^2, and where asked for the next step's x_t."""
    value, _, _, missed = _bound(model_output, x_0, _x_t(x_0, x_t, noise, t, rows), t, rows, tanh_cdf)
    next_x_t = x_0.new_empty(0) if next_noise is None else noising(x_0, next_noise, next_t, rows[:, :_NOISING])
    return torch.stack((_bits(value), mean_of(missed.square()))), next_x_t
