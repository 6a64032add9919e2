"""Gradients of the ops, as autograd.Functions round them (a quarter of `register_autograd`'s host cost)."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ops


class Noising(torch.autograd.Function):
    """out = a x + s z, so grad_x = a grad_out: the same op without its noise."""

    @staticmethod
    def forward(ctx, x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(t, rows)
        ctx.dtype = x.dtype
        return ops.noising(x, noise, t, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        t, rows = ctx.saved_tensors
        return ops.noising(grad, None, t, rows), None, None, None


class MseLoss(torch.autograd.Function):
    """Saves only its inputs; the backward makes the noise again."""

    @staticmethod
    def forward(ctx, model_output, noise, x_0, x_t, t, rows, reduction):
        ctx.save_for_backward(model_output, noise, x_0, x_t, t, rows)
        ctx.reduction = reduction
        return ops.mse_loss(model_output, noise, x_0, x_t, t, rows, reduction)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        grad = ops.mse_loss_backward(grad_loss, *ctx.saved_tensors, ctx.reduction)
        return grad, None, None, None, None, None, None


class MseLossWithGrad(torch.autograd.Function):
    """Makes the gradient in the forward and scales it, in place, in the backward.

    On a CPU the arithmetic of the noise outweighs a read, so making it once for both is faster. A second backward through
    the same graph (retain_graph) finds the gradient handed out and makes it again, to the same bits.
    """

    @staticmethod
    def forward(ctx, model_output, noise, x_0, x_t, t, rows, reduction):
        ctx.save_for_backward(model_output, noise, x_0, x_t, t, rows)
        ctx.reduction = reduction
        loss, ctx.grad = ops.mse_loss_with_grad(model_output, noise, x_0, x_t, t, rows, reduction)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        inputs = ctx.saved_tensors  # read first: it raises where an input was changed in place
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            grad = ops.mse_loss_backward(grad_loss, *inputs, ctx.reduction)
        else:
            ops.scale_grad_(grad, grad_loss)
        return grad, None, None, None, None, None, None


class ReverseStep(torch.autograd.Function):
    """Saves only its inputs; the backward finds again where the clamp let x_0_hat through."""

    @staticmethod
    def forward(ctx, model_output, x_t, noise, index, rows, return_x_0):
        ctx.save_for_backward(model_output, x_t, index, rows)
        ctx.set_materialize_grads(False)
        x_prev, x_0 = ops.reverse_step(model_output, x_t, noise, index, rows, return_x_0)
        if not return_x_0:
            ctx.mark_non_differentiable(x_0)
        return x_prev, x_0

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_x_prev: Tensor | None, grad_x_0: Tensor | None):
        grads = ops.reverse_step_backward(grad_x_prev, grad_x_0, *ctx.saved_tensors)
        return *grads, None, None, None, None


def wants_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def mse_function(model_output: Tensor) -> type[torch.autograd.Function]:
    """Which of the two: a stored float16 gradient would underflow before a loss scale reaches it, a compiler wants no
    mutation, and a GPU makes noise faster than it reads it."""
    eager_cpu = model_output.device.type == "cpu" and not torch.compiler.is_compiling()
    return MseLossWithGrad if eager_cpu and model_output.dtype in (torch.float32, torch.float64) else MseLoss
