"""Forward noising: q_sample with a key against randn_like + diffusers' add_noise, eager and compiled."""

import pytest
import torch
from diffusers import DDPMScheduler

import fastddpm as fd

from .conftest import LARGE, SMALL, Batch, check, shape_id

SCHEDULER = DDPMScheduler(1000)


def eager(b):
    return SCHEDULER.add_noise(b.x_0, torch.randn_like(b.x_0), b.t)


def compiled(b):
    abar = SCHEDULER.alphas_cumprod

    @torch.compile
    def add_noise(x_0, t):
        a = abar[t].view(-1, 1, 1, 1)
        return a.sqrt() * x_0 + (1 - a).sqrt() * torch.randn_like(x_0)

    return lambda: add_noise(b.x_0, b.t)


def fused(b):
    def call():
        return fd.q_sample(b.x_0, b.t, b.schedule, b.key)

    check(call(), SCHEDULER.add_noise(b.x_0, fd.randn(b.key, b.x_0.shape), b.t), "q_sample")
    return call


PROVIDERS = {
    "fastddpm": fused,
    "fastddpm, channels_last": fused,
    "diffusers, eager": lambda b: lambda: eager(b),
    "torch.compile": compiled,
    "a copy": lambda b: lambda: b.x_0.clone(),
}


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=shape_id)
@pytest.mark.parametrize("provider", PROVIDERS)
def bench_noising(timed, shape, provider):
    batch = Batch(shape, torch.channels_last if "channels_last" in provider else torch.contiguous_format)
    timed(PROVIDERS[provider](batch), "noising", shape, provider)
