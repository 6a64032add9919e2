"""The losses of a run: kept on the device, read every few steps, one line of metrics.jsonl each time."""

import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ranks
from .checkpoint import write_atomically


class Metrics:
    """Means of `every` steps' losses. A step only copies its loss into a row on the device; the row is read when full. Of
    several ranks each has its own samples' losses; by the ranks' weights they are the batch's.

    Attributes:
        lines: what metrics.jsonl holds. They are part of a checkpoint, so a file that ran ahead of it is put right.
    """

    def __init__(self, path: Path, every: int, device: torch.device, weight: float = 1.0):
        self.path, self.every, self.weight = path, every, weight
        self.lines: list[dict[str, float]] = []
        self._losses = torch.zeros(every, device=device)
        self._since, self._since_step = time.perf_counter(), 0

    def start(self, step: int) -> None:
        """Makes the file agree with `lines`, and starts the clock at `step`."""
        text = "".join(map(_as_line, self.lines))
        if ranks.rank() == 0:
            write_atomically(self.path, lambda file: file.write(text.encode()))
        self._since, self._since_step = time.perf_counter(), step

    def add(self, step: int, loss: Tensor) -> None:
        """The loss of step number `step`, counted from 0."""
        self._losses[step % self.every] = loss

    def write(self, step: int, batch_size: int) -> dict[str, str]:
        """A line for the steps since the last one, once `step` are made; returns what a progress bar shows of it."""
        loss = float(ranks.mean(self._losses[: (step - 1) % self.every + 1].mean(), self.weight))
        if not math.isfinite(loss) and (not self.lines or math.isfinite(self.lines[-1]["loss"])) and ranks.rank() == 0:
            told = f"loss: not finite in the steps up to {step}, the run has diverged (a lower lr may help)"
            warnings.warn(told, stacklevel=2)
        now = time.perf_counter()
        speed = (step - self._since_step) * batch_size / (now - self._since)
        self._since, self._since_step = now, step
        self.lines.append({"step": step, "loss": loss, "images_per_second": round(speed, 1)})
        if ranks.rank() == 0:
            with open(self.path, "a") as file:
                file.write(_as_line(self.lines[-1]))
        return {"loss": f"{loss:.4f}", "images/s": f"{speed:.0f}"}

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank."""
        return {"losses": ranks.mean(self._losses, self.weight), "lines": self.lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.copy_(state["losses"])
        self.lines = state["lines"]


def _as_line(values: dict[str, float]) -> str:
    """What is not finite as null: JSON has no word for it."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}) + "\n"
