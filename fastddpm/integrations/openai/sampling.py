"""One step of OpenAI's samplers: Ho et al. 2020, algorithm 2; Song et al. 2021, equations 12 and 13."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...functional import reverse_step
from ...samplers import StepRows
from ..compiled import but_compiled
from ..draws import in_layout_of
from ..patch import MARK, original
from ..torch_normals import skip_randn_like
from .chain import ancestral, chain_of, drawn, given, implicit, model_output, why_not, why_not_output, wide

Step = dict[str, Tensor]


def stepped(
    self: Any,
    method: Callable[..., Any],
    make: Callable[..., StepRows],
    case: tuple[Any, ...],
    model: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    draws: bool = True,
    **options: Any,
) -> Step:
    """A step by the rows `make(chain, clip_denoised, *case)`; by the original method where an option or a tensor wants that."""
    why = _steered(**options)
    if why:
        return original(self, method, why)(model, x, t, **options)
    patch, chain = getattr(self, MARK), chain_of(self)
    why = why_not(patch, chain, x, t)
    if not why:
        try:
            rows = chain.rows(make, bool(options["clip_denoised"]), *case)
        except (TypeError, ValueError) as refused:  # an eta above 1, where a root is NaN
            why = str(refused)
    if not why:
        output = model_output(self, model, x, t, options["model_kwargs"])
        why = why_not_output(patch, chain, output, x)
        model = given(output)
    if why:
        return original(self, method, why)(model, x, t, **options)
    if draws and not rows.adds_noise and patch.noise == "torch":
        skip_randn_like(x)
    noise = drawn(patch, x) if rows.adds_noise else "none"
    x = wide(x) if chain.prediction_type == "epsilon" else in_layout_of(output, wide(x))
    sample, x_0 = reverse_step(output, x, t, rows, noise)
    return {"sample": sample, "pred_xstart": chain.prediction(x_0, output)}


def _steered(denoised_fn: Any = None, cond_fn: Any = None, eta: Any = 0.0, **others: Any) -> str:
    if denoised_fn is not None or cond_fn is not None:
        return "denoised_fn or cond_fn"
    return "" if isinstance(eta, (int, float)) else "an eta that is no number"


@but_compiled
def p_sample(
    self: Any,
    model: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    denoised_fn: Any = None,
    cond_fn: Any = None,
    model_kwargs: Any = None,
) -> Step:
    options = {"clip_denoised": clip_denoised, "denoised_fn": denoised_fn, "cond_fn": cond_fn, "model_kwargs": model_kwargs}
    return stepped(self, p_sample, ancestral, (), model, x, t, **options)


@but_compiled
def ddim_sample(
    self: Any,
    model: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    denoised_fn: Any = None,
    cond_fn: Any = None,
    model_kwargs: Any = None,
    eta: float = 0.0,
) -> Step:
    options = {"clip_denoised": clip_denoised, "denoised_fn": denoised_fn, "cond_fn": cond_fn, "model_kwargs": model_kwargs}
    return stepped(self, ddim_sample, implicit, (eta,), model, x, t, **options, eta=eta)


@but_compiled
def ddim_reverse_sample(
    self: Any,
    model: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    denoised_fn: Any = None,
    model_kwargs: Any = None,
    eta: float = 0.0,
) -> Step:
    options = {"clip_denoised": clip_denoised, "denoised_fn": denoised_fn, "model_kwargs": model_kwargs, "eta": eta}
    return stepped(self, ddim_reverse_sample, implicit, (eta, True), model, x, t, draws=False, **options)
