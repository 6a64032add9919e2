"""The reverse update with a key against diffusers' DDPMScheduler.step, eager and its formula compiled."""

import pytest
import torch
from diffusers import DDPMScheduler

import fastddpm as fd

from .conftest import Batch, check, shape_id

SHAPES = ((16, 3, 32, 32), (64, 3, 64, 64))
STEP = 500


def scheduler():
    scheduler = DDPMScheduler(1000)
    scheduler.set_timesteps(1000)
    return scheduler


def eager(b):
    ddpm = scheduler()
    return lambda: ddpm.step(b.output, STEP, b.x_0)


def compiled(b):
    row = fd.samplers.ddpm(b.schedule).table[STEP].float().tolist()

    @torch.compile
    def step(out, x):
        p_x, p_o, bound, k_x, k_0, _, sigma = row
        x_0 = (p_x * x + p_o * out).clamp(-bound, bound)
        return k_x * x + k_0 * x_0 + sigma * torch.randn_like(x), x_0

    return lambda: step(b.output, b.x_0)


def fused(b):
    rows = fd.samplers.ddpm(b.schedule)

    def call():
        return fd.reverse_step(b.output, b.x_0, STEP, rows, b.key)

    quiet = fd.reverse_step(b.output, b.x_0, STEP, rows)[0]
    z = fd.randn(b.key, b.x_0.shape)
    check(call()[0], quiet + z * rows.table[STEP, -1].float(), "reverse_step")
    check(call()[1], eager(b)().pred_original_sample, "x_0_hat")
    return call


PROVIDERS = {"fastddpm": fused, "diffusers, eager": eager, "torch.compile": compiled}


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
@pytest.mark.parametrize("provider", PROVIDERS)
def bench_reverse(timed, shape, provider):
    timed(PROVIDERS[provider](Batch(shape)), "reverse step", shape, provider)
