"""Whole training steps and sampling loops as CUDA graphs (docs/graphs.md), beside the same uncaptured and diffusers' pipeline.
For gpu.sh's stage `loops`: on a CPU nothing is captured.
"""

import copy
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch

import fastddpm as fd

from . import clock, machine, peers
from .networks import NETWORKS
from .ops import FUSED

BUDGET = 8.0
"""Seconds that a case's rounds may fill."""
STEPS = 50
"""Of a sampling loop."""
UNCAPTURED = f"{FUSED}, uncaptured"
SCHEDULE = fd.NoiseSchedule.linear(1000)


def training(name: str, batch: int) -> dict[str, Callable[[], Any]]:
    """{provider: nothing -> a training step}, each with a network of its own."""
    return {FUSED: _step(name, batch, capture=True), UNCAPTURED: _step(name, batch, capture=False)}


def _step(name: str, batch: int, capture: bool) -> Callable[[], Any]:
    torch.manual_seed(0)
    network = NETWORKS[name].make().to(machine.DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, capturable=machine.DEVICE.type == "cuda")
    key, average = fd.noise_key(0, 0, batch, device=machine.DEVICE), copy.deepcopy(network).requires_grad_(False)
    step = fd.GraphedTrainingStep(
        fd.GaussianDiffusion(SCHEDULE), network, optimizer, key, average, clip_norm=1.0, capture=capture
    )
    x_0 = torch.rand((batch, *NETWORKS[name].sample_shape), device=machine.DEVICE) * 2 - 1
    return lambda: step(x_0)


def sampling(name: str, batch: int) -> dict[str, Callable[[], Any]]:
    """{provider: nothing -> images}, all of one network."""
    torch.manual_seed(0)
    network, shape = NETWORKS[name].make().to(machine.DEVICE).eval(), (batch, *NETWORKS[name].sample_shape)
    diffusion, seeds = fd.GaussianDiffusion(SCHEDULE), itertools.count(1)
    captured = fd.GraphedSampler(diffusion, network, shape, steps=STEPS)

    def uncaptured(seed: int | None = None) -> torch.Tensor:
        return diffusion.sample(network, shape, steps=STEPS, seed=next(seeds) if seed is None else seed, progress=False)

    torch.testing.assert_close(captured(0), uncaptured(0), rtol=1e-3, atol=1e-3)
    made = {FUSED: lambda: captured(next(seeds)), UNCAPTURED: uncaptured}
    return made | ({"diffusers": peers.pipeline(network, shape, STEPS)} if "diffusers" in peers.installed() else {})


KINDS = {"whole training step": training, f"whole loop of {STEPS} steps": sampling}


def measure(name: str, batch: int, kind: str) -> list[dict]:
    """A record for each provider.

    Raises:
        LeftOutError: it would take longer than a case may.
        AssertionError: a captured loop's images are not the uncaptured one's.
    """
    calls = KINDS[kind](name, batch)
    for call in calls.values():
        call()  # what is captured is captured here
    clock.check_time(statistics.fmean(map(clock.seconds, calls.values())), len(calls))
    return clock.records(kind, name, batch, clock.in_turn(calls, BUDGET))
