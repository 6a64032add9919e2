"""Noise -> x_t -> loss -> gradient of the network's output, the network left out."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

import fastddpm as fd

from .conftest import LARGE, SMALL, Batch, check, shape_id

SCHEDULER = DDPMScheduler(1000)


def eager_step(x_0, t, output):
    noise = torch.randn_like(x_0)
    x_t = SCHEDULER.add_noise(x_0, noise, t)
    F.mse_loss(output, noise).backward()
    return x_t


def eager(b):
    def call():
        output = b.output.detach().requires_grad_()
        return eager_step(b.x_0, b.t, output), output.grad

    return call


def compiled(b):
    abar = SCHEDULER.alphas_cumprod

    @torch.compile
    def forward(x_0, t, output):
        a = abar[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(x_0)
        return a.sqrt() * x_0 + (1 - a).sqrt() * noise, F.mse_loss(output, noise)

    def call():
        output = b.output.detach().requires_grad_()
        x_t, loss = forward(b.x_0, b.t, output)
        loss.backward()
        return x_t, output.grad

    return call


def fused(b):
    def call():
        output = b.output.detach().requires_grad_()
        x_t = fd.q_sample(b.x_0, b.t, b.schedule, b.key)
        fd.mse_loss(output, b.t, b.schedule, b.key).backward()
        return x_t, output.grad

    noise = fd.randn(b.key, b.x_0.shape)
    check(call()[1], 2 * (b.output - noise) / noise.numel(), "the gradient")
    return call


PROVIDERS = {
    "fastddpm": fused,
    "fastddpm, channels_last": fused,
    "diffusers + F.mse_loss, eager": eager,
    "torch.compile": compiled,
}


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=shape_id)
@pytest.mark.parametrize("provider", PROVIDERS)
def bench_loss(timed, shape, provider):
    batch = Batch(shape, torch.channels_last if "channels_last" in provider else torch.contiguous_format)
    timed(PROVIDERS[provider](batch), "noising + loss + gradient", shape, provider)
