"""improved-diffusion: the samplers without cond_fn, and a trainer that does its own optimizing."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..compiled import but_compiled
from ..patch import Method
from .chain import ancestral, implicit
from .peers import diffusions
from .sampling import Step, ddim_reverse_sample, stepped
from .trainer import AVERAGED, READ_ONCE, _log_grad_norm, optimize_normal, trainer

Model = Callable[..., Any]


@but_compiled
def p_sample(
    self: Any,
    model: Model,
    x: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    denoised_fn: Any = None,
    model_kwargs: Any = None,
) -> Step:
    options = {"clip_denoised": clip_denoised, "denoised_fn": denoised_fn, "model_kwargs": model_kwargs}
    return stepped(self, p_sample, ancestral, (), model, x, t, **options)


@but_compiled
def ddim_sample(
    self: Any,
    model: Model,
    x: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    denoised_fn: Any = None,
    model_kwargs: Any = None,
    eta: float = 0.0,
) -> Step:
    options = {"clip_denoised": clip_denoised, "denoised_fn": denoised_fn, "model_kwargs": model_kwargs}
    return stepped(self, ddim_sample, implicit, (eta,), model, x, t, **options, eta=eta)


def _parts(loop: Any) -> Iterable[Any]:
    return (loop.diffusion,)


NAME = "improved_diffusion"
STEP = (Method(optimize_normal, AVERAGED), Method(_log_grad_norm, READ_ONCE))
ALL = (
    *diffusions(NAME, p_sample, ddim_sample, ddim_reverse_sample),
    trainer(NAME, _parts, *STEP, left=("optimize_fp16, but for its norm",)),
)
PEERS = {peer.name: peer for peer in ALL}
