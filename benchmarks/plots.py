"""The results as pictures, each as PNG and SVG beside the JSON."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from . import table
from .loops import SAMPLE_PARTS, TRAIN_PARTS
from .machine import short
from .networks import NETWORKS
from .ops import COMPILED, FUSED, OPS, TITLES

COLOURS = {FUSED: "#0b6e4f", "eager": "#c8553d", COMPILED: "#f28f3b", "diffusers": "#3a6ea5", "lucidrains": "#6c5b7b"}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "svg.hashsalt": "fastddpm"}


def save(results: dict, path: Path) -> list[Path]:
    """Draws what the results have cases for."""
    saved = []
    for name, draw in PLOTS.items():
        with plt.rc_context(STYLE):
            figure = draw(results)
            if figure is None:
                continue
            margin = 0.2 / figure.get_figheight()
            figure.get_layout_engine().set(rect=(0, margin, 1, 1 - margin))
            figure.text(0.995, 0.003, conditions(results), ha="right", va="bottom", fontsize=6.5, color="#666666")
            saved += write(figure, path.with_name(f"{path.stem}-{name}"))
    return saved


def write(figure: Figure, stem: Path) -> list[Path]:
    """As PNG and SVG, and closes it."""
    saved = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        saved.append(stem.with_name(stem.name + suffix))
        figure.savefig(saved[-1], dpi=130, metadata=metadata)
    plt.close(figure)
    return saved


def conditions(results: dict) -> str:
    machine = results["machine"]
    return (
        f"{machine['device']}, {machine['threads']} threads, {machine['backend']}, torch {machine['versions']['torch']}, "
        f"float32, medians, {short(machine['commit'])}"
    )


def kernels(results: dict) -> Figure | None:
    """Nanoseconds an element over the size, an op a panel."""
    ours = [
        c for c in results["cases"] if c["level"] == "kernel" and (c["dtype"], c["memory_format"]) == ("float32", "contiguous")
    ]
    if not ours:
        return None
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.4), sharex=True, layout="constrained")
    for axis, op in zip(axes.flat, OPS, strict=True):
        for provider in (FUSED, "eager"):
            line = sorted((c["elements"], c["ns_per_element"]) for c in ours if c["op"] == op and c["provider"] == provider)
            if line:
                axis.loglog(*zip(*line, strict=True), marker="o", markersize=3, color=COLOURS[provider], label=provider)
        floor = sorted(
            (c["elements"], 1e9 * c["copy_recycled_seconds"] * c["bytes"] / c["copy_bytes"] / c["elements"])
            for c in ours
            if c["op"] == op and c["provider"] == FUSED
        )
        if floor:
            axis.loglog(*zip(*floor, strict=True), "--", color="#999999", label="copying as many bytes")
        axis.set_title(TITLES[op], fontsize=9)
        axis.grid(True, alpha=0.25)
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel("elements")
    figure.supylabel("ns an element")
    return figure


def ratios(results: dict) -> Figure | None:
    """Bars of the others' time over fastddpm's, with quartiles."""
    groups = table.groups(results["cases"], "ratio")
    if not groups:
        return None
    providers = table.others(groups)
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.42 * len(groups)), layout="constrained")
    height, labels = 0.8 / len(providers), []
    for row, group in enumerate(groups.values()):
        labels.append(table.title(next(iter(group.values()))))
        for i, name in enumerate(providers):
            if name in group:
                r = group[name]["ratio"]
                y = row + (i - (len(providers) - 1) / 2) * height
                whiskers = [[r["median"] - r["q1"]], [r["q3"] - r["median"]]]
                axis.barh(y, r["median"] - 1, height, left=1, color=COLOURS[name], xerr=whiskers, error_kw={"lw": 0.7})
                axis.text(max(r["q3"], 1) * 1.05, y, table.times(r["median"]), va="center", fontsize=6.5)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}x")
    axis.set_xlim(right=1.6 * axis.get_xlim()[1])
    axis.axvline(1, color=COLOURS[FUSED], lw=1.2)
    axis.set_xlabel("time over fastddpm's (the line at 1x); whiskers: quartiles of the rounds")
    axis.legend(
        [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in providers], providers, frameon=False, fontsize=7.5
    )
    return figure


def loops(results: dict) -> Figure | None:
    """Where a step's time goes, with fastddpm."""
    cases = [c for c in results["cases"] if c["level"] == "loop" and c["provider"] == FUSED and "parts" in c]
    if not cases:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 1.6 + 0.24 * len(cases)), layout="constrained")
    for axis, kind, parts in zip(axes, ("train", "sample"), (TRAIN_PARTS, SAMPLE_PARTS), strict=True):
        here = [c for c in cases if c["op"] == kind]
        left = [0.0] * len(here)
        for i, part in enumerate(parts):
            owned = part in ("noising", "loss", "reverse step")
            colour = COLOURS[FUSED] if owned else plt.cm.Greys(0.25 + 0.1 * i)
            share = [100 * c["parts"][part] / sum(c["parts"].values()) for c in here]
            axis.barh(range(len(here)), share, left=left, color=colour, label=part, hatch="//" if part == "loss" else None)
            left = [a + b for a, b in zip(left, share, strict=True)]
        axis.set_yticks(range(len(here)), [f"{NETWORKS[c['network']].title}, batch {c['batch']}" for c in here])
        axis.invert_yaxis()
        axis.set_xlabel({"train": "% of a training step", "sample": "% of a sampling step"}[kind])
        axis.legend(frameon=False, fontsize=7, ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def growth(results: dict) -> Figure | None:
    """Time and memory over the batch, the resolution, the length of the chain."""
    cases = [c for c in results["cases"] if c["level"] == "growth"]
    if not cases:
        return None
    titles = {"batch": "batch of 3x32x32", "resolution": "side of 8x3 pixels", "T": "steps of a chain, 16x3x32x32"}
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.4), sharex="col", layout="constrained")
    for time, memory, name in zip(*axes, titles, strict=True):
        for provider in (FUSED, "eager"):
            here = [c for c in cases if (c["op"], c["provider"]) == (name, provider)]
            style = {"marker": "o", "markersize": 3, "color": COLOURS[provider], "label": provider}
            time.loglog([c["size"] for c in here], [1e3 * c["seconds"]["median"] for c in here], **style)
            memory.semilogx([c["size"] for c in here], [c["peak_bytes"] / c["data_bytes"] for c in here], **style)
        memory.set_ylim(bottom=0)
        time.grid(True, alpha=0.25)
        memory.grid(True, alpha=0.25)
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("peak memory over the data's")
    axes[0, 0].legend(frameon=False, fontsize=7.5)
    for axis, title in zip(axes[1], titles.values(), strict=True):
        axis.set_xlabel(title)
    return figure


PLOTS = {"kernels": kernels, "ratios": ratios, "loops": loops, "growth": growth}
