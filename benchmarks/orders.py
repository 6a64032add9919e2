"""`python -m benchmarks.orders`: the samplers' orders of convergence, as the table of docs/samplers.md and as a plot beside the
other results. Nothing is timed, and no run of the suite is needed.

The analytic Gaussian: of x_0 ~ N(0, s^2) the best network is eps(x, t) = b x / (a^2 s^2 + b^2), and the probability flow moves
x as the deviation of x_t does, sqrt(a^2 s^2 + b^2). log(a / b) goes from -3 to 3 in N even steps; all is float64.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

import fastddpm as fd
from fastddpm.samplers import SAMPLERS, Levels

from . import plots
from .docs import ROOT, between, markdown

STEPS = (10, 20, 40, 80, 160, 320, 640)
DEVIATION = 0.5
"""s."""


class Case(NamedTuple):
    sampler: str
    order: int
    """What it must converge with."""
    known: int = 0
    """From how many levels before the first step it has an exact history."""
    options: Mapping[str, Any] = {}


FULL = {"lower_order_final": False}
CASES = {
    "ddim": Case("ddim", 1),
    "euler": Case("euler", 1),
    "heun": Case("heun", 2),
    "dpmpp_1": Case("dpmpp_1", 1),
    "dpmpp_2m": Case("dpmpp_2m", 2, options=FULL),
    "dpmpp_3m": Case("dpmpp_3m", 2, options=FULL),
    "dpmpp_3m (exact history)": Case("dpmpp_3m", 2, 2, FULL),
    "dpmpp_3m (exact history and full curvature)": Case("dpmpp_3m", 3, 2, {"full_curvature": True, **FULL}),
    "unipc_2": Case("unipc_2", 3, options=FULL),
    "unipc_3": Case("unipc_3", 4, options=FULL),
    "lms (exact history)": Case("lms", 4, 3),
    "plms": Case("plms", 2),
}


def error(case: Case, steps: int) -> float:
    """At the end, from the exact x at the beginning."""
    log_snr = torch.arange(-case.known, steps + 1, dtype=torch.float64) * (6 / steps) - 3
    levels = Levels(torch.arange(steps + case.known), (-log_snr).exp())
    a, b = (1 + levels.sigmas**2).rsqrt(), (1 + levels.sigmas**-2).rsqrt()
    exact = (a**2 * DEVIATION**2 + b**2).sqrt()
    rows = SAMPLERS[case.sampler](levels, clip_denoised=False, **case.options)
    x_0 = a * DEVIATION**2 / exact  # E[x_0 | x] where x is exact
    before = exact / a - x_0 if rows.keeps else x_0
    history = list(torch.cat((before[: case.known].flip(0), torch.zeros_like(before))).split(1))[: rows.history]
    x = exact[[case.known]]
    for i in reversed(range(len(rows) - case.known)):
        t = rows.timesteps[i]
        out = b[t] * x / exact[t] ** 2
        x, x_0_hat, kept = fd.reverse_step(out, x, i, rows, None, history=history, return_kept=True)
        history = [kept if rows.keeps else x_0_hat, *history][: rows.history]
    return float((x - exact[-1]).abs())


def measure() -> dict[str, list[float]]:
    """{case: its errors at STEPS}."""
    return {name: [error(case, steps) for steps in STEPS] for name, case in CASES.items()}


def order(errors: list[float]) -> float:
    """Between the last two."""
    return math.log2(errors[-2] / errors[-1])


# ---- the table, the plot ----


def fill(text: str, measured: dict[str, list[float]]) -> str:
    """A document with the table between its markers."""
    head = ["", *(f"{'' if n else 'N = '}{steps}" for n, steps in enumerate(STEPS[::2])), "order"]
    rows = [[name, *(f"{e:.1e}" for e in errors[::2]), f"{order(errors):.2f}"] for name, errors in measured.items()]
    return between(text, "orders", lambda _: markdown(head, rows))


COLOURS = {
    "ddim": "#000000", "heun": "#e69f00", "dpmpp_2m": "#56b4e9", "dpmpp_3m": "#009e73", "unipc_2": "#0072b2",
    "unipc_3": "#d55e00", "lms": "#666666", "plms": "#cc79a7",
}  # fmt: skip
"""Of the palette of Okabe and Ito, which the colour-blind tell apart, and grey."""


def draw(measured: dict[str, list[float]]) -> Figure:
    """The error over N, the worst on top in the legend; guides of slope 1 to 4."""
    figure, axis = plots.plt.subplots(figsize=(8.5, 5), layout="constrained")
    for slope in range(1, 5):
        ends = [0.1 * (steps / STEPS[0]) ** -slope for steps in (STEPS[0], STEPS[-1])]
        axis.loglog([STEPS[0], STEPS[-1]], ends, color="#bbbbbb", lw=0.7)
        axis.annotate(f"slope {slope}", (STEPS[-1], ends[-1]), (8, 0), textcoords="offset points", va="center", color="#888888")
    lines = sorted(_lines(measured), key=lambda names: -measured[names[0]][-1])
    for names, marker in zip(lines, "osD^vPX*<>", strict=False):
        errors, case = measured[names[0]], CASES[names[0]]
        style = {"color": COLOURS[case.sampler], "ls": "--" if case.known else "-", "marker": marker, "markersize": 4.5}
        axis.loglog(STEPS, errors, label=f"{order(errors):.2f}  {', '.join(names)}", **style)
    axis.set_xticks(STEPS, map(str, STEPS))
    axis.minorticks_off()
    axis.set_xlim(right=1.6 * STEPS[-1])
    axis.set_xlabel("N, steps (of heun two network calls each)")
    axis.set_ylabel("distance to the exact solution, at the end")
    axis.grid(True, alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="order  sampler", alignment="left")
    return figure


def _lines(measured: dict[str, list[float]]) -> list[list[str]]:
    """The cases, together where they would lie on each other."""
    lines: list[list[str]] = []
    for name, errors in measured.items():
        near = (names for names in lines if all(0.9 < e / f < 1.1 for e, f in zip(errors, measured[names[0]], strict=True)))
        if (found := next(near, None)) is None:
            lines.append([name])
        else:
            found.append(name)
    return lines


def main() -> None:
    measured, document = measure(), ROOT / "docs" / "samplers.md"
    document.write_text(fill(document.read_text(), measured))
    with plots.plt.rc_context(plots.STYLE):
        plots.write(draw(measured), Path(__file__).parent / "results" / "orders")


if __name__ == "__main__":
    main()
