"""Images from a run: by any sampler, of any class, guided."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..samplers import SAMPLERS, UNDER_GUIDANCE, StepRows
from . import ranks
from .config import TrainConfig, UsageError
from .runs import Run

DDPM_STEPS, EDM_STEPS, STEPS = 250, 18, 50
"""How many, of ddpm, of a run of edm and of others, where none are asked for."""

SPACINGS = {"heun": "karras"}
"""Of its own it begins where a cosine schedule's noise is beyond any step's reach (docs/samplers.md)."""


def draw(
    run: Run,
    count: int,
    sampler: str | None = None,
    steps: int | None = None,
    seed: int | Tensor = 0,
    labels: Tensor | None = None,
    guidance: float | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    spacing: str | None = None,
    callback: Callable[[int, Any, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Images `[count, C, H, W]` in [-1, 1], clamped at every step. Of several ranks each draws its share of them, the same ones
    that a process of its own would, and all get all (on the CPU).

    Args:
        run: what was trained.
        count: how many. Image i depends on the seed and on i, not on how many are drawn.
        sampler: a name of `DRAWS`; None for the process's own.
        steps: to walk; of a flow or edm any number. None: 250 of ddpm, 50 of others (of edm 18), or as many as a shorter
            chain has.
        seed: an int, or one seed an image, `[count]`: each image is then the first of its own seed.
        labels: `[count]`, of a class-conditional run. None: image i is of class i modulo their number.
        guidance: scale of classifier-free guidance; None for none.
        device: where.
        progress: show a bar.
        spacing: of the steps, as `samplers.Sampler` says; None for the sampler's default (of ddpm evenly to the end).
        callback: as `GaussianDiffusion.sample` takes it, of this rank's share.

    Raises:
        UsageError: steps that the chain or the sampler does not have, labels or guidance that the run does not know, or fewer
            images than ranks.
    """
    if count < ranks.count():
        raise UsageError(f"n: expected {ranks.count()} images or more on as many ranks, got {count}")
    share = ranks.share(count)
    rows, conditions = rows_of(run.config, sampler, steps, spacing), _conditions(run, count, share, labels, guidance, device)
    height, width = run.network.config["sample_size"]
    shape = (share.stop - share.start, run.network.config["in_channels"], height, width)
    options = {"device": device, "progress": progress and ranks.rank() == 0, "callback": callback, **conditions}
    noise = {"seed": seed[share]} if isinstance(seed, Tensor) else {"seed": seed, "first_sample": share.start}
    return ranks.joint(run.config.diffusion().sample(run.network.to(device), shape, rows, **noise, **options))


def rows_of(config: TrainConfig, sampler: str | None = None, steps: int | None = None, spacing: str | None = None) -> StepRows:
    """The sampler's, for the run's network."""
    diffusion = config.diffusion()
    process, is_chain, sampler = diffusion.schedule, config.process == "ddpm", sampler or diffusion.schedule.sampler
    if steps is None:  # some spacings leave one out
        steps = EDM_STEPS if config.process == "edm" else STEPS
        if is_chain:
            steps = min(DDPM_STEPS, config.timesteps) if sampler == "ddpm" else max(1, min(STEPS, config.timesteps - 1))
    if is_chain and not 1 <= steps <= config.timesteps:
        raise UsageError(f"steps: expected 1 .. {config.timesteps}, the run's timesteps, got {steps}")
    walk = {"steps": steps, "spacing": spacing or (SPACINGS.get(sampler) if is_chain else None)}
    if sampler == "ddpm" and is_chain and spacing is None:  # the chain that `evaluate` walks
        process, walk = process.respace(steps), {}
    about = (process, diffusion.prediction_type, config.variance, True)
    try:
        return SAMPLERS[sampler](*about, **walk, **UNDER_GUIDANCE.get(sampler, {}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"sampler {sampler} of {steps} steps: {error}") from None


def labels_of(run: Run, name: str | None, count: int) -> Tensor | None:
    """`[count]` of one class, by its name."""
    if name is None:
        return None
    if not run.classes:
        raise UsageError(f"label: expected none (the run was not trained with --class-conditional), got {name!r}")
    if name not in run.classes:
        known = ", ".join(run.classes[:20]) + (", .." if len(run.classes) > 20 else "")
        raise UsageError(f"label: expected one of the run's classes ({known}), got {name!r}")
    return torch.full((count,), run.classes.index(name))


def _conditions(
    run: Run, count: int, share: slice, labels: Tensor | None, guidance: float | None, device: torch.device | str
) -> dict[str, Any]:
    if guidance is not None and not run.config.drops_labels:
        wanted = "a run trained with --class-conditional and a --label-dropping above 0"
        raise UsageError(f"guidance: expected {wanted}, got {guidance} for one that was not")
    if not run.classes:
        return {}
    labels = torch.arange(count) % len(run.classes) if labels is None else labels
    labels = labels[share].to(device)
    given = {"model_kwargs": {"class_labels": labels}}
    if guidance is None:
        return given
    none = torch.full_like(labels, len(run.classes))
    return {**given, "guidance_scale": guidance, "uncond_kwargs": {"class_labels": none}, "stacked": True}
