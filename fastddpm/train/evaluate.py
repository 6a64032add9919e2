"""How well a run's model codes images: the variational bound over a data set, as a table, a file and a picture."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..schedule import NoiseSchedule
from . import ranks
from .checkpoint import write_atomically
from .config import CHANNELS, TrainConfig, UsageError
from .data import Data, as_float, load
from .folder import workers_watched
from .pictures import save_bound_plot
from .runs import Run

_SUMS = ("vb", "x_0_mse", "eps_mse")


@dataclass(frozen=True)
class Evaluation:
    """Means over the images: bits a dimension, and squared errors.

    Attributes:
        images: how many.
        timesteps: int64 `[S]`, those of the chain walked, ascending.
        total, total_error: the bound, and the standard error of its mean (None of one image).
        prior: L_T.
        vb, x_0_mse, eps_mse: float64 `[S]`.
    """

    images: int
    timesteps: Tensor
    total: float
    total_error: float | None
    prior: float
    vb: Tensor
    x_0_mse: Tensor
    eps_mse: Tensor


def load_data(run: Run, data: str | None = None, limit: int | None = None) -> Data:
    """The first images to evaluate on: the run's, or other data, brought to the network's shape where it is a folder. Labels
    are the run's, whose classes go by their names.

    Raises:
        UsageError: data that can't be used, of another shape, or of classes that the run does not know.
    """
    config, labelled = run.config, run.config.class_conditional
    (height, width), channels = run.network.config["sample_size"], run.network.config["in_channels"]
    if data is None:
        loaded = load(config.data, config.image_size, config.channels, labelled)
    elif data != "digits" and Path(data).is_dir():
        if height != width:
            raise UsageError(
                f"data: expected a .npy file for images of {height}x{width}, got the folder {data!r} (its are square)"
            )
        loaded = load(data, height, {count: name for name, count in CHANNELS.items()}[channels], labelled)
    else:
        loaded = load(data, labelled=labelled)
    shape = loaded.images.shape[1:]
    if shape != (channels, height, width):
        raise UsageError(f"data: expected images [{channels}, {height}, {width}], the run's, got {list(shape)}")
    unknown = set(loaded.classes) - set(run.classes)
    if unknown:
        raise UsageError(f"data: expected the run's classes ({', '.join(run.classes)}), got {', '.join(sorted(unknown))} too")
    loaded = loaded.first(limit)
    if loaded.labels is None:
        return loaded
    places = torch.tensor([run.classes.index(name) for name in loaded.classes])
    return Data(loaded.images, places[loaded.labels], run.classes)


def evaluate(
    run: Run,
    data: Data,
    steps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """The bound of every image, given its label where there is one, `batch_size` at a time, which does not change the noise. Of
    several ranks each evaluates every so many-th batch, and all get the figures, which are those of one.

    Raises:
        UsageError: more steps than the chain has.
    """
    chain, images = walked_chain(run.config, steps), len(data.images)
    diffusion, network = run.config.diffusion(), run.network.to(device).eval()
    starts = range(0, images, batch_size)[ranks.rank() :: ranks.count()]
    batches = data.batches((torch.arange(start, min(start + batch_size, images)) for start in starts), run.config.workers)
    parts: list[_Part] = []
    progress = {"total": len(starts) * len(chain), "disable": ranks.rank() > 0}
    with workers_watched(), tqdm(desc="evaluating", unit="step", **progress) as bar:

        def model(x_t: Tensor, t: Tensor, **labels: Tensor) -> Tensor:
            bar.update()
            return network(x_t, t, **labels).sample

        for start, (pixels, labels) in zip(starts, batches, strict=True):
            x_0 = as_float(pixels.to(device))
            given = {} if labels is None else {"class_labels": labels.to(device)}
            terms = diffusion.bits_per_dim(
                model, x_0, seed, model_kwargs=given, steps=steps, first_sample=start, progress=False
            )
            terms = {name: value.cpu().double() for name, value in terms.items()}
            parts.append(_Part(start, terms["total"], terms["prior"], torch.stack([terms[name].sum(0) for name in _SUMS])))
    return _evaluation(chain, sorted(itertools.chain(*ranks.of_all(parts)), key=lambda part: part.start))


class _Part(NamedTuple):
    """A batch's bounds and priors, and its sums of what there is of each step."""

    start: int
    totals: Tensor
    priors: Tensor
    sums: Tensor


def _evaluation(chain: NoiseSchedule, parts: list[_Part]) -> Evaluation:
    """Summed in the data's order, whoever evaluated which."""
    total, prior = (torch.cat([getattr(part, name) for part in parts]) for name in ("totals", "priors"))
    count = len(total)
    error = float(total.std()) / math.sqrt(count) if count > 1 else None
    vb, x_0_mse, eps_mse = sum((part.sums for part in parts), torch.zeros(len(_SUMS), len(chain))) / count
    return Evaluation(count, chain.timesteps, float(total.mean()), error, float(prior.mean()), vb, x_0_mse, eps_mse)


def walked_chain(config: TrainConfig, steps: int | None) -> NoiseSchedule:
    """The run's chain, or `steps` steps of it."""
    if config.process != "ddpm":
        raise UsageError(f"run: expected one of process ddpm, whose chain has a bound, got {config.process}")
    if steps is None:
        return config.diffusion().schedule
    if not 1 <= steps <= config.timesteps:
        raise UsageError(f"steps: expected 1 .. {config.timesteps}, the run's timesteps, got {steps}")
    return config.diffusion().schedule.respace(steps)


def save_evaluation(result: Evaluation, about: dict[str, Any], folder: Path) -> None:
    """eval.json, all of it, and eval.png."""
    values = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(result).items()}
    text = json.dumps({**about, "unit": "bits a dimension; squared errors of data in [-1, 1]", **values}, indent=1)
    write_atomically(folder / "eval.json", lambda file: file.write((text + "\n").encode()))
    save_bound_plot(result.timesteps, result.vb, result.x_0_mse, result.eps_mse, folder / "eval.png")


def format_evaluation(result: Evaluation, title: str) -> str:
    """Lines of text: the bound and its parts, and the terms by tenths of the chain."""
    steps = len(result.timesteps)
    error = "" if result.total_error is None else f"  +- {result.total_error:.4f}"
    rows = [
        f"{'total':<20}{result.total:>12.4f}{result.x_0_mse.mean():>12.5f}{result.eps_mse.mean():>12.5f}{error}",
        f"{'L_T (prior)':<20}{result.prior:>12.4f}",
        f"{'L_0':<20}{result.vb[0]:>12.4f}{result.x_0_mse[0]:>12.5f}{result.eps_mse[0]:>12.5f}",
        f"{'the other L_t':<20}{result.vb[1:].sum():>12.4f}",
    ]
    tenths = []
    for part in torch.arange(steps).tensor_split(min(10, steps)):
        name = f"t = {result.timesteps[part[0]]} .. {result.timesteps[part[-1]]}"
        values = result.vb[part].sum(), result.x_0_mse[part].mean(), result.eps_mse[part].mean()
        tenths.append(f"{name:<20}{values[0]:>12.4f}{values[1]:>12.5f}{values[2]:>12.5f}")
    head = f"{'':<20}{'bits/dim':>12}{'x_0 MSE':>12}{'eps MSE':>12}"
    rule = "-" * len(head)
    return "\n".join((title, head, rule, *rows, rule, *tenths))
