"""Host cost of a call: [1, 3, 8, 8], where the arithmetic is nothing and the way to the kernel is all."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

import fastddpm as fd

from .bench_reverse import STEP, scheduler
from .conftest import Batch

SHAPE = (1, 3, 8, 8)
SCHEDULER = DDPMScheduler(1000)


def backward_of(loss_of, b):
    output = b.output.requires_grad_()

    def call():
        output.grad = None
        loss_of(output).backward()

    return call


def reverse_call(b):
    rows = fd.samplers.ddpm(b.schedule)
    return lambda: fd.reverse_step(b.output, b.x_0, b.t, rows, b.key)


def step_call(b):
    ddpm = scheduler()
    return lambda: ddpm.step(b.output, STEP, b.x_0)


CALLS = {
    ("call: noising", "fastddpm"): lambda b: lambda: fd.q_sample(b.x_0, b.t, b.schedule, b.key),
    ("call: noising", "diffusers, eager"): lambda b: lambda: SCHEDULER.add_noise(b.x_0, torch.randn_like(b.x_0), b.t),
    ("call: loss + backward", "fastddpm"): lambda b: backward_of(lambda out: fd.mse_loss(out, b.t, b.schedule, b.key), b),
    ("call: loss + backward", "F.mse_loss, eager"): lambda b: backward_of(lambda out: F.mse_loss(out, b.x_0), b),
    ("call: reverse step", "fastddpm"): reverse_call,
    ("call: reverse step", "diffusers, eager"): step_call,
    ("call: noise_key", "fastddpm"): lambda b: lambda: fd.noise_key(3, 5, 128),
    ("call: timesteps", "fastddpm"): lambda b: lambda: fd.timesteps(b.key, 1000),
}


@pytest.mark.parametrize("stage, provider", CALLS)
def bench_call(timed, stage, provider):
    timed(CALLS[stage, provider](Batch(SHAPE)), stage, SHAPE, provider)
