"""The training loop. A run lives in a folder; stopped at any moment and resumed, it ends with the weights of an unbroken one.

A step depends on the weights, the state of the optimizer, of the average, of torch's generators (dropout) and of importance
sampling where it is used, and the step number: the batch, its labels, t and the noise are functions of (seed, step) and, with
importance sampling, its state. So that is what a checkpoint holds.

Of several ranks each trains on its share of every batch, with the noise and t that those samples have in the whole.
"""

import copy
import itertools
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor
from tqdm.auto import tqdm

from .. import noise_key
from ..graphs import GraphedTrainingStep
from ..optim import AdamW, Average
from . import checkpoint, ranks
from .config import AUTOCASTS, TrainConfig, UsageError
from .data import BatchOrder, as_float, drop_labels, fingerprint, has_digest, load
from .folder import workers_watched
from .metrics import Metrics
from .network import make_network

WARMUP = 100
BETAS, CLIP_NORM = (0.9, 0.99), 1.0


def train(config: TrainConfig, out: Path | str, overwrite: bool = False) -> "Trainer":
    """Trains a new run in the folder `out`, to its end or until a signal stops it.

    Raises:
        UsageError: `out` holds a run already (and `overwrite` is False), or the data can't be used.
    """
    out = Path(out)
    if checkpoint.exists(out) and not overwrite:
        raise UsageError(
            f"out: expected a folder without a run, got '{out}': go on with --resume, or begin anew with --overwrite"
        )
    trainer = Trainer(config, out)
    out.mkdir(parents=True, exist_ok=True)
    trainer.save()
    trainer.run()
    return trainer


def resume(out: Path | str, **changes: Any) -> "Trainer":
    """Goes on with the run in `out` from its last checkpoint. Of its settings `changes` may be those of `config.FREE`.

    The bits are those of an unbroken run on the same machine with the same number of threads, on which a network's sums depend.

    Raises:
        UsageError: no run there, settings or data that differ from the run's.
    """
    out = Path(out)
    state = checkpoint.load(out, "cpu")
    saved = TrainConfig(**state["config"])
    config = TrainConfig(**{**state["config"], **changes})
    config.check_resumable(saved, state["step"])
    trainer = Trainer(config, out)
    trainer.restore(state)
    trainer.run()
    return trainer


class Trainer:
    """A run: its network, optimizer, averaged weights and data, at some step.

    Attributes:
        step: optimizer steps made.
        batch_size: this rank's images a step, those of `share` in the whole batch.
        stopped_by: the signal that ended `run` before its time, or None.
    """

    def __init__(self, config: TrainConfig, out: Path):
        self.config, self.out, self.step = config, out, 0
        self.share = self._share()
        self.batch_size = self.share.stop - self.share.start
        self.weight = self.batch_size / config.batch_size
        self.stopped_by: signal.Signals | None = None
        self.device = pick_device()
        if config.graph == "on" and (self.device.type != "cuda" or ranks.count() > 1):
            raise UsageError("graph: expected auto or off without a GPU, and on several ranks, got 'on'")
        data = load(config.data, config.image_size, config.channels, config.class_conditional)
        self.fingerprint, self.classes, self.data = fingerprint(data), data.classes, data.to(self.device)
        self.order = BatchOrder(len(data.images), config.batch_size, config.seed, self.device)
        self._batches: Iterator[tuple[Tensor, Tensor | None]] = iter(())
        self._next = -1
        self.diffusion = config.diffusion()
        self.t_sampler = config.t_sampler(self.device)
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        network = make_network(config, self.data.images.shape[1:], len(self.classes))
        self.network = network.to(self.device, memory_format=self.memory_format)
        self.optimizer = make_optimizer(self.network, config)
        if config.compile:
            self.network.compile()  # in place: parameters and checkpoints keep their names
        self.graphed = GraphedTrainingStep(
            self.diffusion,
            ranks.parallel(self.network, self.weight),
            self.optimizer,
            self.key(0),
            autocast=AUTOCASTS[config.precision],
            t_sampler=self.t_sampler,
            capture=config.graph != "off" and ranks.count() == 1,
        )
        self.metrics = Metrics(out / "metrics.jsonl", config.log_every, self.device, self.weight)
        torch.manual_seed(config.seed + ranks.rank())  # dropout

    @property
    def average(self) -> UNet2DModel:
        """A network with the averaged weights."""
        network = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.averages.copy_to(network)
        return network

    @property
    def averages(self) -> Average:
        assert self.optimizer.average is not None
        return self.optimizer.average

    def _share(self) -> slice:
        size, importance = self.config.batch_size, self.config.timestep_sampling == "importance"
        if size < ranks.count():
            raise UsageError(f"batch_size: expected {ranks.count()} or more on as many ranks, got {size}")
        if importance and size % ranks.count():  # they take in each other's losses, as many from each
            raise UsageError(
                f"batch_size: expected a multiple of the {ranks.count()} ranks with timestep_sampling importance, got {size}"
            )
        return ranks.share(size)

    def run(self) -> None:
        """Trains up to `config.steps`, saving now and then; SIGINT and SIGTERM end it after the current step, saved."""
        self.metrics.start(self.step)
        self.network.train()
        stopped = False  # all ranks after the same step
        with self._signals(), workers_watched(), self._bar() as bar:
            while self.step < self.config.steps and not stopped:
                signalled = ranks.largest(self._signalled)
                self.metrics.add(self.step, self.train_step())
                self.step += 1
                bar.update()
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    bar.set_postfix(self.metrics.write(self.step, self.config.batch_size))
                if self.step % self.config.checkpoint_every == 0:
                    self.save()
                stopped = signalled() > 0
            self.save()
        by = ranks.largest(self._signalled)()
        self.stopped_by = signal.Signals(by) if by else None

    def _signalled(self) -> int:
        return int(self.stopped_by or 0)

    def _bar(self) -> tqdm:
        options = {"total": self.config.steps, "initial": self.step, "disable": ranks.rank() > 0}
        return tqdm(desc="training", unit="step", **options)

    def train_step(self) -> Tensor:
        """One step. Nothing in it is read by the host; the loss, of this rank's samples, stays on the device."""
        x_0, model_kwargs = self.batch(self.step)
        self.graphed.key.copy_(self.key(self.step))
        set_learning_rate(self.optimizer, learning_rate(self.config, self.step))
        return self.graphed(x_0, model_kwargs)

    def key(self, step: int, stream: str = "training") -> Tensor:
        """Of this rank's samples of a step."""
        return noise_key(self.config.seed, step, self.batch_size, self.share.start, stream, self.device)

    def batch(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's images of a step and what else the network is given, functions of (seed, step)."""
        if step != self._next:
            order, share = self.order, self.share  # not self: workers end when nothing holds their batches
            self._batches = self.data.batches((order.indices(i)[share] for i in itertools.count(step)), self.config.workers)
        self._next = step + 1
        images, labels = next(self._batches)
        x_0 = as_float(images.to(self.device, non_blocking=True)).contiguous(memory_format=self.memory_format)
        if labels is None:
            return x_0, {}
        key, labels = self.key(step, "label_dropping"), labels.to(self.device)
        return x_0, {"class_labels": drop_labels(labels, key, self.config.drops_labels, len(self.classes))}

    def save(self) -> None:
        """By rank 0, for any number of ranks to go on from."""
        generators, metrics = ranks.of_all(_generators(self.device)), self.metrics.state_dict()
        if ranks.rank() > 0:
            return
        checkpoint.save(
            self.out,
            {
                "config": self.config.to_dict(),
                "step": self.step,
                "data": self.fingerprint,
                "classes": list(self.classes),
                "image_shape": list(self.data.images.shape[1:]),
                "network": self.network.state_dict(),
                "average": self.averages.weights_of(self.network),
                "optimizer": self.optimizer.state_dict(),
                "metrics": metrics,
                "t_sampler": None if self.t_sampler is None else self.t_sampler.state_dict(),
                "generators": generators,
            },
            self.config.keep,
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Back to the moment of `save`.

        Raises:
            UsageError: the data is not what the run began with.
        """
        if self.fingerprint != state["data"] and not has_digest(self.data, state["data"]):
            raise UsageError(f"data: expected the images that the run began with, got others in '{self.config.data}'")
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.load_weights(self.network, state["average"])
        self.metrics.load_state_dict(state["metrics"])
        if self.t_sampler is not None:
            self.t_sampler.load_state_dict(state["t_sampler"])
        generators = state["generators"]
        if ranks.rank() < len(generators):  # another goes on as it began
            _set_generators(generators[ranks.rank()], self.device)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM asks the loop to stop; a second one meets the handler that was there before. (Not on
        several ranks, which torchrun sends one after the terminal has.)"""

        def stop(number: int, frame: object) -> None:
            self.stopped_by = signal.Signals(number)
            if ranks.count() == 1:
                restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            restore()


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_optimizer(network: UNet2DModel, config: TrainConfig) -> AdamW:
    """It clips the gradients' norm and keeps the average too."""
    lr = torch.tensor(config.lr, device=network.device)
    return AdamW(
        network.parameters(), lr, BETAS, weight_decay=config.weight_decay, max_grad_norm=CLIP_NORM, ema_decay=config.ema_decay
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


def learning_rate(config: TrainConfig, step: int) -> float:
    """A linear warm-up, then a cosine down to zero: a function of the step, so there is no state to save."""
    return config.lr * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _generators(device: torch.device) -> dict[str, Tensor]:
    """torch's generators, which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else {**states, "cuda": torch.cuda.get_rng_state(device)}


def _set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
