"""Loop level: a training step and a step of sampling, whole, with a network; and where its time goes.

The network, the optimizer and the moving average are the same objects whoever provides the rest.
"""

import copy
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

import fastddpm as fd

from . import clock, eager, machine, peers
from .networks import NETWORKS
from .ops import COMPILED, FUSED, why_not_compiled

BUDGET = 8.0
"""Seconds that a case's rounds may fill."""
FIRST, SAMPLED = 500, 3
"""Where sampling is timed on its chain, and how many steps at a time."""
TRAIN_PARTS = ("noising", "network forward", "loss", "network backward", "optimizer", "EMA")
SAMPLE_PARTS = ("network forward", "reverse step")


class Parts:
    """Splits steps at their marks. On a GPU by events in its stream, so that nothing waits."""

    def __init__(self):
        self.marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """The part that ends here; "begin" ends none."""
        if machine.DEVICE.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self.marks.append((part, event))

    def medians(self) -> dict[str, float]:
        """{part: seconds}."""
        clock.drain()
        times: dict[str, list[float]] = defaultdict(list)
        for (_, before), (part, after) in itertools.pairwise(self.marks):
            if part != "begin":
                times[part].append(before.elapsed_time(after) / 1e3 if machine.DEVICE.type == "cuda" else after - before)
        return {part: statistics.median(values) for part, values in times.items()}


class Loop:
    """A network at a batch size, in training and in sampling, with any provider of the rest."""

    def __init__(self, name: str, batch: int):
        torch.manual_seed(0)
        network = NETWORKS[name]
        self.parts = Parts()
        self.shape = (batch, *network.sample_shape)
        self.network = network.make().to(machine.DEVICE)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, fused=True)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.update_average = get_ema_multi_avg_fn(0.999)
        self.schedule = fd.NoiseSchedule.linear(1000)
        self.x_0 = torch.rand(self.shape, device=machine.DEVICE) * 2 - 1
        self.parameters = sum(p.numel() for p in self.network.parameters())

    def model(self, x: Tensor, t: Tensor) -> Tensor:
        """The network; what came before it, and its loss's gradient, end with marks."""
        self.parts.mark("noising")
        output = self.network(x, t)
        output = output if isinstance(output, Tensor) else output.sample
        self.parts.mark("network forward")
        if output.requires_grad:
            output.register_hook(lambda grad: self.parts.mark("loss"))
        return output

    def train(self, loss_of: Callable[[], Tensor], parts: Parts) -> None:
        self.parts = parts
        parts.mark("begin")
        loss_of().backward()
        parts.mark("network backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        parts.mark("optimizer")
        self.update_average(list(self.average.parameters()), list(self.network.parameters()), None)
        parts.mark("EMA")

    @torch.no_grad()
    def walk(self, step: Callable[[Tensor, int], Tensor], parts: Parts) -> None:
        self.parts, x = parts, self.x_0
        parts.mark("begin")
        for i in range(FIRST, FIRST - SAMPLED, -1):
            x = step(x, i)
            parts.mark("reverse step")

    @contextmanager
    def answering(self, network: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """With another network for a while."""
        before, self.network = self.network, network
        try:
            yield
        finally:
            self.network, self.parts = before, Parts()

    # ---- training losses: nothing -> loss ----

    def losses(self) -> dict[str, Callable[[], Tensor]]:
        """{provider: a training step's loss}."""
        k = eager.Tables.of(self.schedule, machine.DEVICE)
        losses = {FUSED: self._fused_loss(), "eager": self._eager_loss(k, eager.draw, eager.mse_loss)}
        if not why_not_compiled():
            losses[COMPILED] = self._eager_loss(k, *(torch.compile(f, dynamic=True) for f in (eager.draw, eager.mse_loss)))
        if "diffusers" in peers.installed():
            losses["diffusers"] = self._diffusers_loss()
        if "lucidrains" in peers.installed() and len(self.shape) == 4:
            theirs = peers.lucidrains(self.model, self.shape, machine.DEVICE)
            losses["lucidrains"] = lambda: theirs.p_losses(self.x_0, self._any_t())
        return losses

    def _any_t(self) -> Tensor:
        return torch.randint(0, 1000, self.shape[:1], device=machine.DEVICE)

    def _fused_loss(self):
        diffusion, steps = fd.GaussianDiffusion(self.schedule), itertools.count()

        def loss():
            key = fd.noise_key(0, next(steps), self.shape[0], device=machine.DEVICE)
            return diffusion.training_loss(self.model, self.x_0, key)

        return loss

    def _eager_loss(self, k, draw, mse):
        def loss():
            t = self._any_t()
            x_t, z = draw(self.x_0, t, k)
            return mse(self.model(x_t, t), z)

        return loss

    def _diffusers_loss(self):
        scheduler = peers.scheduler()

        def loss():
            t, noise = self._any_t(), torch.randn_like(self.x_0)
            return F.mse_loss(self.model(scheduler.add_noise(self.x_0, noise, t), t), noise)

        return loss

    def check_losses(self, losses: dict) -> None:
        """Against a network that answers 0, the loss is the mean square of a normal."""
        with self.answering(lambda x, t: torch.zeros_like(x, requires_grad=True)):
            allowed = 5 * (2 / self.x_0.numel()) ** 0.5
            for name, loss in losses.items():
                value = float(loss().detach())
                assert abs(value - 1) < allowed, f"{name}'s loss of an answer of 0 is {value:.3g}, expected 1 +- {allowed:.2g}"

    # ---- sampling: (x, i) -> x ----

    def steps(self) -> dict[str, Callable[[Tensor, int], Tensor]]:
        """{provider: (x, i) -> the x before it}."""
        steps = {FUSED: self._fused_step(), "eager": self._eager_step(eager.draw_step)}
        if not why_not_compiled():
            steps[COMPILED] = self._eager_step(torch.compile(eager.draw_step, dynamic=True))
        if "diffusers" in peers.installed():
            steps["diffusers"] = self._diffusers_step()
        if "lucidrains" in peers.installed() and len(self.shape) == 4:
            theirs = peers.lucidrains(self.model, self.shape, machine.DEVICE)
            steps["lucidrains"] = lambda x, i: theirs.p_sample(x, i)[0]
        return steps

    def _fused_step(self):
        rows = fd.samplers.ddpm(self.schedule)
        key = fd.noise_key(0, 0, self.shape[0], stream=1, device=machine.DEVICE)
        t = rows.timesteps.to(machine.DEVICE)

        def step(x, i):
            x, _ = fd.reverse_step(self.model(x, t[i].expand(len(x))), x, i, rows, key, return_x_0=False)
            fd.advance(key)
            return x

        return step

    def _eager_step(self, formula):
        walked = range(FIRST - SAMPLED, FIRST + 1)
        table = torch.tensor([eager.numbers(self.schedule, i) for i in walked]).to(machine.DEVICE)
        rows, t = dict(zip(walked, table, strict=True)), torch.arange(1000, device=machine.DEVICE)
        return lambda x, i: formula(self.model(x, t[i].expand(len(x))), x, rows[i])[0]

    def _diffusers_step(self):
        scheduler = peers.scheduler()
        t = {int(i): i for i in scheduler.timesteps}
        return lambda x, i: scheduler.step(self.model(x, t[i].to(x.device).expand(len(x))), t[i], x).prev_sample

    @torch.no_grad()
    def check_steps(self, steps: dict) -> None:
        """What a step adds to its mean, over its deviation, must look normal."""
        k = eager.numbers(self.schedule, FIRST)
        with self.answering(lambda x, t: torch.zeros_like(x)):
            mean, _ = eager.step(torch.zeros_like(self.x_0), self.x_0, k, 0.0)
            allowed = 5 / self.x_0.numel() ** 0.5
            for name, step in steps.items():
                z = (step(self.x_0, FIRST) - mean) / k[-1]
                assert abs(float(z.mean())) < allowed and abs(float(z.square().mean()) - 1) < 1.5 * allowed, (
                    f"{name}'s step is off"
                )


# ---- the measurement ----


def measure(name: str, batch: int, kind: str) -> list[dict]:
    """A record for each provider of a "train" or a "sample" step.

    Raises:
        LeftOutError: it would take longer than a case may.
        AssertionError: a provider's step is not what it claims.
    """
    loop = Loop(name, batch)
    if kind == "train":
        run, providers, check, count = loop.train, loop.losses(), loop.check_losses, 1
    else:
        run, providers, check, count = loop.walk, loop.steps(), loop.check_steps, SAMPLED
    check({FUSED: providers[FUSED]})
    clock.check_time(clock.seconds(partial(run, providers[FUSED], Parts())), len(providers))
    check(providers)
    parts = {provider: Parts() for provider in providers}
    calls = {provider: partial(run, what, parts[provider]) for provider, what in providers.items()}
    times = clock.in_turn(calls, BUDGET)
    about = {"level": "loop", "op": kind, "parameters": loop.parameters, "shape": loop.shape}
    return [
        {**about, **record, "parts": _named(parts[record["provider"]].medians(), kind)}
        for record in clock.records(f"loop/{kind}", name, batch, times, count)
    ]


def _named(parts: dict[str, float], kind: str) -> dict[str, float]:
    """In sampling what comes before the network is a part of the step too."""
    if kind == "train":
        return parts
    return {"network forward": parts["network forward"], "reverse step": parts["reverse step"] + parts["noising"]}
