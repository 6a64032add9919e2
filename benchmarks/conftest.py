"""What the stages share: sizes, data, and a timed call whose result was checked first."""

import pytest
import torch

import fastddpm as fd

SMALL, LARGE = (128, 3, 32, 32), (64, 3, 256, 256)


def shape_id(shape):
    return "x".join(map(str, shape))


class Batch:
    """One shape's inputs: data in [-1, 1], timesteps, a key, and a network's output."""

    def __init__(self, shape, memory_format=torch.contiguous_format):
        generator = torch.Generator().manual_seed(0)
        self.schedule = fd.NoiseSchedule.linear(1000)
        self.x_0 = (torch.rand(shape, generator=generator) * 2 - 1).to(memory_format=memory_format)
        self.output = torch.randn(shape, generator=generator).to(memory_format=memory_format)
        self.t = torch.randint(0, 1000, shape[:1], generator=generator)
        self.key = fd.noise_key(3, batch_size=shape[0])


@pytest.fixture
def timed(benchmark, request):
    """Times a call, and files it under its stage, shape and provider for the table."""

    def run(call, stage, shape, provider):
        benchmark.group = f"{stage} {shape_id(shape)}"
        benchmark.extra_info.update(stage=stage, shape=shape_id(shape), provider=provider, threads=torch.get_num_threads())
        benchmark(call)

    return run


def check(actual, expected, what):
    """No figure without a passing check."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, msg=lambda m: f"{what} is not what it claims: {m}")
