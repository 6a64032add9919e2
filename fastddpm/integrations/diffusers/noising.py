"""`add_noise` and `get_velocity` of the schedulers that have alphas_cumprod."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...checks import HALF_DTYPES
from ...functional import q_sample, velocity
from ...schedule import NoiseSchedule
from ..compiled import but_compiled
from ..patch import MARK, Method, original
from ..tables import cached


@but_compiled
def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    return _noised(self, add_noise, q_sample, original_samples, noise, timesteps)


@but_compiled
def get_velocity(self: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    return _noised(self, get_velocity, velocity, sample, noise, timesteps)


def _noised(
    self: Any, method: Callable[..., Tensor], ours: Callable[..., Tensor], x: Any, noise: Any, timesteps: Any
) -> Tensor:
    why = _why_not(self, x, noise, timesteps)
    if not why:
        try:
            return ours(x, timesteps.to(x.device), _schedule_of(self), noise)
        except (IndexError, NotImplementedError, TypeError, ValueError) as refused:  # a timestep of -1 wraps, no data, ..
            why = str(refused)
    return original(self, method, why)(x, noise, timesteps)


def _why_not(self: Any, x: Tensor, noise: Tensor, timesteps: Tensor) -> str:
    """Why a call is the original's, of what our functions would not refuse."""
    patch = getattr(self, MARK)
    if not isinstance(timesteps, Tensor) or not isinstance(x, Tensor) or not isinstance(noise, Tensor):
        return "an argument that is no tensor"
    if noise.dtype is not x.dtype:
        return "noise of another dtype than the sample's"
    if patch.strict and x.dtype in HALF_DTYPES:
        return "strict, in half precision"
    if self.alphas_cumprod.device != x.device:  # theirs moves it, and scripts index it with timesteps of that device
        self.alphas_cumprod = self.alphas_cumprod.to(device=x.device)
    return ""


def _schedule_of(self: Any) -> NoiseSchedule:
    abar = self.alphas_cumprod
    return cached(getattr(self, MARK), "noising", (abar,), lambda: NoiseSchedule.from_alphas_cumprod(abar))


METHODS = (
    Method(add_noise, "one pass, its coefficients rounded once, also in half precision"),
    Method(get_velocity, "one pass, its coefficients rounded once, also in half precision"),
)
