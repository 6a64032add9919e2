"""`python -m benchmarks.mixture`: one small network trained by each process on two modes in the plane, as the table of
docs/processes.md and as a plot beside the other results. Nothing is timed, and no run of the suite is needed.

Of the mixture of N(mean_k, DEVIATION^2) everything is known: the best network at each level, and so what a sampler makes of an
exact one; and how far samples are from it, by the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo 2013),
which is 0 where both have one distribution.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import fastddpm as fd
from fastddpm.process import Process

from . import plots
from .docs import ROOT, between, markdown

MEANS, WEIGHTS, DEVIATION = torch.tensor([[1.5, 1.2], [-0.75, -0.6]]), torch.tensor([1 / 3, 2 / 3]), 0.25
SPREAD = math.sqrt(float(WEIGHTS @ MEANS.square().sum(1)) / 2 + DEVIATION**2)
"""The deviation of x_0, whose mean is 0, in a coordinate."""
BATCH, SAMPLES, SEEDS = 512, 4096, 4
MARKS = (0, 125, 250, 500, 1000, 2000, 4000)
"""After how many steps of training the distance is measured."""


def data(count: int, seed: int) -> Tensor:
    """x_0, float32 `[count, 2]`."""
    generator = torch.Generator().manual_seed(seed)
    mode = torch.multinomial(WEIGHTS, count, True, generator=generator)
    return MEANS[mode] + DEVIATION * torch.randn(count, 2, generator=generator)


def best(x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """E[x_0 | x] and E[z | x] of x = a x_0 + s z, at levels `[B]` or numbers."""
    a, s, means = a.reshape(-1, 1, 1).to(x), s.reshape(-1, 1, 1).to(x), MEANS.to(x)
    variance, off = a**2 * DEVIATION**2 + s**2, x[:, None] - a * means
    share = (WEIGHTS.to(x).log() - off.square().sum(2) / (2 * variance[..., 0])).softmax(1)[..., None]
    x_0 = means + a * DEVIATION**2 / variance * off
    return (share * x_0).sum(1), (share * s / variance * off).sum(1)


class Case(NamedTuple):
    process: Process
    sampler: str
    steps: int
    """Of about a hundred calls of the network."""
    levels: Callable[[Tensor], tuple[Tensor, Tensor]]
    """a and s, of what the network is given for t."""
    unit: float
    """Of that."""

    @property
    def title(self) -> str:
        return type(self.process).__name__

    def exact(self, x: Tensor, t: Tensor) -> Tensor:
        """The best network."""
        a, s = (level.to(x) for level in self.levels(t))
        x_0, z = best(x, a, s)
        p, q = self.process.target_of(a, s, self.process.prediction_types[0])
        return p.reshape(-1, 1) * z + q.reshape(-1, 1) * x_0

    def drawn(self, model: Callable[..., Tensor], seed: int) -> Tensor:
        diffusion = fd.GaussianDiffusion(self.process)
        given = {"steps": self.steps, "seed": seed, "clip_denoised": False, "progress": False}
        return diffusion.sample(model, (SAMPLES, 2), self.sampler, **given)


CHAIN, FLOW, EDM = fd.NoiseSchedule.linear(1000), fd.FlowMatching(1000), fd.EDM(sigma_data=SPREAD)
CASES = {
    "ddpm": Case(CHAIN, "ddim", 100, lambda t: (CHAIN.levels[0][t], CHAIN.levels[1][t]), 1000.0),
    "flow": Case(FLOW, "euler", 100, lambda t: (1 - t / 1000, t / 1000), 1000.0),
    "edm": Case(EDM, "heun", 50, lambda t: EDM.levels_at((4 * t.double()).exp()), 1.0),
}


class Network(nn.Module):
    """Three layers of x and waves of t."""

    def __init__(self, unit: float, width: int = 64):
        super().__init__()
        self.register_buffer("waves", 2.0 ** torch.arange(6) / unit)
        sizes = (2 + 12, width, width, width)
        hidden = (layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU()))
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t.to(x.dtype)[:, None] * self.waves
        return self.layers(torch.cat((x, angles.sin(), angles.cos()), 1))


def train(case: Case, seed: int, marks: Sequence[int] = MARKS) -> list[Tensor]:
    """What the average of the weights draws after so many steps of training."""
    torch.manual_seed(seed)
    model, diffusion = Network(case.unit), fd.GaussianDiffusion(case.process)
    average, found = deepcopy(model).requires_grad_(False), []
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for step in range(marks[-1] + 1):
        if step in marks:
            found.append(case.drawn(average, seed))
        diffusion.training_loss(model, data(BATCH, seed << 32 | step), fd.noise_key(seed, step, BATCH)).backward()
        optimizer.step()
        optimizer.zero_grad()
        fd.ema_update_(average.parameters(), model.parameters(), min(0.99, step / (step + 9)))
    return found


def distance(x: Tensor) -> float:
    """The energy distance to the mixture, without bias: below 0 as often as above where there is none."""
    truth = data(SAMPLES, 1 << 62)
    between, within, truths = (torch.cdist(y, z).double().sum() for y, z in ((x, truth), (x, x), (truth, truth)))
    n, m = len(x), len(truth)
    return float(2 * between / (n * m) - within / (n * (n - 1)) - truths / (m * (m - 1)))


# ---- the table, the plot ----


class Found(NamedTuple):
    distances: list[list[float]]
    """Of each seed, at each of the marks."""
    exact: list[float]
    """Of the best network's samples."""
    drawn: Tensor
    """The first seed's, at the end."""


def measure() -> dict[str, Found]:
    return {name: _found(case) for name, case in CASES.items()}


def _found(case: Case) -> Found:
    drawn = [train(case, seed) for seed in range(SEEDS)]
    exact = [distance(case.drawn(case.exact, seed)) for seed in range(SEEDS)]
    return Found([[distance(x) for x in each] for each in drawn], exact, drawn[0][-1])


def fill(text: str, measured: dict[str, Found]) -> str:
    """A document with the table between its markers."""
    shown = range(2, len(MARKS), 2)
    rows = [
        [CASES[name].title, f"{CASES[name].process.prediction_types[0]}, {CASES[name].sampler} {CASES[name].steps}"]
        + [_spread([each[i] for each in found.distances]) for i in shown]
        + [_spread(found.exact)]
        for name, found in measured.items()
    ]
    rows.append(["the data itself", "", *[""] * len(shown), _spread([distance(data(SAMPLES, seed)) for seed in range(SEEDS)])])
    head = ["1000 times the energy distance", "", *(f"{'after ' * (not n)}{MARKS[i]}" for n, i in enumerate(shown))]
    return between(text, "mixture", lambda _: markdown([*head, "the best network"], rows))


def _spread(values: list[float]) -> str:
    """In thousandths."""
    thousandths = 1e3 * torch.tensor(values)
    return f"{thousandths.mean():.2f} +- {thousandths.std():.2f}"


COLOURS = {"ddpm": "#3a6ea5", "flow": "#c8553d", "edm": "#0b6e4f"}


def draw(measured: dict[str, Found]) -> Figure:
    """The distance over the steps of training, and what is drawn at the end."""
    figure, (left, *right) = plots.plt.subplots(
        1, 4, figsize=(13, 3.6), layout="constrained", gridspec_kw={"width_ratios": (1.5, 1, 1, 1)}
    )
    for name, found in measured.items():
        distances = torch.tensor(found.distances)
        style = {"color": COLOURS[name], "label": CASES[name].title}
        left.plot(MARKS, distances.mean(0), marker="o", markersize=3, **style)
        left.fill_between(MARKS, distances.amin(0), distances.amax(0), color=COLOURS[name], alpha=0.2, lw=0)
    left.set_xscale("symlog", linthresh=MARKS[1])
    left.set_yscale("symlog", linthresh=1e-3)
    left.set_xticks(MARKS, map(str, MARKS))
    left.minorticks_off()
    left.axhline(0, color="#999999", lw=0.7)
    left.set_xlabel(f"steps of training, batch {BATCH}")
    left.set_ylabel("energy distance to the data")
    left.legend(frameon=False)
    truth = data(SAMPLES, 1 << 62)
    for axis, (name, found) in zip(right, measured.items(), strict=True):
        axis.scatter(*truth[:2000].T, s=1, color="#bbbbbb", label="data")
        axis.scatter(*found.drawn[:2000].T, s=1, color=COLOURS[name])
        axis.set_title(f"{CASES[name].title}, {CASES[name].sampler} {CASES[name].steps}", fontsize=9)
        axis.set_xlim(-2.2, 2.8)
        axis.set_ylim(-1.8, 2.4)
    return figure


def main() -> None:
    measured, document = measure(), ROOT / "docs" / "processes.md"
    document.write_text(fill(document.read_text(), measured))
    with plots.plt.rc_context(plots.STYLE):
        plots.write(draw(measured), Path(__file__).parent / "results" / "mixture")


if __name__ == "__main__":
    main()
