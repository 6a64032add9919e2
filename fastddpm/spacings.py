"""Which timesteps of T a walk of S steps visits, by the names that diffusers has for them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Spacing = Callable[[int, int, int], Tensor]
"""(T, S, steps_offset) -> descending timesteps, float64 `[S]`, not rounded where they are none."""


def leading(total: int, steps: int, offset: int) -> Tensor:
    return count_up(steps).flip(0) * (total // steps) + offset


def trailing(total: int, steps: int, offset: int) -> Tensor:
    return (total - count_up(steps) * (total / steps)).round() - 1


def linspace(total: int, steps: int, offset: int) -> Tensor:
    """numpy's rounding: torch's linspace goes from both ends, and has other halves."""
    if steps == 1:
        return torch.zeros(1, dtype=torch.float64, device="cpu")
    return (count_up(steps) * ((total - 1) / (steps - 1))).flip(0)


def count_up(steps: int) -> Tensor:
    return torch.arange(steps, dtype=torch.float64, device="cpu")


EVEN: Mapping[str, Spacing] = {"leading": leading, "trailing": trailing, "linspace": linspace}
