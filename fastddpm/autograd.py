"""Gradients of the ops, as autograd.Functions round them (a quarter of `register_autograd`'s host cost)."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
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


def _kept(noise: Tensor | None) -> Tensor | None:
    """What a backward may read: a compiled step may advance its key before; eager autograd would see that and raise."""
    is_key = noise is not None and noise.dtype is torch.int64
    return ops.copy_key(noise) if is_key and torch.compiler.is_compiling() else noise


class MseLoss(torch.autograd.Function):
    """Saves only its inputs; the backward makes the noise again."""

    @staticmethod
    def forward(ctx, model_output, noise, x_0, x_t, t, rows, reduction):
        ctx.save_for_backward(model_output, _kept(noise), x_0, x_t, t, rows)
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


class VlbLoss(torch.autograd.Function):
    """Saves only its inputs; the backward makes x_t again where it came as a key."""

    @staticmethod
    def forward(ctx, model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction):
        ctx.save_for_backward(model_output, x_0, x_t, _kept(noise), t, rows)
        ctx.constants = tanh_cdf, reduction
        return ops.vlb_loss(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        grad = ops.vlb_loss_backward(grad_loss, *ctx.saved_tensors, *ctx.constants)
        return grad, *[None] * 7


class VlbLossWithGrad(torch.autograd.Function):
    """As `MseLossWithGrad`; a second backward is the same to rounding."""

    @staticmethod
    def forward(ctx, model_output, others):
        ctx.save_for_backward(model_output, *others[:-3])
        ctx.constants = others[-3:]
        loss, ctx.grad = ops.vlb_loss_with_grad(model_output, *others)
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad, ctx.grad = ctx.grad, None
        again = torch.is_grad_enabled()
        if grad is not None and not again:
            ops.scale_grad_(grad, grad_loss)
            return grad, None
        make = reference.vlb_loss_backward if again else ops.vlb_loss_backward
        return make(grad_loss, *ctx.saved_tensors, *ctx.constants), None


class HybridLoss(torch.autograd.Function):
    """As `VlbLoss`; each of loss, mse and vlb has a gradient."""

    @staticmethod
    def forward(ctx, model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction):
        ctx.save_for_backward(model_output, x_0, x_t, _kept(noise), t, rows)
        ctx.constants = tanh_cdf, vlb_weight, reduction
        ctx.set_materialize_grads(False)
        return ops.hybrid_loss(model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor | None, grad_mse: Tensor | None, grad_vlb: Tensor | None):
        grad = None
        if grad_loss is not None or grad_mse is not None or grad_vlb is not None:
            grad = ops.hybrid_loss_backward(grad_loss, grad_mse, grad_vlb, *ctx.saved_tensors, *ctx.constants)
        return grad, *[None] * 8


class HybridLossWithGrad(torch.autograd.Function):
    """As `VlbLossWithGrad`: the gradient made in the forward is that of `loss`, which is what training asks for."""

    @staticmethod
    def forward(ctx, model_output, others):
        ctx.save_for_backward(model_output, *others[:-4])
        ctx.constants = others[-4:]
        ctx.set_materialize_grads(False)
        *losses, ctx.grad = ops.hybrid_loss_with_grad(model_output, *others)
        return tuple(losses)

    @staticmethod
    def backward(ctx, grad_loss: Tensor | None, grad_mse: Tensor | None, grad_vlb: Tensor | None):
        grad, ctx.grad = ctx.grad, None
        again = torch.is_grad_enabled()
        if grad_mse is None and grad_vlb is None:
            if grad_loss is None:
                return None, None
            if grad is not None and not again:
                ops.scale_grad_(grad, grad_loss)
                return grad, None
        make = reference.hybrid_loss_backward if again else ops.hybrid_loss_backward
        return make(grad_loss, grad_mse, grad_vlb, *ctx.saved_tensors, *ctx.constants), None


class ReverseStep(torch.autograd.Function):
    """Saves only its inputs; the backward finds again where the clamp let x_0_hat through."""

    @staticmethod
    def forward(ctx, model_output, x_t, noise, index, rows, return_x_0):
        learned = model_output.shape != x_t.shape  # only the variance's gradient holds the noise
        ctx.save_for_backward(model_output, x_t, _kept(noise) if learned else None, index, rows)
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
    return _loss(ops.mse_loss, MseLossWithGrad, MseLoss, model_output, (noise, x_0, x_t, t, rows, reduction), rows)


def vlb_loss(model_output: Tensor, x_0, x_t, noise, t, rows, tanh_cdf, reduction) -> Tensor:
    """As `mse_loss`."""
    others = (x_0, x_t, noise, t, rows, tanh_cdf, reduction)
    return _loss(ops.vlb_loss, VlbLossWithGrad, VlbLoss, model_output, others, rows)


def hybrid_loss(model_output: Tensor, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction):
    """As `mse_loss`: (loss, mse, vlb)."""
    others = (x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction)
    return _loss(ops.hybrid_loss, HybridLossWithGrad, HybridLoss, model_output, others, rows)


def _loss(without_grad, in_forward, in_backward, model_output: Tensor, others: tuple, rows: Tensor):
    if not _wanted(model_output):
        return without_grad(model_output, *others)
    if model_output.dtype is rows.dtype and model_output.is_cpu and not torch.compiler.is_compiling():
        return in_forward.apply(model_output, others)
    return in_backward.apply(model_output, *others)


def noising(x: Tensor, noise: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    return Noising.apply(x, noise, t, rows) if _wanted(x) else ops.noising(x, noise, t, rows)


def reverse_step(model_output: Tensor, x_t: Tensor, *others) -> tuple[Tensor, Tensor]:
    wanted = _wanted(model_output) or _wanted(x_t)
    return ReverseStep.apply(model_output, x_t, *others) if wanted else ops.reverse_step(model_output, x_t, *others)


def _wanted(x: Tensor) -> bool:
    """Whether a derivative by x is. In forward mode too: the Functions then say that they have none, where the bare op's result
    would pass for a constant."""
    return (x.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0
