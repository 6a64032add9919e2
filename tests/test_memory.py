"""Noising + loss + gradient allocate x_t and the gradient, and nothing else of their size."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fastddpm as fd
from fastddpm import _extension

pytestmark = pytest.mark.skipif(_extension.module is None, reason="the reference makes temporaries")

SHAPE = (8, 3, 64, 64)
SMALL = 4096  # bytes: losses, upstream gradients


def allocations(call):
    """Sizes in bytes of the tensors that a call allocates, from the profiler's record of the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = record.profiler.kineto_results.events()
    return [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > SMALL]


@pytest.mark.parametrize("given", ["key", "tensor"])
def test_noising_and_loss_allocate_two_tensors(given):
    schedule, key = fd.NoiseSchedule.linear(100), fd.noise_key(0, batch_size=SHAPE[0])
    x_0, t = torch.rand(SHAPE), torch.randint(0, 100, SHAPE[:1])
    output = torch.randn(SHAPE, requires_grad=True)
    noise = key if given == "key" else torch.randn(SHAPE)

    def step():
        kept = fd.q_sample(x_0, t, schedule, noise)
        fd.mse_loss(output, t, schedule, noise).backward()
        return kept

    step()
    output.grad = None
    assert allocations(step) == [4 * output.numel()] * 2


def test_the_counter_counts():
    x = torch.rand(SHAPE)
    assert allocations(lambda: x + 1 + 1) == [4 * x.numel()] * 2


def test_a_reverse_step_allocates_its_results():
    rows = fd.samplers.ddpm(fd.NoiseSchedule.linear(100))
    key, x, output = fd.noise_key(0, batch_size=SHAPE[0]), torch.randn(SHAPE), torch.randn(SHAPE)
    fd.reverse_step(output, x, 50, rows, key)
    assert allocations(lambda: fd.reverse_step(output, x, 50, rows, key)) == [4 * x.numel()] * 2
    assert allocations(lambda: fd.reverse_step(output, x, 50, rows, key, return_x_0=False)) == [4 * x.numel()]
