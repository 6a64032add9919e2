"""Gradients of the ops, as autograd.Functions round them (a quarter of `register_autograd`'s host cost).

What the kernels do not do goes to the reference, which is plain torch: a gradient that shall be differentiated again,
torch.func's transforms (grad, vmap, jvp, ..) and batched gradients, and forward mode.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import ops, reference
from .reference.operands import transformed
from .rows import StepRow

TENSORS = 5
"""After the model's output a loss is given so many tensors, the rows last, and then constants."""
NOISE = {"mse_loss": 0, "vlb_loss": 2, "hybrid_loss": 2}
"""Which of them is the noise."""
NO_OPTIONS = (None, None, None, (), False)
"""A reverse step's u, guidance, bound, history and return_kept."""
NEVER = (0, 0)
"""How often, and by how many steps in all, `advance` has moved a key that it has not."""

_transforming = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_unwrap = torch._C._functorch.unwrap_if_dead


class Loss(torch.autograd.Function):
    """Of one of the three families of ops NAME, NAME_backward. Saves its inputs; a backward makes the noise again.

    `with_grad`: the gradient of the (first) loss is made in the forward, and scaled in place in the backward. A second backward
    through the same graph (retain_graph) finds it handed out and makes it again, mse's to the same bits (bfloat16's but
    for a rounding).
    """

    @staticmethod
    def forward(ctx, model_output: Tensor, name: str, with_grad: bool, others: tuple):
        *losses, grad = getattr(ops, name)(model_output, *others, with_grad)
        at = NOISE[name]
        noise, kept, ctx.key = others[at], None, None
        # most keys are never read again, and a copy costs much (no compiler, which knows no is_inference, comes `with_grad`)
        if with_grad and noise is not None and noise.dtype is torch.int64 and not noise.is_inference():
            ctx.key = noise, noise._version, noise.__dict__.get("_advanced", NEVER)
        else:
            kept = _kept(noise)
        ctx.save_for_backward(model_output, *others[:at], kept, *others[at + 1 : TENSORS])
        ctx.name, ctx.constants, ctx.grad = name, others[TENSORS:], grad if with_grad else None
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    def backward(ctx, first: Tensor | None, *rest: Tensor | None):
        made, ctx.grad = ctx.grad, None
        alone = rest == () or (rest[0] is None and rest[1] is None)
        if first is None and alone:
            return None, None, None, None
        # `again` of the common case, which is all of a small call's time
        plain = not (torch.is_grad_enabled() or _transforming())
        if made is not None and first is not None and alone and plain and not _is_batched(first):
            ops.scale_grad_(made, first)
            return made, None, None, None
        again = _differentiated_again(first, *rest)
        inputs = list(ctx.saved_tensors)
        if ctx.key is not None:
            inputs[1 + NOISE[ctx.name]] = _as_it_was(*ctx.key)
        make = getattr(reference if again else ops, f"{ctx.name}_backward")
        return make(*inputs, *ctx.constants, first, *rest), None, None, None


_apply = super(torch.autograd.Function, Loss).apply
"""`Loss.apply` without what it does for torch.func: no transform is active where it is called, and what a finished one has left
is unwrapped before."""


class Noising(torch.autograd.Function):
    """out = a x + s z, so grad_x = a grad_out: the same op without its noise."""

    @staticmethod
    def forward(ctx, x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(t, rows)
        return ops.noising(x, noise, t, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        make = reference if _differentiated_again(grad) else ops
        return make.noising(grad, None, *ctx.saved_tensors), None, None, None


class ReverseStep(torch.autograd.Function):
    """Saves only its inputs; the backward finds again where the clamp let x_0_hat through."""

    @staticmethod
    def forward(ctx, model_output, x_t, noise, index, rows, return_x_0, uncond_output, guidance, bound, return_kept, *history):
        learned = model_output.shape != x_t.shape  # only the variance's gradient holds the noise
        kept_noise = _kept(noise) if learned else None
        ctx.save_for_backward(model_output, x_t, kept_noise, index, rows, uncond_output, guidance, bound)
        ctx.set_materialize_grads(False)
        ctx.returned = return_x_0, return_kept
        options = (uncond_output, guidance, bound, history, return_kept)
        x_prev, *others = ops.reverse_step(model_output, x_t, noise, index, rows, return_x_0, *options)
        of_this_step = any(ctx.needs_input_grad[i] for i in (0, 1, 6))  # x_0_hat is of no earlier step
        wanted = (returned and of_this_step for returned in ctx.returned)
        ctx.mark_non_differentiable(*(x for x, differentiable in zip(others, wanted, strict=True) if not differentiable))
        return x_prev, *others

    @staticmethod
    def backward(ctx, grad_x_prev: Tensor | None, *others: Tensor | None):
        # under a compiler the gradient of what was not returned is there all the same, and empty
        grad_x_0, grad_kept = (grad if wanted else None for grad, wanted in zip(others, ctx.returned, strict=True))
        make = reference if _differentiated_again(grad_x_prev, grad_x_0, grad_kept) else ops
        saved = ctx.saved_tensors
        by_output, by_x_t, by_uncond = make.reverse_step_backward(grad_x_prev, grad_x_0, *saved, grad_kept)
        by_history = _by_history(make, grad_x_prev, saved[3], saved[4], ctx.needs_input_grad[10:])
        by_uncond = None if saved[5] is None else by_uncond
        return by_output, by_x_t, None, None, None, None, by_uncond, None, None, None, *by_history


def _by_history(
    make, grad_x_prev: Tensor | None, index: Tensor, rows: Tensor, wanted: Iterable[bool]
) -> Iterator[Tensor | None]:
    """k_hj times x_prev's gradient: a noising without noise, by a table whose first column is k_hj."""
    for k_h, needed in enumerate(wanted, StepRow._fields.index("k_h1")):
        if needed and grad_x_prev is not None:
            yield make.noising(grad_x_prev.to(rows.dtype), None, index, rows[:, k_h : k_h + 2].contiguous())
        else:
            yield None


def mse_loss(model_output: Tensor, noise, x_0, x_t, t, rows, reduction) -> Tensor:
    return _losses("mse_loss", model_output, (noise, x_0, x_t, t, rows, reduction))[0]


def vlb_loss(model_output: Tensor, x_0, x_t, noise, t, rows, tanh_cdf, reduction) -> Tensor:
    return _losses("vlb_loss", model_output, (x_0, x_t, noise, t, rows, tanh_cdf, reduction))[0]


def hybrid_loss(model_output: Tensor, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction) -> tuple[Tensor, ...]:
    """(loss, mse, vlb)"""
    return _losses("hybrid_loss", model_output, (x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction))


def _losses(name: str, model_output: Tensor, others: tuple) -> tuple[Tensor, ...]:
    """The losses by the cheapest way to what is wanted of them.

    The gradient is made in the forward, but for two cases: a compiler wants no mutation; and in half precision it would be
    rounded, or underflow, before a loss scale reaches it. bfloat16, with the range of float32, is given to the first on a GPU,
    where a pass over memory costs the most.
    """
    if _plain():
        return getattr(reference, name)(model_output, *others, False)[:-1]
    if not _wanted(model_output):
        return getattr(ops, name)(model_output, *others, False)[:-1]
    if torch.compiler.is_compiling():
        return Loss.apply(model_output, name, False, others)
    rows = others[TENSORS - 1]
    early = model_output.dtype is rows.dtype or (model_output.dtype is torch.bfloat16 and not model_output.is_cpu)
    return _apply(_unwrap(model_output), name, early, others)


def noising(x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    if _plain():
        return reference.noising(x, noise, t, rows)
    return Noising.apply(x, noise, t, rows) if _wanted(x) else ops.noising(x, noise, t, rows)


def noising_uniform(x: Tensor, key: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    if _plain() or _wanted(x):
        t = ops.timesteps(key, rows.shape[0])
        return noising(x, key, t, rows), t
    return ops.noising_uniform(x, key, rows)


def vlb_terms(*inputs) -> tuple[Tensor, Tensor]:
    return (reference if _plain() else ops).vlb_terms(*inputs)


def reverse_step(
    model_output: Tensor, x_t: Tensor, noise, index, rows, return_x_0: bool, *options
) -> tuple[Tensor, Tensor, Tensor]:
    """options: all that the op has defaults for, or nothing."""
    if options and options[3]:
        options = _read_as_they_are(*options)
    inputs = (model_output, x_t, noise, index, rows, return_x_0, *options)
    if _plain():
        return reference.reverse_step(*inputs)
    wanted = model_output.requires_grad or x_t.requires_grad
    if options and not wanted:
        wanted = any(x is not None and x.requires_grad for x in (options[0], *options[3]))
    if wanted and torch.is_grad_enabled():
        uncond_output, guidance, bound, history, return_kept = options or NO_OPTIONS
        given = (*inputs[:6], uncond_output, guidance, bound, return_kept, *history)
        return ReverseStep.apply(*(_each_once(given) if torch.compiler.is_dynamo_compiling() else given))
    return (ops.reverse_step if torch.compiler.is_dynamo_compiling() else _reverse_step)(*inputs)


_reverse_step = ops.reverse_step._op
"""`ops.reverse_step` without its Python half, which only passes arguments on: 2 % of a small step. A compiler wants the op."""


def _read_as_they_are(uncond_output, guidance, bound, history, return_kept) -> tuple:
    """A dispatcher resolves a tensor's negative bit (of a conjugate's imaginary part), but not in an optional list."""
    if torch.compiler.is_compiling() or any(x.is_neg() for x in history):
        history = [x.resolve_neg() for x in history]
    return uncond_output, guidance, bound, history, return_kept


def _each_once(given: Iterable) -> list:
    """Views in the place of tensors that are given again, as a history's first ones are: a compiler refuses them twice."""
    apart: list = []
    for x in given:
        again = isinstance(x, Tensor) and any(x is other for other in apart)
        apart.append(x.view_as(x) if again else x)
    return apart


def _wanted(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _plain() -> bool:
    """Whether derivatives are asked for in a way that only plain torch answers."""
    return forward_ad._current_level >= 0 or _transforming()


def _differentiated_again(*grads: Tensor | None) -> bool:
    """In a backward: whether its gradient is to be differentiated (create_graph), or is one of a batch of gradients."""
    return torch.is_grad_enabled() or transformed(*grads)


def _kept(noise: Tensor | None) -> Tensor | None:
    """What a backward shall see. A key may be advanced before it comes: of keys a copy, which no compiler removes."""
    if noise is None or noise.dtype is not torch.int64:
        return noise
    return ops.copy_key(noise) if torch.compiler.is_compiling() else noise.clone()


def _as_it_was(key: Tensor, version: int, advanced: tuple[int, int]) -> Tensor:
    """A key as it was at a version, when so many calls of `advance` had moved it by so many steps."""
    if key._version == version:
        return key
    calls, steps = (now - then for now, then in zip(key.__dict__.get("_advanced", NEVER), advanced, strict=True))
    if key._version - version != calls:
        raise RuntimeError("noise: expected the key as the loss had it, or advanced, got one modified by an inplace operation")
    key = key.clone()
    ops.advance_(key, -steps)
    return key
