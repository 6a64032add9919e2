"""What a training step's parts cost, with fastddpm and in eager: measured on the trained network, printed as it is."""

import copy
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import q_sample, timesteps
from .checkpoint import write_atomically
from .config import AUTOCASTS, TrainConfig
from .eager import EagerLoss, EagerUpdate
from .network import make_scheduler
from .trainer import BETAS, CLIP_NORM, Trainer, learning_rate, make_optimizer, set_learning_rate

STAGES = ("noising", "network", "loss", "update")
WARMUP_STEPS = 3


def stages(config: TrainConfig) -> tuple[str, ...]:
    """The rows of a run's table."""
    return (*STAGES, "importance") if config.timestep_sampling == "importance" else STAGES


def measure_step(trainer: Trainer, steps: int = 25) -> dict[str, dict[str, float]]:
    """Median milliseconds of each stage of a step at the run's batch size, on copies: the run itself is not touched.

    The network and importance sampling (a draw, and the update of its state) are the same code in both columns, so each is
    timed once. A loss's row is its forward and its backward to the network's output; the network's is its forward and the
    backward from there; the update's clipping, optimizer and average.

    Returns:
        {stage: {"fastddpm": ms, "eager": ms}}, a "total" last.
    """
    clock = _Clock(trainer.device)
    step = _Step(trainer, clock)
    for i in range(WARMUP_STEPS + steps):
        if i == WARMUP_STEPS:
            clock.times.clear()
        step.run(i)
    names = {stage: (stage, stage) for stage in stages(trainer.config)}
    names |= {stage: (stage, f"eager {stage}") for stage in ("noising", "loss", "update")}
    rows = {stage: dict(zip(("fastddpm", "eager"), map(clock.median, pair), strict=True)) for stage, pair in names.items()}
    rows["total"] = {column: sum(row[column] for row in rows.values()) for column in ("fastddpm", "eager")}
    return rows


class _Clock:
    """Wall time of calls, with the device drained before and after."""

    def __init__(self, device: torch.device):
        self.device = device
        self.times: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        self._drain()
        start = time.perf_counter()
        result = call()
        self._drain()
        self.times[name].append(time.perf_counter() - start)
        return result

    def median(self, name: str) -> float:
        return 1e3 * statistics.median(self.times[name])

    def _drain(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Step:
    """A training step taken apart, its noising and loss made both ways on the same data."""

    def __init__(self, trainer: Trainer, clock: _Clock):
        self.trainer, self.clock = trainer, clock
        self.config: TrainConfig = trainer.config
        self.diffusion, self.schedule = trainer.diffusion, trainer.diffusion.schedule
        self.scheduler = make_scheduler(self.config)
        self.eager_loss = EagerLoss(self.config, self.schedule, trainer.device)
        self.t_sampler = copy.deepcopy(trainer.t_sampler)
        self.network = copy.deepcopy(trainer.network)
        if self.config.compile:  # which no copy inherits
            self.network.compile()
        self.optimizer = make_optimizer(self.network, self.config)
        self.eager_update = EagerUpdate(self.network, self.config, BETAS, CLIP_NORM)

    def run(self, i: int) -> None:
        x_0, model_kwargs = self.trainer.batch(i)
        noise, eager_t, eager_x_t = self.clock("eager noising", lambda: self._eager_noising(x_0))
        key, t, x_t = self.clock("noising", lambda: self._noising(x_0, i))
        output, forward = self._timed_forward(x_t, t, model_kwargs)
        eager = (x_0, eager_x_t, noise, eager_t)
        self.clock("eager loss", lambda: self._gradient(output, lambda out: self.eager_loss(out, *eager)))
        grad = self.clock("loss", lambda: self._gradient(output, lambda out: self.diffusion.loss_of(out, x_0, x_t, t, key)))
        self.clock("importance", lambda: self._importance(key, t))
        self.clock("network", lambda: output.backward(grad))
        self.clock.times["network"][-1] += forward
        self.eager_update.take_gradients()
        self.clock("eager update", lambda: self.eager_update(learning_rate(self.config, i)))
        self.clock("update", lambda: self._update(i))

    def _noising(self, x_0: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
        key = self.trainer.key(i)
        t = timesteps(key, self.config.timesteps)
        return key, t, q_sample(x_0, t, self.schedule, key)

    def _eager_noising(self, x_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn_like(x_0)
        t = torch.randint(0, self.config.timesteps, (len(x_0),), device=x_0.device)
        return noise, t, self.scheduler.add_noise(x_0, noise, t)

    def _importance(self, key: Tensor, t: Tensor) -> None:
        if self.t_sampler is not None:
            self.t_sampler.sample(key)
            self.t_sampler.update(t, torch.ones(len(t), device=t.device))

    def _update(self, i: int) -> None:
        set_learning_rate(self.optimizer, learning_rate(self.config, i))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _timed_forward(self, x_t: Tensor, t: Tensor, model_kwargs: dict[str, Tensor]) -> tuple[Tensor, float]:
        autocast = AUTOCASTS[self.config.precision]
        with torch.autocast(x_t.device.type, autocast, enabled=autocast is not None):
            output = self.clock("forward", lambda: self.network(x_t, t, **model_kwargs).sample)
        return output, self.clock.times["forward"][-1]

    @staticmethod
    def _gradient(output: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = output.detach().requires_grad_()
        loss(leaf).backward()
        assert leaf.grad is not None
        return leaf.grad


def format_table(rows: dict[str, dict[str, float]], title: str) -> str:
    """Lines of text; the ratio is eager over fastddpm."""
    head = f"{'ms a step':<12}{'fastddpm':>10}{'eager':>10}{'ratio':>9}"
    body = [
        f"{stage:<12}{row['fastddpm']:>10.3f}{row['eager']:>10.3f}{row['eager'] / row['fastddpm']:>8.2f}x"
        for stage, row in rows.items()
    ]
    rule = "-" * len(head)
    return "\n".join((title, head, rule, *body[:-1], rule, body[-1]))


def save_table(rows: dict[str, dict[str, float]], path: Path) -> None:
    text = json.dumps({"unit": "median milliseconds a step", "stages": rows}, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
