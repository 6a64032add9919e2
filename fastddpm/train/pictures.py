"""The pictures of a run: its samples and the way to them, its samplers, its loss, and its bound over t."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ranks
from .checkpoint import write_atomically

GAP = 90
"""The grey between the images."""
FRAMES = 50
"""The pictures of a .gif, at most."""


def save_grid(images: Tensor, path: Path, columns: int = 8, target: int = 64) -> None:
    """`grid`, as a .png."""
    from PIL import Image

    picture = Image.fromarray(grid(images, columns, target))
    write_atomically(path, lambda file: picture.save(file, "png"))


class Film:
    """A callback of `GaussianDiffusion.sample` that keeps the samples after a loop's steps, to be a .gif."""

    def __init__(self, path: Path):
        self.path, self._every = path, 0
        self.grids: list[np.ndarray] = []

    def __call__(self, i: int, t: Any, x: Tensor, x_0_hat: Tensor) -> None:
        self._every = self._every or -(-(i + 1) // FRAMES)
        if i % self._every == 0:
            self.grids.append(grid(ranks.joint(x)))

    def save(self) -> None:
        """The last picture stands for longer."""
        from PIL import Image

        first, *others = map(Image.fromarray, self.grids)
        durations = [80] * len(others) + [2000]
        options = {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
        write_atomically(self.path, lambda file: first.save(file, "gif", **options))


def grid(images: Tensor, columns: int = 8, target: int = 64) -> np.ndarray:
    """uint8 `[H, W]` or `[H, W, 3]`: images side by side with gaps, every pixel enlarged to a square so that an image's side
    comes near `target`.

    Args:
        images: `[N, C, H, W]` in [-1, 1], C 1 or 3.
    """
    count, channels, height, width = images.shape
    enlarge = max(1, target // max(height, width))
    gap = max(1, height * enlarge // 8)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    pixels = pixels.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3).permute(0, 2, 3, 1)
    columns = min(columns, count)
    rows = -(-count // columns)
    down, right = height * enlarge + gap, width * enlarge + gap
    sheet = np.full((rows * down + gap, columns * right + gap, channels), GAP, np.uint8)
    for i, image in enumerate(pixels.numpy()):
        top, left = gap + i // columns * down, gap + i % columns * right
        sheet[top : top + down - gap, left : left + right - gap] = image
    return sheet.squeeze(2) if channels == 1 else sheet


def save_rows(rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str], path: Path) -> None:
    """A row of sets of images for each name, under the columns' titles."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    width, height = 0.5 * len(next(iter(rows.values()))[0]) + 0.2, 0.6
    figure = Figure(figsize=(1.5 + width * len(columns), 0.5 + height * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for place, title in zip(axes[0], columns, strict=True):
        place.set_title(title, fontsize=9)
    for line, (name, sets) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for place, images in zip(line, sets, strict=True):
            place.imshow(grid(images, len(images)), cmap="gray", vmin=0, vmax=255)
            place.set(xticks=[], yticks=[])
    _save_figure(figure, path)


def save_loss_plot(lines: list[dict[str, float]], path: Path) -> None:
    """The loss over the steps, from the lines of metrics.jsonl."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    _save_figure(figure, path)


def save_bound_plot(timesteps: Tensor, vb: Tensor, x_0_mse: Tensor, eps_mse: Tensor, path: Path) -> None:
    """The bound's terms and the squared errors over t, both axes logarithmic (t + 1, so that t = 0 is seen)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(timesteps + 1, vb, linewidth=1)
    left.set(xlabel="t + 1", ylabel="term of the bound, bits/dim", xscale="log", yscale=_scale(vb))
    right.plot(timesteps + 1, x_0_mse, linewidth=1, label="x_0")
    right.plot(timesteps + 1, eps_mse, linewidth=1, label="eps")
    right.set(xlabel="t + 1", ylabel="mean squared error", xscale="log", yscale=_scale(torch.stack((x_0_mse, eps_mse))))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    _save_figure(figure, path)


def _scale(values: Tensor) -> str:
    """Logarithmic where there is something that has a logarithm: matplotlib refuses to draw nothing."""
    return "log" if bool((values.isfinite() & (values > 0)).any()) else "linear"


def _save_figure(figure: Any, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
