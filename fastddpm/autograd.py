"""Gradients of the ops, as autograd.Functions round them (a quarter of `register_autograd`'s host cost)."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ops, reference


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
        # a compiled step may advance its key before the backward runs; eager autograd would see that and raise
        is_key = noise is not None and noise.dtype is torch.int64
        kept = ops.copy_key(noise) if is_key and torch.compiler.is_compiling() else noise
        ctx.save_for_backward(model_output, kept, x_0, x_t, t, rows)
        ctx.reduction = reduction
        return ops.mse_loss(model_output, noise, x_0, x_t, t, rows, reduction)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        grad = ops.mse_loss_backward(grad_loss, *ctx.saved_tensors, ctx.reduction)
        return grad, None, None, None, None, None, None


class MseLossWithGrad(torch.autograd.Function):
    """Makes the gradient in the forward and scales it, in place, in the backward: for eager code on a CPU.

    There the arithmetic of the noise outweighs a read, so making it once for both is faster. A second backward through the
    same graph (retain_graph) finds the gradient handed out and makes it again, to the same bits. All but model_output comes
    as one tuple: each argument that autograd looks at costs host time.
    """

    @staticmethod
    def forward(ctx, model_output, others):
        ctx.save_for_backward(model_output, *others[:-2])
        ctx.constants = others[-2:]  # rows are the schedule's, or made for this call: nobody changes them
        loss, ctx.grad = ops.mse_loss_with_grad(model_output, *others)
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad, ctx.grad = ctx.grad, None
        again = torch.is_grad_enabled()  # create_graph: the gradient itself is wanted differentiable, so in plain torch
        if grad is not None and not again:
            ops.scale_grad_(grad, grad_loss)
            return grad, None
        make = reference.mse_loss_backward if again else ops.mse_loss_backward
        inputs = [*ctx.saved_tensors, *ctx.constants]
        return make(grad_loss, *inputs), None


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


def mse_loss(model_output: Tensor, noise, x_0, x_t, t, rows, reduction) -> Tensor:
    """The loss by the cheapest way to what is wanted of it.

    The gradient is made in the forward on a CPU only, where a GPU makes noise faster than it reads; not under a compiler,
    which wants no mutation; and not in half precision, where it would be rounded, or underflow, before a loss scale reaches it.
    """
    others = (noise, x_0, x_t, t, rows, reduction)
    if not (model_output.requires_grad and torch.is_grad_enabled()):
        return ops.mse_loss(model_output, *others)
    if model_output.dtype is rows.dtype and model_output.is_cpu and not torch.compiler.is_compiling():
        return MseLossWithGrad.apply(model_output, others)
    return MseLoss.apply(model_output, *others)


def noising(x: Tensor, noise: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    wanted = torch.is_grad_enabled() and x.requires_grad
    return Noising.apply(x, noise, t, rows) if wanted else ops.noising(x, noise, t, rows)


def reverse_step(model_output: Tensor, x_t: Tensor, *others) -> tuple[Tensor, Tensor]:
    wanted = torch.is_grad_enabled() and (model_output.requires_grad or x_t.requires_grad)
    return ReverseStep.apply(model_output, x_t, *others) if wanted else ops.reverse_step(model_output, x_t, *others)
