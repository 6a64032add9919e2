"""What a run is made of: each setting with its check, kept beside the weights, and an option of the command line."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from ..diffusion import GaussianDiffusion
from ..edm import EDM
from ..flow_matching import FlowMatching
from ..importance import LossSecondMoment
from ..process import Process
from ..samplers import SAMPLERS
from ..schedule import NoiseSchedule

SCHEDULES = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}
PROCESSES: dict[str, Callable[["TrainConfig"], Process]] = {
    "flow": lambda config: FlowMatching(config.timesteps),
    "edm": lambda config: EDM(),
}
"""Beside the chain."""
OF_CHAIN = ("schedule", "prediction", "loss", "variance")
"""Settings that only it has."""
LOSSES = ("mse", "hybrid", "kl", "rescaled_kl")
FIXED_VARIANCES, LEARNED_VARIANCES = ("fixed_small", "fixed_large"), ("learned", "learned_range")
TIMESTEP_SAMPLINGS = ("uniform", "importance")
AUTOCASTS = {"fp32": None, "bf16": torch.bfloat16}
"""What the network runs in by autocast, for each precision."""
HISTORY = 10
"""The losses of each t that importance sampling waits for (Nichol & Dhariwal 2021)."""
DRAWS = tuple(name for name in SAMPLERS if name != "ddim_inverse")
"""The samplers that end at images."""
LABEL_DROPPING = 0.1
"""Ho & Salimans 2022."""
CHANNELS = {"grey": 1, "rgb": 3}
FREE = ("steps", "keep", "workers")
"""The settings that a resumed run may change: steps, which it may raise, and what no result depends on."""
GROUPS = 8
"""Groups of the network's group norms: its width is a multiple of this."""


class UsageError(ValueError):
    """A mistake of the user: the command line shows it as one line."""


def _setting(default: Any, kind: type, about: str, expected: str, good: Callable[[Any], bool]) -> Any:
    return field(default=default, metadata={"kind": kind, "about": about, "expected": expected, "good": good})


def _count(default: int, about: str) -> Any:
    return _setting(default, int, about, "1 or more", lambda value: value >= 1)


def _choice(default: str | None, about: str, choices: tuple[str, ...]) -> Any:
    return _setting(default, str, about, f"one of {', '.join(choices)}", lambda value: value in (default, *choices))


def _flag(about: str) -> Any:
    return _setting(False, bool, about, "True or False", lambda value: isinstance(value, bool))


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. `data` is "digits", a folder of images or a .npy file; `fastddpm train --help` says the rest.

    Raises:
        UsageError: a value that can't be, named.
    """

    data: str
    image_size: int | None = _setting(
        None,
        int,
        "side that a folder's images are resized and cut to (32)",
        "1 or more",
        lambda value: value is None or value >= 1,
    )
    channels: str | None = _choice(None, "grey or rgb, for a folder's images (rgb)", tuple(CHANNELS))
    class_conditional: bool = _flag("the network is given each image's class: the digit, or its sub-folder of the folder")
    label_dropping: float | None = _setting(
        None,
        float,
        f"probability that it is not given it, without which there is no guidance ({LABEL_DROPPING}, if class-conditional)",
        "0 <= label_dropping < 1",
        lambda value: value is None or 0 <= value < 1,
    )
    steps: int = _count(2500, "optimizer steps of the whole run; a resumed run may raise it")
    batch_size: int = _count(64, "images a step")
    lr: float = _setting(
        2e-3,
        float,
        "learning rate at its height, between a warm-up and a cosine to zero",
        "a finite number above 0",
        lambda value: 0 < value < math.inf,
    )
    weight_decay: float = _setting(0.0, float, "AdamW's", "a finite number, 0 or more", lambda value: 0 <= value < math.inf)
    ema_decay: float = _setting(
        0.995,
        float,
        "of the averaged weights: over about 1 / (1 - decay) steps",
        "0 <= decay < 1",
        lambda value: 0 <= value < 1,
    )
    process: str = _choice(
        "ddpm",
        "ddpm, of which schedule to variance speak; flow (rectified flow of T levels) or edm, which have their own",
        ("ddpm", *PROCESSES),
    )
    timesteps: int = _count(1000, "T, the length of the chain, or a flow's levels (edm has none)")
    schedule: str = _choice("cosine", "linear or cosine", tuple(SCHEDULES))
    prediction: str = _choice(
        "v_prediction",
        "what the network predicts: epsilon, sample or v_prediction",
        ("epsilon", "sample", "v_prediction"),
    )
    loss: str = _choice(
        "mse",
        "mse; kl (the bound's term of t), rescaled_kl (T times that); or, with a learned variance, hybrid (mse + T/1000 kl)",
        LOSSES,
    )
    variance: str = _choice(
        "fixed_small",
        "of the reverse steps: fixed_small, fixed_large; learned, learned_range (the network then has twice the channels)",
        (*FIXED_VARIANCES, *LEARNED_VARIANCES),
    )
    timestep_sampling: str = _choice(
        "uniform",
        "uniform, or importance: each t in proportion to its last losses, reweighted; meant for kl",
        TIMESTEP_SAMPLINGS,
    )
    width: int = _setting(
        32,
        int,
        f"channels of the network's first level, a multiple of {GROUPS}",
        f"a multiple of {GROUPS}",
        lambda value: value >= 1 and value % GROUPS == 0,
    )
    dropout: float = _setting(0.0, float, "inside the network", "0 <= dropout < 1", lambda value: 0 <= value < 1)
    precision: str = _choice(
        "fp32", "fp32, or bf16: the network runs under autocast, its weights stay float32", tuple(AUTOCASTS)
    )
    channels_last: bool = _flag("the network's weights and the images lie channels last")
    compile: bool = _flag("the network is compiled by torch.compile")
    graph: str = _choice("auto", "whether a step is a CUDA graph: auto (on a GPU), on or off", ("auto", "on", "off"))
    seed: int = _setting(
        0, int, "of the weights, the batches and the noise", "0 <= seed < 2^63", lambda value: 0 <= value < 1 << 63
    )
    checkpoint_every: int = _count(500, "steps between checkpoints")
    keep: int = _count(1, "how many of the last checkpoints stay")
    workers: int = _setting(
        2, int, "processes that decode a folder too large for memory", "0 or more", lambda value: value >= 0
    )
    log_every: int = _count(25, "steps whose mean loss makes one line of metrics.jsonl")

    def __post_init__(self):
        for setting in fields(self)[1:]:
            value = getattr(self, setting.name)
            if not setting.metadata["good"](value):
                raise UsageError(f"{setting.name}: expected {setting.metadata['expected']}, got {value!r}")
        self._check_together()

    def _check_together(self) -> None:
        if self.label_dropping is not None and not self.class_conditional:
            raise UsageError(f"label_dropping: expected only with class_conditional, got {self.label_dropping}")
        if self.class_conditional and self.width < 2 * GROUPS:
            raise UsageError(
                f"width: expected {2 * GROUPS} or more with class_conditional, got {self.width}, where each channel is a group "
                "of its norms, which take out what a label adds to it"
            )
        if self.loss == "hybrid" and not self.learns_variance:
            raise UsageError(f"variance: expected {' or '.join(LEARNED_VARIANCES)} with loss hybrid, got {self.variance!r}")
        if self.loss == "mse" and self.learns_variance:
            raise UsageError(
                f"loss: expected hybrid, kl or rescaled_kl with variance {self.variance}, got 'mse', which ignores it"
            )
        for setting in fields(self) if self.process != "ddpm" else ():
            value = getattr(self, setting.name)
            of_chain = (*OF_CHAIN, "timesteps") if self.process == "edm" else OF_CHAIN
            if setting.name in of_chain and value != setting.default:
                raise UsageError(f"{setting.name}: expected none with process {self.process}, which has its own, got {value!r}")
        if self.process == "edm" and self.timestep_sampling != "uniform":
            raise UsageError(f"timestep_sampling: expected none with process edm, got {self.timestep_sampling!r}")
        needed, drawn = HISTORY * self.timesteps, self.steps * self.batch_size
        if self.timestep_sampling == "importance" and drawn < needed:
            raise UsageError(
                f"steps, batch_size: expected a product of {needed} or more with timestep_sampling importance, which starts "
                f"once each of the {self.timesteps} timesteps has had {HISTORY} losses, got {drawn}"
            )

    @property
    def learns_variance(self) -> bool:
        return self.variance in LEARNED_VARIANCES

    @property
    def drops_labels(self) -> float:
        """The probability."""
        if not self.class_conditional:
            return 0.0
        return LABEL_DROPPING if self.label_dropping is None else self.label_dropping

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def diffusion(self) -> GaussianDiffusion:
        if self.process != "ddpm":
            return GaussianDiffusion(PROCESSES[self.process](self))
        return GaussianDiffusion(SCHEDULES[self.schedule](self.timesteps), self.prediction, self.variance, self.loss)

    def t_sampler(self, device: torch.device) -> LossSecondMoment | None:
        """How the timesteps are drawn where they are not uniform."""
        return LossSecondMoment(self.timesteps, HISTORY, device=device) if self.timestep_sampling == "importance" else None

    def check_resumable(self, saved: "TrainConfig", step: int) -> None:
        """That a run of `saved`, now at `step`, may go on with these settings: only those of FREE may differ.

        Raises:
            UsageError: naming each setting that differs.
        """
        old, new = saved.to_dict(), self.to_dict()
        differing = [name for name in new if name not in FREE and new[name] != old[name]]
        if differing:
            pairs = ", ".join(f"{name} (the run's: {old[name]}, given: {new[name]})" for name in differing)
            raise UsageError(f"resume: expected the settings that the run began with, these differ: {pairs}")
        if self.steps < step:
            raise UsageError(f"steps: expected {step} or more, where the run's checkpoint is, got {self.steps}")
