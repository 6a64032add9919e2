"""Every sampler from the same x_T: a table of times and distances, and a picture."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .config import DRAWS, TrainConfig, UsageError
from .drawing import draw, rows_of
from .pictures import save_rows
from .runs import Run


class Drawn(NamedTuple):
    """What a sampler made in so many steps."""

    sampler: str
    steps: int
    images: Tensor
    seconds: float
    distance: float
    """The root of the mean squared difference from the reference, of data in [-1, 1]."""
    adds_noise: bool


def able(config: TrainConfig, steps: Sequence[int]) -> list[str]:
    """The samplers that can walk a run's chain in each of these numbers of steps."""
    return [name for name in DRAWS if all(_can(config, name, n) for n in steps)]


def _can(config: TrainConfig, sampler: str, steps: int) -> bool:
    try:
        rows_of(config, sampler, steps)
    except UsageError:
        return False
    return True


def compare(
    run: Run,
    samplers: Sequence[str],
    steps: Sequence[int],
    count: int,
    seed: int = 0,
    labels: Tensor | None = None,
    guidance: float | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, list[Drawn]]:
    """The reference, DDIM's images by all steps of the chain; and each sampler's by each number of steps, from the same x_T.

    Raises:
        UsageError: as `draw`, before anything is drawn.
    """
    drawn, walks = [], [(sampler, n) for sampler in samplers for n in steps]
    adds_noise = {walk: rows_of(run.config, *walk).adds_noise for walk in walks}
    draws = partial(draw, run, count, seed=seed, labels=labels, guidance=guidance, device=device, progress=False)
    draws("ddim", 1)  # the first call of a network is a slow one
    reference = draws("ddim", run.config.timesteps).cpu()
    for sampler, n in tqdm(walks, desc="comparing", unit="loop"):
        start = time.perf_counter()
        images = draws(sampler, n).cpu()
        seconds = time.perf_counter() - start
        distance = float((images - reference).square().mean().sqrt())
        drawn.append(Drawn(sampler, n, images, seconds, distance, adds_noise[sampler, n]))
    return reference, drawn


def save_comparison(reference: Tensor, drawn: Sequence[Drawn], path: Path) -> None:
    """A row a sampler, a column for each number of steps; the reference above."""
    columns = list(dict.fromkeys(one.steps for one in drawn))
    rows = {"ddim, all steps": [reference] * len(columns)}
    for one in drawn:
        rows.setdefault(one.sampler, []).append(one.images)
    save_rows(rows, [f"{n} steps" for n in columns], path)


def format_comparison(drawn: Sequence[Drawn], title: str) -> str:
    """Lines of text."""
    columns = list(dict.fromkeys(one.steps for one in drawn))
    lines: dict[str, str] = {}
    for one in drawn:
        name = one.sampler + " *" * one.adds_noise
        lines[name] = lines.get(name, f"{name:<18}") + f"{one.seconds:>12.3f}{one.distance:>10.4f}"
    numbers = f"{'steps':<18}" + "".join(f"{n:>22}" for n in columns)
    head = f"{'':<18}" + f"{'seconds':>12}{'distance':>10}" * len(columns)
    note = "* adds noise, and so makes other images than DDIM"
    rule = "-" * len(head)
    return "\n".join((title, numbers, head, rule, *lines.values(), rule, note))
