"""loss_b = w mean (out - target)^2, target = p z + q x_0 + r x_t (twins: kernels/cpu/mse.h, kernels/triton/mse.py)."""

import torch
from torch import Tensor

from ..rows import MseRow
from .operands import count_of, each_sample, fused, like, mean_of, noise_of, reduced, row_of


def _difference(model_output, noise, x_0, x_t, t, rows) -> tuple[Tensor, Tensor]:
    """out - target, and w."""
    k = row_of(MseRow, rows, t, model_output)
    dtype = rows.dtype
    target = torch.zeros(model_output.shape, dtype=dtype, device=model_output.device)
    if noise is not None:
        target = k.p * noise_of(noise, model_output, dtype)
    if x_0 is not None:
        target = fused(k.q, x_0.to(dtype), target)
    if x_t is not None:
        target = fused(k.r, x_t.to(dtype), target)
    return model_output.to(dtype) - target, k.w


def mse_loss(model_output, noise, x_0, x_t, t, rows, reduction, with_grad) -> tuple[Tensor, Tensor]:
    """The loss, and where wanted its gradient for an upstream gradient of one."""
    inputs = (model_output, noise, x_0, x_t, t, rows)
    difference, w = _difference(*inputs)
    loss = reduced(w.reshape(-1) * mean_of(difference.square()), reduction)
    return loss, mse_loss_backward(*inputs, reduction, torch.ones_like(loss)) if with_grad else model_output.new_empty(0)


def mse_loss_backward(model_output, noise, x_0, x_t, t, rows, reduction, grad_loss) -> Tensor:
    """2 w g_b (out - target) / D, over B too for the mean."""
    difference, w = _difference(model_output, noise, x_0, x_t, t, rows)
    upstream = each_sample(grad_loss, model_output, rows.dtype)
    return like(2 * w / count_of(model_output, reduction) * difference * upstream, model_output)


def scale_grad_(grad: Tensor, grad_loss: Tensor) -> None:
    grad.mul_(each_sample(grad_loss, grad, grad_loss.dtype))
