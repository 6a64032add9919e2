"""FlowMatching: rectified flow, x_t = (1 - s) x_0 + s z (Lipman et al. 2023; Liu et al. 2023; Esser et al. 2024, SD3)."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .checks import as_int, check_one_of
from .process import Process, count_of, karras, listed
from .tables import real_tensors

SPACINGS = ("linspace", "trailing", "karras")


class FlowMatching(Process):
    """Rectified flow, of T levels or of any s in [0, 1]; the network predicts the velocity z - x_0.

    Index i is u = (i + 1) / T, and a floating t is u itself: the level is s = shift u / (1 + (shift - 1) u), and the network is
    given T s (diffusers' FlowMatchEulerDiscreteScheduler, whose tables descend).

    Args:
        num_timesteps: T.
        shift: of the levels towards noise, above 1 for higher resolutions; `for_resolution` says by how much.
        sampling_shift: of the levels that samplers walk, where it is another than training's: exp(mu) of diffusers' dynamic
            shifting. `dynamic` says of which mu.

    Attributes:
        shift, sampling_shift: as given.
        levels: 1 - s and s, float64 `[T]`.
        timesteps: T s, float32 `[T]`.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of its range, named.
    """

    prediction_types = ("velocity", "sample", "epsilon")
    sampler = "euler"
    is_continuous = is_rectified = True

    @real_tensors()
    def __init__(self, num_timesteps: int = 1000, shift: float = 1.0, sampling_shift: float | None = None):
        self.num_timesteps = as_int("num_timesteps", num_timesteps)
        if self.num_timesteps < 1:
            raise ValueError(f"num_timesteps: expected 1 or more, got {num_timesteps}")
        for name, value in (("shift", shift), ("sampling_shift", 1.0 if sampling_shift is None else sampling_shift)):
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a number above 0, got {value!r}")
        self.shift, self.sampling_shift = shift, sampling_shift
        s = self._shifted(torch.arange(1, self.num_timesteps + 1, dtype=torch.float64, device="cpu") / self.num_timesteps)
        self.levels, self.timesteps = (1 - s, s), (self.num_timesteps * s).float()
        super().__init__(s, torch.tensor([shift, sampling_shift or 0.0], dtype=torch.float64, device="cpu"))

    def __repr__(self) -> str:
        sampled = "" if self.sampling_shift is None else f", sampling_shift={self.sampling_shift:.4g}"
        return f"FlowMatching(T={len(self)}, shift={self.shift:.4g}{sampled})"

    @classmethod
    def for_resolution(cls, elements: int, trained: int, num_timesteps: int = 1000) -> "FlowMatching":
        """As much noise at `elements` as at the `trained` ones: shift = sqrt(elements / trained) (SD3, equation 23)."""
        if not (elements > 0 and trained > 0):
            raise ValueError(f"elements, trained: expected numbers above 0, got {elements} and {trained}")
        return cls(num_timesteps, math.sqrt(elements / trained))

    @classmethod
    def dynamic(
        cls,
        tokens: int,
        base_tokens: int = 256,
        max_tokens: int = 4096,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        num_timesteps: int = 1000,
    ) -> "FlowMatching":
        """Sampled with the shift exp(mu), mu linear in an image's tokens through (base_tokens, base_shift) and (max_tokens,
        max_shift): `calculate_shift` of diffusers' pipelines, Flux's numbers. Trained without shift."""
        if base_tokens == max_tokens:
            raise ValueError(f"max_tokens: expected another than base_tokens, got {max_tokens} for both")
        slope = (max_shift - base_shift) / (max_tokens - base_tokens)
        return cls(num_timesteps, sampling_shift=math.exp(base_shift + slope * (tokens - base_tokens)))

    def levels_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s = self._shifted(t)
        return 1 - s, s

    def timesteps_at(self, t: Tensor) -> Tensor:
        return self._shifted(t) * self.num_timesteps

    def walk(self, steps: Any, spacing: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Levels as diffusers' `set_timesteps` makes them, and 0 behind them.

        Args:
            steps: S, of any size; or a list of timesteps T s that fall (no shift is theirs); None for T.
            spacing: of u, which is then shifted: "linspace" (None too) from 1 to the first level (as there twice shifted, but
                under `sampling_shift`); "trailing" (1, 1 - 1/S, .., 1/S: what Flux's pipeline gives); or "karras" between the
                ends of "linspace".
        """
        if steps is None or isinstance(steps, Integral):
            s = self._spaced(count_of(self.num_timesteps if steps is None else steps), spacing)
        else:
            s = listed(steps, self.num_timesteps) / self.num_timesteps
        s = torch.cat((s, torch.zeros_like(s[:1])))
        return (self.num_timesteps * s[:-1]).float(), s / (1 - s), 1 - s

    def _spaced(self, count: int, spacing: str | None) -> Tensor:
        check_one_of("spacing", spacing or "linspace", SPACINGS)
        shift = self.shift if self.sampling_shift is None else self.sampling_shift
        if spacing == "trailing":
            return _shift(torch.arange(count, 0, -1, dtype=torch.float64, device="cpu") / count, shift)
        if self.num_timesteps == 1 and count > 1:
            raise ValueError(f"steps: expected 1 but for spacing 'trailing', since T is 1 (levels must fall), got {count}")
        first = float(self.levels[1][0]) if self.sampling_shift is None else 1 / self.num_timesteps
        s = _shift(torch.linspace(1.0, first, count, dtype=torch.float64, device="cpu"), shift)
        return karras(float(s[0]), float(s[-1]), count) if spacing == "karras" else s

    def _shifted(self, u: Tensor) -> Tensor:
        return _shift(u, self.shift)


def _shift(u: Tensor, shift: float) -> Tensor:
    return u if shift == 1 else shift * u / (1 + (shift - 1) * u)
