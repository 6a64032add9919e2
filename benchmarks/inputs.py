"""What an op is given: made once for a shape, and only the parts that the op takes."""

import math
from functools import cached_property, lru_cache

import torch
from torch import Tensor

import fastddpm as fd

from . import machine

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
STEP = 500
"""The index at which a reverse step is timed."""
STEPS, ROW = 50, 25
"""How many steps the other samplers walk, and the row that is timed."""
GUIDANCE = 4.0


class Batch:
    """Data in [-1, 1], timesteps, a key with its noise, and what a network might have answered."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "float32", memory_format: str = "contiguous"):
        self.shape, self.device = shape, machine.DEVICE
        self.how = {"dtype": DTYPES[dtype], "memory_format": FORMATS[memory_format]}
        self.schedule = fd.NoiseSchedule.linear(1000)
        self.key = fd.noise_key(3, batch_size=shape[0], device=self.device)
        self.next_key = fd.noise_key(3, 1, shape[0], device=self.device)
        self.t = fd.timesteps(self.key, 1000)
        self.flow, self.edm = fd.FlowMatching(), fd.EDM()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def x_0(self) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        return (torch.rand(self.shape, generator=generator, device=self.device) * 2 - 1).to(**self.how)

    @cached_property
    def sigma(self) -> Tensor:
        """Of EDM."""
        return fd.levels(self.key, self.edm.density)

    @cached_property
    def noise(self) -> Tensor:
        return fd.randn(self.key, self.shape, **self.how)

    @cached_property
    def x_t(self) -> Tensor:
        return fd.q_sample(self.x_0, self.t, self.schedule, self.key)

    @cached_property
    def output(self) -> Tensor:
        return self._answer(1)

    @cached_property
    def uncond_output(self) -> Tensor:
        """Of the network without its condition."""
        return self._answer(1, 5).detach()

    @cached_property
    def earlier(self) -> list[Tensor]:
        """What x_0_hat was one step before, and two."""
        return [self._answer(1, seed).detach() for seed in (6, 7)]

    @cached_property
    def wide_output(self) -> Tensor:
        """Of a network that also answers with the variance: twice the channels."""
        return self._answer(2)

    def forget(self) -> None:
        """Drops the gradients."""
        for output in (self.output, self.wide_output):
            output.grad = None

    def _answer(self, times: int, seed: int = 4) -> Tensor:
        key = fd.noise_key(seed, batch_size=len(self), device=self.device)
        shape = (len(self), times * self.shape[1], *self.shape[2:])
        return (0.3 * fd.randn(key, shape, **self.how)).requires_grad_()


@lru_cache(maxsize=1)
def batch(shape: tuple[int, ...], dtype: str = "float32", memory_format: str = "contiguous") -> Batch:
    """Cases that follow each other share their inputs."""
    return Batch(shape, dtype, memory_format)
