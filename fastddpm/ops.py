"""The torch.library boundary: schemas, fakes, and which backend serves which device. Nothing else.

Every op takes tensors that `functional` has checked. `noise` is a key (int64 `[B, 2]`) or a tensor; `t` and `index` choose the
row of `rows` for each sample; the dtype of `rows` is the dtype of the arithmetic. `reduction` is 0 none, 1 mean, 2 sum. An
output of twice the data's channels holds the variance's behind the mean's. An `x_t` of None is made again from x_0 and `noise`.
A loss `with_grad` comes with its gradient for an upstream gradient of one; without, `grad` is empty. A step's `guidance` and
`bound`, in the place of its rows' g and bound, are of the arithmetic's dtype, `[B]` or one value.

An optimizer's tensors come in parts of `counts`, each with a row of float64 `rows [parts, 8]` and the number of its steps in
float32 `steps [1 + parts]`, behind that of the average's. A gradient of `[0]` is none: only that weight's average moves.
`total_norm` is the norm of all its tensors (one or more) together, float64.

The CPU key is served by the C++ extension where it is built, the CUDA key (NVIDIA and ROCm) by Triton. Everything else runs
`reference`.
"""

import torch

from . import _extension, _triton, reference

NONE, MEAN, SUM = 0, 1, 2

_library = torch.library.Library("fastddpm", "DEF")
_TARGET = "Tensor model_output, Tensor? noise, Tensor? x_0, Tensor? x_t, Tensor t, Tensor rows, int reduction"
_BOUND = "Tensor model_output, Tensor x_0, Tensor? x_t, Tensor? noise, Tensor t, Tensor rows, bool tanh_cdf"
_STEP = "Tensor model_output, Tensor x_t, Tensor? noise, Tensor index, Tensor rows"
_OPTIONS = "Tensor? uncond_output=None, Tensor? guidance=None, Tensor? bound=None"  # a default costs a call a third of a None
_HYBRID = f"{_BOUND}, float vlb_weight, int reduction"


def _define(name: str, signature: str) -> torch._ops.OpOverload:
    _library.define(f"{name}{signature}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")  # autograd.py's Functions are round the ops
    return getattr(torch.ops.fastddpm, name).default


fill_key_ = _define("fill_key_", "(Tensor(a!) key, int seed, int subsequence) -> ()")
advance_ = _define("advance_", "(Tensor(a!) key, int steps) -> ()")
copy_key = _define("copy_key", "(Tensor key) -> Tensor")
randn_ = _define("randn_", "(Tensor(a!) out, Tensor key) -> ()")
timesteps = _define("timesteps", "(Tensor key, int num_timesteps) -> Tensor")
noising = _define("noising", "(Tensor x, Tensor? noise, Tensor t, Tensor rows) -> Tensor")
noising_uniform = _define("noising_uniform", "(Tensor x, Tensor key, Tensor rows) -> (Tensor x_t, Tensor t)")
mse_loss = _define("mse_loss", f"({_TARGET}, bool with_grad) -> (Tensor loss, Tensor grad)")
mse_loss_backward = _define("mse_loss_backward", f"({_TARGET}, Tensor grad_loss) -> Tensor")
scale_grad_ = _define("scale_grad_", "(Tensor(a!) grad, Tensor grad_loss) -> ()")
vlb_loss = _define("vlb_loss", f"({_BOUND}, int reduction, bool with_grad) -> (Tensor loss, Tensor grad)")
vlb_loss_backward = _define("vlb_loss_backward", f"({_BOUND}, int reduction, Tensor grad_loss) -> Tensor")
hybrid_loss = _define("hybrid_loss", f"({_HYBRID}, bool with_grad) -> (Tensor loss, Tensor mse, Tensor vlb, Tensor grad)")
hybrid_loss_backward = _define(
    "hybrid_loss_backward", f"({_HYBRID}, Tensor? grad_loss, Tensor? grad_mse, Tensor? grad_vlb) -> Tensor"
)
vlb_terms = _define("vlb_terms", f"({_BOUND}, Tensor? next_noise, Tensor? next_t) -> (Tensor terms, Tensor next_x_t)")
reverse_step = _define(
    "reverse_step",
    f"({_STEP}, bool return_x_0, {_OPTIONS}, Tensor[]? history=None, bool return_kept=False)"
    " -> (Tensor x_prev, Tensor x_0, Tensor kept)",
)
reverse_step_backward = _define(
    "reverse_step_backward",
    f"(Tensor? grad_x_prev, Tensor? grad_x_0, {_STEP}, {_OPTIONS}, Tensor? grad_kept=None)"
    " -> (Tensor grad_model_output, Tensor grad_x_t, Tensor grad_uncond_output)",
)

adamw_ = _define(
    "adamw_",
    "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] averages,"
    " int[] counts, Tensor rows, Tensor(f!) steps, Tensor? grad_scale, Tensor? found_inf, float? max_grad_norm, float decay,"
    " int update_after, bool warmup, bool zero_grads) -> Tensor norm",
)

total_norm = _define("total_norm", "(Tensor[] tensors) -> Tensor")

_extension.load()  # registers the C++ kernels under the CPU key, over the schemas above
_triton.load()  # registers the Triton kernels under the CUDA key


def _fake(op: torch._ops.OpOverload):
    return torch.library.register_fake(op.name(), lib=_library)


@_fake(fill_key_)
def _(key, seed, subsequence):
    return None


@_fake(advance_)
def _(key, steps):
    return None


@_fake(copy_key)
def _(key):
    return torch.empty_like(key)


@_fake(randn_)
def _(out, key):
    return None


@_fake(timesteps)
def _(key, num_timesteps):
    return key.new_empty(key.shape[0])


@_fake(noising)
def _(x, noise, t, rows):
    return torch.empty_like(x)


@_fake(noising_uniform)
def _(x, key, rows):
    return torch.empty_like(x), key.new_empty(key.shape[0])


def _fake_losses(count, model_output, rows, reduction, with_grad):
    shape = model_output.shape[:1] if reduction == NONE else ()
    grad = torch.empty_like(model_output) if with_grad else model_output.new_empty(0)
    return *(rows.new_empty(shape) for _ in range(count)), grad


@_fake(mse_loss)
def _(model_output, noise, x_0, x_t, t, rows, reduction, with_grad):
    return _fake_losses(1, model_output, rows, reduction, with_grad)


@_fake(vlb_loss)
def _(model_output, x_0, x_t, noise, t, rows, tanh_cdf, reduction, with_grad):
    return _fake_losses(1, model_output, rows, reduction, with_grad)


@_fake(hybrid_loss)
def _(model_output, x_0, x_t, noise, t, rows, tanh_cdf, vlb_weight, reduction, with_grad):
    return _fake_losses(3, model_output, rows, reduction, with_grad)


@_fake(mse_loss_backward)
@_fake(vlb_loss_backward)
@_fake(hybrid_loss_backward)
def _fake_grad(model_output, *others):
    return torch.empty_like(model_output)


@_fake(scale_grad_)
def _(grad, grad_loss):
    return None


@_fake(vlb_terms)
def _(model_output, x_0, x_t, noise, t, rows, tanh_cdf, next_noise, next_t):
    return rows.new_empty(2, x_0.shape[0]), torch.empty_like(x_0) if next_noise is not None else x_0.new_empty(0)


@_fake(reverse_step)
def _(
    model_output, x_t, noise, index, rows, return_x_0, uncond=None, guidance=None, bound=None, history=None, return_kept=False
):
    return torch.empty_like(x_t), *(torch.empty_like(x_t) if x else x_t.new_empty(0) for x in (return_x_0, return_kept))


@_fake(reverse_step_backward)
def _(grad_x_prev, grad_x_0, model_output, x_t, noise, index, rows, uncond=None, guidance=None, bound=None, grad_kept=None):
    grad_uncond = x_t.new_empty(0) if uncond is None else torch.empty_like(uncond)
    return torch.empty_like(model_output), torch.empty_like(x_t), grad_uncond


@_fake(adamw_)
def _(params, grads, exp_avgs, exp_avg_sqs, averages, counts, rows, steps, grad_scale, found_inf, max_grad_norm, *rest):
    return steps.new_empty(() if max_grad_norm is not None else 0)


@_fake(total_norm)
def _(tensors):
    return torch.empty((), dtype=torch.float64, device=tensors[0].device)
