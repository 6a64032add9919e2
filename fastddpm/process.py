"""What a forward process is: levels x_t = a x_0 + s z, what a network may predict at them, and what follows from that.

A target is p z + q x_0. With x_t it tells both: x_0 = (p x_t - s target) / d and z = (a target - q x_t) / d, d = p a - q s.
"""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .checks import as_int, check_one_of, describe
from .conversions import told
from .densities import Density
from .tables import Tables

Target = Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]
"""(a, s, prediction_type) -> p, q."""

LEVEL_FREE = ("epsilon", "sample", "velocity")
"""Targets that are the same at every level."""


def target_of(a: Tensor, s: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
    """p, q of what is predicted; also "velocity", z - x_0 (Lipman et al. 2023; Liu et al. 2023, rectified flow)."""
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    if prediction_type == "v_prediction":  # Salimans & Ho 2022, appendix D
        return a, -s
    return {"epsilon": (one, zero), "sample": (zero, one), "velocity": (one, -one)}[prediction_type]


def x_0_of(a: Tensor, s: Tensor, prediction_type: str, target: Target = target_of) -> tuple[Tensor, Tensor]:
    """p_x, p_o of `x_0_hat = p_x x_t + p_o out`."""
    p, q = target(a, s, prediction_type)
    return p / (p * a - q * s), -s / (p * a - q * s)


def epsilon_of(a: Tensor, s: Tensor, prediction_type: str, target: Target = target_of) -> tuple[Tensor, Tensor]:
    """e_x, e_o of `eps_hat = e_x x_t + e_o out`."""
    p, q = target(a, s, prediction_type)
    return -q / (p * a - q * s), a / (p * a - q * s)


class Process(Tables):
    """A forward process. `NoiseSchedule` and `FlowMatching` have a table of levels, by index; `FlowMatching` and `EDM` are
    continuous: t may be any number too, floating `[B]`, of which the levels are made on its device.

    Attributes:
        levels: a, s, float64 `[T]`, where there is a table (not of `EDM`).
        timesteps: `[T]`, what the network is given at each index of it.
        num_timesteps: T; 0 where there is no table.
        is_respaced: whether those are others than the indices.
        density: of t in training, unless another is asked for; None draws evenly.
        prediction_types: what the network may predict, the default first.
        sampler: the default's name.
        is_chain: whether there are transitions from step to step: the bound and `samplers.ddpm` are made of those.
        is_continuous: whether t may be a number.
        is_rectified: whether its paths are straight in x (a + s = 1), and not in x / a.
    """

    levels: tuple[Tensor, Tensor]
    num_timesteps = 0
    prediction_types: tuple[str, ...]
    sampler: str
    is_chain = is_continuous = is_rectified = False
    is_respaced = True
    density: Density | None = None

    def __len__(self) -> int:
        return self.num_timesteps

    def __bool__(self) -> bool:
        return True  # of the length 0 of EDM, which has no table, `if process` would be False

    def check_prediction(self, prediction_type: str) -> None:
        """Refuses what cannot work."""
        check_one_of("prediction_type", prediction_type, self.prediction_types)

    def target_of(self, a: Tensor, s: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
        """p, q of the target p z + q x_0 at levels a, s."""
        return target_of(a, s, prediction_type)

    def min_snr_weights_at(self, a: Tensor, s: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
        """min(snr, gamma) of x_0's error (Hang et al. 2023), so the square of p_o times that; of epsilon 1 where a is 0."""
        _, p_o = x_0_of(a, s, prediction_type, self.target_of)
        return ((a / s).square().clamp(max=gamma) * p_o.square()).nan_to_num(nan=1.0)

    def levels_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a, s at numbers t, on their device: of a continuous process."""
        raise NotImplementedError

    def timesteps_at(self, t: Tensor) -> Tensor:
        """What the network is given there."""
        raise NotImplementedError

    def walk(self, steps: Any, spacing: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Where a sampler walks: timesteps `[S]`, and s / a and a `[S + 1]`, from the noisiest level to x_0 itself. (A chain's
        samplers each have spacings of their own: `samplers.levels`.)"""
        raise NotImplementedError


def check_process(process: object) -> None:
    if not isinstance(process, Process):
        raise TypeError(f"schedule: expected a NoiseSchedule, FlowMatching or EDM, got {told(process)}")


def is_number(t: object) -> bool:
    """Whether t is meant as a continuous process's, not as an index."""
    if isinstance(t, Tensor):
        return t.is_floating_point()
    return isinstance(t, float) or (isinstance(t, Real) and not isinstance(t, Integral))  # numpy's too


def karras(highest: float, lowest: float, steps: int, rho: float = 7.0) -> Tensor:
    """Levels of noise that fall, float64 `[S]` (Karras et al. 2022, equation 5)."""
    ramp = torch.arange(steps, dtype=torch.float64, device="cpu") / max(steps - 1, 1)
    high, low = highest ** (1 / rho), lowest ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas[-1] = lowest  # the ends themselves, not their roots' powers
    sigmas[0] = highest
    return sigmas


def count_of(steps: Any) -> int:
    count = as_int("steps", steps)
    if count < 1:
        raise ValueError(f"steps: expected 1 or more, got {steps}")
    return count


def listed(steps: Any, highest: float) -> Tensor:
    """A caller's levels, float64 `[S]`."""
    given = torch.as_tensor(steps, device="cpu")
    if given.dim() != 1 or not len(given) or given.dtype == torch.bool:
        raise TypeError(f"steps: expected an int or a list of numbers, got {describe(given)}")
    given = torch.as_tensor(steps, dtype=torch.float64, device="cpu")
    if not bool((given[1:] < given[:-1]).all()) or not 0 < given[-1] <= given[0] <= highest or given[0].isinf():
        raise ValueError(f"steps: expected numbers that fall, from {highest} at most to above 0, got {steps}")
    return given
