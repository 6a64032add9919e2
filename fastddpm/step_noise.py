"""The noise of each step of a walk down a chain: from a key, or from the caller."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from .checks import check_like, check_noise, describe
from .noise import noise_key
from .schedule import NoiseSchedule

StepNoise = Callable[[Tensor, int], Tensor]
"""(x, i) -> the noise of the step at index i, like x."""


def keys_of(key: Tensor, steps: Tensor) -> Tensor:
    """The key, whose step is 0, at each of these steps of its device: `[S, B, 2]`. (A key's step is 28 bits from 32 up.)"""
    keys = key.repeat(len(steps), 1, 1)
    keys[..., 1] += steps[:, None] << 32
    return keys


def called(noise: StepNoise) -> StepNoise:
    """A caller's, each result checked."""
    if not callable(noise):
        raise TypeError(f"noise: expected a tensor or a callable, got {describe(noise)}")

    def drawn(x: Tensor, i: int) -> Tensor:
        z = noise(x, i)
        check_like("noise's result", z, "x", x)
        return z

    return drawn


def of_sampling(noise: Tensor | StepNoise, x: Tensor, steps: int) -> StepNoise:
    """What `sample` is given: of a tensor the first step's comes first."""
    if not isinstance(noise, Tensor):
        return called(noise)
    if noise.shape != (steps, *x.shape) or noise.device != x.device or not noise.is_floating_point():
        raise ValueError(
            f"noise: expected floating {[steps, *x.shape]} (one for each step) on {x.device}, got {describe(noise)}"
        )
    each = noise.detach().unbind()
    return lambda x, i: each[steps - 1 - i]


def of_bits_per_dim(
    chain: NoiseSchedule, x_0: Tensor, seed: int | Tensor, first_sample: int, noise: Tensor | StepNoise | None
) -> Callable[[slice], Callable[[int], Tensor]]:
    """The noise at each index of the chain, for a part of the data."""
    if noise is None:  # a step's number is its timestep in the original chain: a respaced one sees the x_t of the whole there
        key, steps = noise_key(seed, 0, len(x_0), first_sample, "evaluation", x_0.device), chain.timesteps_on(x_0.device)
        return lambda part: keys_of(key[part], steps).unbind().__getitem__
    if isinstance(noise, Tensor):
        check_noise(noise, "x_0", x_0)
        return lambda part: lambda i: noise[part]
    return lambda part: partial(called(noise), x_0[part])
