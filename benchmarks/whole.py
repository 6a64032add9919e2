"""Whole sampling loops, from noise to images: `GaussianDiffusion.sample` beside diffusers' scheduler in its pipelines' loop."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

import fastddpm as fd

from . import clock, machine, peers, solvers
from .inputs import STEPS
from .networks import NETWORKS
from .ops import FUSED, LeftOutError

OPS = ("ddim", "dpmpp_2m")
BUDGET = 4.0
"""Seconds a case."""


def calls(op: str, network: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, Callable[..., Tensor]]:
    """{provider: (x_T, drawn where it is not given) -> images}.

    Raises:
        AssertionError: from the same x_T they come to different images.
        LeftOutError: there is nothing to set beside.
    """
    if "diffusers" not in peers.installed():
        raise LeftOutError("diffusers, whose loop it is set beside, is not installed")
    name = solvers.NAMES[op]
    diffusion, seeds = fd.GaussianDiffusion(fd.NoiseSchedule.linear(1000)), itertools.count()

    def ours(x_t: Tensor | None = None) -> Tensor:
        return diffusion.sample(network, shape, name, STEPS, seed=next(seeds), x_T=x_t, progress=False)

    theirs = peers.sampling_loop(peers.scheduler_of(op), network, shape, STEPS)
    x_t = torch.randn(shape, device=machine.DEVICE)
    torch.testing.assert_close(ours(x_t), theirs(x_t), rtol=1e-4, atol=1e-4)
    return {FUSED: ours, "diffusers": theirs}


def measure(op: str, name: str, batch: int) -> list[dict]:
    """A record for each provider."""
    torch.manual_seed(0)
    network, shape = NETWORKS[name].make().to(machine.DEVICE).eval(), (batch, *NETWORKS[name].sample_shape)
    times = clock.in_turn(calls(op, network, shape), BUDGET)
    about = {"level": "loop", "op": op, "parameters": sum(p.numel() for p in network.parameters()), "shape": shape}
    return [{**about, **record} for record in clock.records(f"loop/{op}", name, batch, times)]
