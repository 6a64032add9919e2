"""`python -m benchmarks.updates`: clipping, AdamW and the moving average, by fastddpm.optim.AdamW and by torch.

Fills the tables of docs/optimizer.md. "tuned" is torch at its best: clip_grad_norm_, AdamW(fused=True), the multi-tensor
average; "stock" what most loops have: clip_grad_norm_, AdamW as it comes, diffusers' EMAModel.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

import fastddpm as fd
from fastddpm.optim import AdamW

from . import clock, table
from .docs import ROOT, between, markdown
from .networks import NETWORKS

OURS, TUNED, STOCK = "fastddpm", "tuned", "stock"
BUDGET = 6.0
"""Seconds a row."""
LR, CLIP, DECAY = 1e-5, 1.0, 0.9999
STEPS = {"mlp": 16}
"""The networks of which a whole training step is timed, and its batch."""


def updates(network: nn.Module) -> dict[str, tuple[nn.Module, Callable[[], None]]]:
    """{provider: a network of its own and the update of its weights}."""
    from diffusers.training_utils import EMAModel

    networks = {name: copy.deepcopy(network) for name in (OURS, TUNED, STOCK)}
    params = {name: list(each.parameters()) for name, each in networks.items()}
    ours = AdamW(params[OURS], LR, max_grad_norm=CLIP, ema_decay=DECAY)
    tuned, average = torch.optim.AdamW(params[TUNED], LR, fused=True), [p.detach().clone() for p in params[TUNED]]
    stock, ema = torch.optim.AdamW(params[STOCK], LR), EMAModel(params[STOCK], decay=DECAY)
    lerp = get_ema_multi_avg_fn(DECAY)

    def by_torch(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], then: Callable[[], None]) -> None:
        clip_grad_norm_(weights, CLIP)
        optimizer.step()
        then()

    return {
        OURS: (networks[OURS], ours.step),
        TUNED: (networks[TUNED], partial(by_torch, tuned, params[TUNED], lambda: lerp(average, params[TUNED], 1))),
        STOCK: (networks[STOCK], partial(by_torch, stock, params[STOCK], lambda: ema.step(params[STOCK]))),
    }


def alone(name: str) -> dict[str, Callable[[], None]]:
    """Updates with gradients that stay."""
    calls = updates(NETWORKS[name].make())
    for seed, p in enumerate(calls[OURS][0].parameters()):
        g = 1e-2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        for network, _ in calls.values():
            list(network.parameters())[seed].grad = g.clone()
    return {provider: update for provider, (_, update) in calls.items()}


def whole(name: str) -> dict[str, Callable[[], None]]:
    """Training steps, all but the update by fastddpm; the gradients are dropped and made anew, as in most loops."""
    batch, shape = STEPS[name], NETWORKS[name].sample_shape
    diffusion, x_0 = fd.GaussianDiffusion(fd.NoiseSchedule.linear(1000)), torch.rand(batch, *shape) * 2 - 1
    key = fd.noise_key(0, 0, batch)

    def step(network: nn.Module, update: Callable[[], None]) -> None:
        diffusion.training_loss(network, x_0, key).backward()
        update()
        network.zero_grad()
        fd.advance(key)

    return {provider: partial(step, *given) for provider, given in updates(NETWORKS[name].make()).items()}


def _row(title: str, calls: dict[str, Callable[[], None]]) -> list[str]:
    times = clock.in_turn(calls, BUDGET)
    ratios = [table.ratio({"ratio": clock.ratio(times, name, OURS)}) for name in (TUNED, STOCK)]
    row = [title, *(table.duration(clock.spread(times[name])["median"]) for name in (OURS, TUNED, STOCK)), *ratios]
    print(" | ".join(row), flush=True)
    return row


def speeds() -> str:
    rows = []
    for name, network in NETWORKS.items():
        params = [p.numel() for p in network.make().parameters()]
        rows.append(_row(f"the update, {network.title}, {sum(params) / 1e6:.2f} M in {len(params)} tensors", alone(name)))
    rows += [_row(f"a training step, {NETWORKS[name].title}, batch {batch}", whole(name)) for name, batch in STEPS.items()]
    return markdown(["", "fastddpm", "torch, tuned", "torch, stock", "over tuned", "over stock"], rows)


def main() -> None:
    document = ROOT / "docs" / "optimizer.md"
    document.write_text(between(document.read_text(), "updates", lambda name: speeds()))


if __name__ == "__main__":
    main()
