"""The variational bound's ops in plain eager PyTorch, the second half of `reference`: one of the bound's terms for each sample.

The densities are gaussian.py's, the columns of `rows` those of rows.py. All is differentiable in the model's output, twice.
"""

import math

import torch
from torch import Tensor

from . import gaussian
from .reference import _channels, _elements, _like, _reduce, _row, mse_loss, mse_loss_backward, noising


def _x_t(x_0: Tensor, x_t: Tensor | None, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    """x_t as given, or as q_sample makes it: rounded to x_0's dtype."""
    return noising(x_0, noise, t, rows[:, :2]) if x_t is None else x_t


def _bound(model_output, x_0, x_t, t, rows, tanh_cdf) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """In nats, of each element: the term, its derivative by the output's mean channel and by its variance channel; and
    x_0 - x_0_hat."""
    _, _, p_x, p_o, bound, c, e_0, e_x, e_o, v_0, v_1, precision, *_ = _row(rows, t, x_0)
    (out, v), data, x = _channels(model_output, x_0, rows.dtype), x_0.to(rows.dtype), x_t.to(rows.dtype)
    free = p_x * x + p_o * out
    clamped = free.abs() > bound
    missed = torch.where(clamped, data - bound.copysign(free), _sum(data, (-p_x, x), (-p_o, out)))
    difference = _sum(c * missed, (e_0, data), (e_x, x), (e_o, out))
    delta = (v_0 if v is None else v_0 + v_1 * v).expand_as(difference)
    first = (t == 0).reshape(-1, *[1] * (x_0.dim() - 1))
    terms = zip(
        gaussian.nll(difference, delta, precision, data, tanh_cdf), gaussian.kl(difference, delta, precision), strict=True
    )
    value, by_difference, by_delta = (torch.where(first, nll, kl) for nll, kl in terms)
    by_out = by_difference * (e_o - torch.where(clamped, 0.0, c * p_o))
    return value, by_out, None if v is None else v_1 * by_delta, missed


def _sum(start: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """start + a b + .., close numbers among them: float32's in float64, rounded once (the kernels chain fmas in this order)."""
    wide = torch.float32 if start.device.type == "mps" else torch.float64
    total = start.to(wide)
    for a, b in products:
        total = total + a.to(wide) * b.to(wide)
    return total.to(start.dtype)


def _bits(value: Tensor) -> Tensor:
    """`[B]`: bits a dimension."""
    return value.reshape(value.shape[0], _elements(value)).mean(1) / math.log(2)


def _upstream(grad_loss: Tensor, x: Tensor, dtype: torch.dtype, reduction: int) -> Tensor:
    """The gradient that each element of x gets of its sample's mean over D."""
    count = _elements(x) * (x.shape[0] if reduction == 1 else 1)
    return grad_loss.reshape(-1, *[1] * (x.dim() - 1)).to(dtype) / max(count, 1)


def vlb_loss(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction) -> Tensor:
    value, *_ = _bound(model_output, x_0, _x_t(x_0, x_t, noise, t, rows), t, rows, tanh_cdf)
    return _reduce(_bits(value), reduction)


def vlb_loss_with_grad(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient for an upstream gradient of one."""
    inputs = (model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction)
    loss = vlb_loss(*inputs)
    return loss, vlb_loss_backward(torch.ones_like(loss), *inputs)


def vlb_loss_backward(grad_loss, model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction) -> Tensor:
    _, by_out, by_v, _ = _bound(model_output, x_0, _x_t(x_0, x_t, noise, t, rows), t, rows, tanh_cdf)
    upstream = _upstream(grad_loss, x_0, rows.dtype, reduction) / math.log(2)
    return _like(upstream * (by_out if by_v is None else torch.cat((by_out, by_v), 1)), model_output)


def hybrid_loss(model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction) -> tuple[Tensor, Tensor, Tensor]:
    """loss = mse + vlb_weight vlb. The mean channels get the gradient of the mse alone, the variance channels the vlb's."""
    x = _x_t(x_0, x_t, noise, t, rows)
    value, *_ = _bound(model_output, x_0, x, t, rows, tanh_cdf)
    out, _ = _channels(model_output, x_0, rows.dtype)
    mse, vlb = mse_loss(out, noise, x_0, x, t, rows[:, 12:], reduction), _reduce(_bits(value), reduction)
    return mse + vlb_weight * vlb, mse, vlb


def hybrid_loss_with_grad(
    model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The three losses, and the gradient of the first for an upstream gradient of one."""
    inputs = (model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction)
    losses = hybrid_loss(*inputs)
    return *losses, hybrid_loss_backward(torch.ones_like(losses[0]), None, None, *inputs)


def hybrid_loss_backward(
    grad_loss, grad_mse, grad_vlb, model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction
) -> Tensor:
    x = _x_t(x_0, x_t, noise, t, rows)
    zero = torch.zeros((), dtype=rows.dtype, device=x_0.device)
    both = zero if grad_loss is None else grad_loss
    to_mse = both if grad_mse is None else both + grad_mse
    to_vlb = vlb_weight * both if grad_vlb is None else vlb_weight * both + grad_vlb
    out, _ = _channels(model_output, x_0, rows.dtype)
    grad = mse_loss_backward(to_mse, out, noise, x_0, x, t, rows[:, 12:], reduction)
    _, _, by_v, _ = _bound(model_output, x_0, x, t, rows, tanh_cdf)
    if by_v is not None:
        grad = torch.cat((grad, _upstream(to_vlb, x_0, rows.dtype, reduction) / math.log(2) * by_v), 1)
    return _like(grad, model_output)


def vlb_terms(model_output, x_0, x_t, noise, t, rows, tanh_cdf, next_noise, next_t) -> tuple[Tensor, Tensor]:
    """One step of bits/dim: `[2, B]` of the term and of mean (x_0 - x_0_hat)^2, and where asked for the next step's x_t."""
    value, _, _, missed = _bound(model_output, x_0, _x_t(x_0, x_t, noise, t, rows), t, rows, tanh_cdf)
    squares = missed.square().reshape(x_0.shape[0], _elements(x_0)).mean(1)
    next_x_t = x_0.new_empty(0) if next_noise is None else noising(x_0, next_noise, next_t, rows[:, :2])
    return torch.stack((_bits(value), squares)), next_x_t
