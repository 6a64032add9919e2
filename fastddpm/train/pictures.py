"""The pictures of a run: its samples, its loss, and its bound over t."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import write_atomically

GAP = 90
"""The grey between the images."""


def save_grid(images: Tensor, path: Path, columns: int = 8, target: int = 64) -> None:
    """A grid with gaps, every pixel enlarged to a square so that an image's side comes near `target`.

    Args:
        images: `[N, C, H, W]` in [-1, 1], C 1 or 3.
        path: a .png to write.
    """
    from PIL import Image

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
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(path)


def save_loss_plot(lines: list[dict[str, float]], path: Path) -> None:
    """The loss over the steps, from the lines of metrics.jsonl."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def save_bound_plot(timesteps: Tensor, vb: Tensor, x_0_mse: Tensor, eps_mse: Tensor, path: Path) -> None:
    """The bound's terms and the squared errors over t, both axes logarithmic (t + 1, so that t = 0 is seen)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(timesteps + 1, vb, linewidth=1)
    left.set(xlabel="t + 1", ylabel="term of the bound, bits/dim", xscale="log", yscale="log")
    right.plot(timesteps + 1, x_0_mse, linewidth=1, label="x_0")
    right.plot(timesteps + 1, eps_mse, linewidth=1, label="eps")
    right.set(xlabel="t + 1", ylabel="mean squared error", xscale="log", yscale="log")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
