"""OpenAI's GaussianDiffusion as the functions see it: its schedule, its types' names, and the rows of its steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import FLOAT_DTYPES, HALF_DTYPES
from ...coefficients import log_variance_ends, x_0_columns
from ...functional import arithmetic
from ...samplers import StepRows, ddpm
from ...schedule import LEARNED_VARIANCE_TYPES, NoiseSchedule
from ...tables import real_tensors
from ..draws import drawn_key
from ..patch import MARK, Patch
from ..tables import cached
from ..torch_normals import randn_like

PREDICTION_TYPES = {"EPSILON": "epsilon", "START_X": "sample", "PREVIOUS_X": "previous"}
VARIANCE_TYPES = {
    "FIXED_SMALL": "fixed_small",
    "FIXED_LARGE": "fixed_large",
    "LEARNED": "learned",
    "LEARNED_RANGE": "learned_range",
}


@dataclass(frozen=True, eq=False)
class Chain:
    """A diffusion's tables and types, under our names."""

    schedule: NoiseSchedule
    prediction_type: str
    variance_type: str
    _rows: dict[Any, StepRows] = field(default_factory=dict)

    @property
    def learned(self) -> bool:
        return self.variance_type in LEARNED_VARIANCE_TYPES

    def rows(self, make: Callable[..., StepRows], *case: Any) -> StepRows:
        """`make(self, *case)`, kept."""
        key = (make, *case)
        if key not in self._rows:
            with real_tensors():
                self._rows[key] = make(self, *case)
        return self._rows[key]

    def prediction(self, x_0: Tensor, output: Tensor) -> Tensor:
        """x_0_hat in the dtype of theirs: what the network predicts directly stays of its own."""
        return x_0.to(output.dtype) if self.prediction_type == "sample" else x_0


def chain_of(self: Any) -> Any:
    """The diffusion's `Chain`, made again when a table, a type or their number is another; or, a str, why there is none."""
    own = vars(self)
    seen = (*(own.get(name) for name in TABLES), self.model_mean_type, self.model_var_type, self.num_timesteps)
    try:
        return cached(getattr(self, MARK), "chain", seen, lambda: _chain(self))
    except RuntimeError as refused:  # of this call, and maybe not of the next: it is not kept
        return f"a call in which no schedule is made ({refused})"


def _chain(self: Any) -> Chain | str:
    try:
        schedule = NoiseSchedule.from_betas(self.betas)
        prediction_type = PREDICTION_TYPES[self.model_mean_type.name]
        schedule.check_prediction(prediction_type)
        followed = all(np.allclose(vars(self)[name], of(schedule), rtol=1e-9) for name, of in TABLES.items())
        if followed and len(schedule) == self.num_timesteps:
            return Chain(schedule, prediction_type, VARIANCE_TYPES[self.model_var_type.name])
    except (AttributeError, KeyError, TypeError, ValueError) as refused:
        return f"a diffusion that fastddpm has no schedule for ({refused})"
    return "tables that do not follow from the betas, or are not of num_timesteps"


TABLES: dict[str, Callable[[NoiseSchedule], Tensor]] = {
    "betas": lambda s: s.betas,
    "alphas_cumprod": lambda s: s.alphas_cumprod,
    "alphas_cumprod_prev": lambda s: s.alphas_cumprod_prev,
    "alphas_cumprod_next": lambda s: torch.cat((s.alphas_cumprod[1:], s.alphas_cumprod.new_zeros(1))),
    "sqrt_alphas_cumprod": lambda s: s.alphas_cumprod.sqrt(),
    "sqrt_one_minus_alphas_cumprod": lambda s: (1 - s.alphas_cumprod).sqrt(),
    "log_one_minus_alphas_cumprod": lambda s: (1 - s.alphas_cumprod).log(),
    "sqrt_recip_alphas_cumprod": lambda s: (1 / s.alphas_cumprod).sqrt(),
    "sqrt_recipm1_alphas_cumprod": lambda s: (1 / s.alphas_cumprod - 1).sqrt(),
    "posterior_variance": lambda s: s.posterior_variance,
    "posterior_log_variance_clipped": lambda s: log_variance_ends(s)[0],
    "posterior_mean_coef1": lambda s: s.posterior_mean_x_0,
    "posterior_mean_coef2": lambda s: s.posterior_mean_x_t,
}
"""Their attributes, float64 in numpy, as they follow from a schedule."""


# ---- rows of steps ----


def ancestral(chain: Chain, clip: bool) -> StepRows:
    return ddpm(chain.schedule, chain.prediction_type, chain.variance_type, clip)


def implicit(chain: Chain, clip: bool, eta: float, towards_noise: bool = False) -> StepRows:
    """DDIM: x' = sqrt(abar') x_0_hat + sqrt(1 - abar' - sigma^2) eps + sigma z, eps that of x and the clipped x_0_hat."""
    schedule = chain.schedule
    before, after = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    if towards_noise:
        if eta != 0:
            raise ValueError(f"eta: expected 0 towards more noise, got {eta}")
        after = TABLES["alphas_cumprod_next"](schedule)
    sigma = eta * ((1 - after) / (1 - before) * (1 - before / after)).sqrt() if eta else torch.zeros_like(before)
    a, s, direction = before.sqrt(), (1 - before).sqrt(), (1 - after - sigma**2).sqrt()
    return _rows(chain, clip, k_x=direction / s, k_0=after.sqrt() - direction * a / s, sigma=sigma)


def denoised(chain: Chain, clip: bool) -> StepRows:
    """x' = x_0_hat."""
    return _rows(chain, clip, k_0=1.0)


def _rows(chain: Chain, clip: bool, **columns: Any) -> StepRows:
    p_x, p_o = x_0_columns(chain.schedule, chain.prediction_type)
    bound = 1.0 if clip else math.inf
    return StepRows(chain.schedule.timesteps, chain.variance_type, p_x=p_x, p_o=p_o, bound=bound, **columns)


# ---- calls ----


def wide(x: Tensor) -> Tensor:
    """Their tables' dtype is float32, and half precision is promoted by it."""
    return x.float() if x.dtype in HALF_DTYPES else x


def drawn(patch: Patch, x: Tensor) -> Tensor:
    """Noise for x: as theirs, or a key."""
    return drawn_key(len(x), x.device) if patch.noise == "philox" else randn_like(x)


def model_output(self: Any, model: Callable[..., Any], x: Tensor, t: Tensor, model_kwargs: dict[str, Any] | None) -> Any:
    """Of the model, given the timesteps that it knows. SpacedDiffusion's map lies on the device, uploaded once."""
    kwargs = {} if model_kwargs is None else model_kwargs
    if not hasattr(self, "_wrap_model") or self._wrap_model(model) is model:
        return model(x, self._scale_timesteps(t), **kwargs)

    def table() -> Tensor:
        return torch.tensor(self.timestep_map, device=t.device, dtype=t.dtype)

    t = cached(getattr(self, MARK), ("timestep_map", t.device, t.dtype), (self.timestep_map,), table)[t]
    if self.rescale_timesteps:
        t = t.float() * (1000.0 / self.original_num_steps)
    return model(x, t, **kwargs)


def given(output: Any) -> Callable[..., Any]:
    """A model that was called already."""
    return lambda *args, **kwargs: output


# ---- what is left to the original ----


def why_not(patch: Patch, chain: Any, x: Any, t: Any, *like_x: Any) -> str:
    """Why a call is the original's, of what is known before the model is called and noise is drawn; "" where it is ours.

    Args:
        like_x: tensors like x that no gradient flows to.
    """
    why = why_not_data(patch, chain, x, *like_x)
    if why:
        return why
    if not isinstance(t, Tensor) or t.dtype not in (torch.int32, torch.int64) or t.shape != x.shape[:1] or t.device != x.device:
        return "timesteps that are not int32 or int64 [B] on the data's device"
    if t.is_cpu and type(t) is Tensor:  # a GPU's are not read: there one that is out of range makes its sample NaN
        first, last = t.aminmax()
        if first.item() < 0 or last.item() >= len(chain.schedule):
            return "a timestep out of range"
    return ""


def why_not_data(patch: Patch, chain: Any, x: Any, *like_x: Any) -> str:
    """The same where the timesteps are not the caller's."""
    if isinstance(chain, str):
        return chain
    if not isinstance(x, Tensor) or x.dtype not in FLOAT_DTYPES or x.dim() < 2 or x.numel() == 0:
        return "data that is no floating tensor [B, C, ...]"
    if patch.strict and x.dtype in HALF_DTYPES:
        return "strict, in half precision"
    for other in like_x:
        if not isinstance(other, Tensor) or other.shape != x.shape or other.device != x.device:
            return "a tensor of another shape or device than the data's"
        if other.dtype not in FLOAT_DTYPES or arithmetic(other) is not arithmetic(x):
            return "a tensor of another precision than the data's"
        if other.requires_grad and torch.is_grad_enabled():
            return "a gradient through the data or its noise"
    return ""


def why_not_output(patch: Patch, chain: Chain, output: Any, x: Tensor) -> str:
    """The same of what the model returned."""
    if not isinstance(output, Tensor) or output.dtype not in FLOAT_DTYPES or output.device != x.device:
        return "a model's output that is no floating tensor on the data's device"
    if output.shape != (x.shape[0], x.shape[1] * (2 if chain.learned else 1), *x.shape[2:]):
        return "a model's output of another shape than the data's"
    if arithmetic(output) is not arithmetic(x):
        return "a model's output of another precision than the data's"
    if patch.strict and output.dtype in HALF_DTYPES:
        return "strict, in half precision"
    return ""
