"""`python -m benchmarks.gpu_publish DIR`: the rows of gpu.sh's stages become benchmarks/results/<device>-<stage>.json, a plot,
and the documents' GPU sections, which stand between `<!-- gpu: NAME -->` and `<!-- /gpu -->`. Rows of a dry run are refused.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

from . import table
from .docs import ROOT, between, markdown
from .machine import short, slug
from .ops import FUSED

Rows = list[dict]
NONE = "Not measured on a GPU."
DOCUMENTS = ("docs/performance.md", "README.md")


def load(folder: Path) -> dict[str, Rows]:
    """{stage: its rows}, the machine's first.

    Raises:
        SystemExit: they are not figures, or not one device's.
    """
    stages = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("*.jsonl"))
    }
    if not stages:
        raise SystemExit(f"gpu_publish: {folder} holds no stage's file (*.jsonl)")
    for stage, rows in stages.items():
        if any(row.get("dry") for row in rows):
            raise SystemExit(f"gpu_publish: {stage}.jsonl is of a dry run: its rows are not figures")
        if not rows or "machine" not in rows[0]:
            raise SystemExit(f"gpu_publish: {stage}.jsonl does not say where it was made")
    devices = {rows[0]["machine"]["device"] for rows in stages.values()}
    if len(devices) > 1:
        raise SystemExit(f"gpu_publish: {folder} holds rows of several devices: {', '.join(sorted(devices))}")
    return stages


# ---- the tables ----


def pivot(rows: Rows, line: Callable[[dict], tuple], column: Callable[[dict], str], cell: Callable[[dict], str]) -> str:
    """Lines in the rows' order, columns by size where they are sizes."""
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(line(row), {})[column(row)] = cell(row)
    columns = dict.fromkeys(column(row) for row in (sorted(rows, key=_elements) if column is _power else rows))
    head = [""] * len(next(iter(lines), ()))
    return (
        markdown([*head, *columns], [[*name, *(of.get(c, "") for c in columns)] for name, of in lines.items()]) if rows else ""
    )


def _elements(row: dict) -> int:
    return row["elements"]


def _power(row: dict) -> str:
    return f"2^{row['elements'].bit_length() - 1}"


def conditions(rows: Rows) -> str:
    machine = rows[0]["machine"]
    versions = f"driver {machine['driver']}, torch {machine['torch']}, triton {machine['triton']}, Python {machine['python']}"
    return f"{machine['device']}; {versions}; {machine['date'][:10]}; commit {short(machine['commit'])}."


def proof(rows: Rows) -> str:
    """Totals of tests and of words, what failed by name."""
    lines = []
    for row in rows:
        if row.get("what") == "totals":
            names = ("passed", "failed", "not collected", "skipped")
            counts = ", ".join(f"{row[name]} {name}" for name in names if name in row)
            lines.append(f"- `pytest {row['command']}`: {counts}; {row['seconds']} s")
        elif "error" in row:
            lines.append(f"- failed: `{row['what']}`")
    words = [row for row in rows if row.get("what") == "words"]
    if words:
        wrong = sum(sum(row["wrong"].values()) for row in words)
        lines.append(f"- {sum(row['count'] for row in words)} words: {wrong} values have not the C++ kernels' bits")
    return "\n".join(lines)


def kernels(rows: Rows) -> str:
    timed = [row for row in rows if "of_copy_bandwidth" in row]
    timed.sort(key=lambda row: (row["what"], row["dtype"], row["provider"] != FUSED, row["provider"]))
    cell = "{:.4g} us ({:.0%})".format
    return pivot(
        timed,
        lambda row: (row["what"], row["dtype"], row["provider"]),
        _power,
        lambda row: cell(1e6 * row["gpu_seconds"], row["of_copy_bandwidth"]),
    )


def host(rows: Rows) -> str:
    timed = [row for row in rows if "host_seconds" in row]
    return pivot(
        timed, lambda row: (row["what"],), lambda row: row["provider"], lambda row: f"{1e6 * row['host_seconds']:.1f} us"
    )


def tune(rows: Rows) -> str:
    timed = [row for row in rows if "per_thread" in row and "gpu_seconds" in row]
    return pivot(
        timed,
        lambda row: (row["what"], row["dtype"], _power(row)),
        lambda row: f"{row['per_thread']} a thread, {row['warps']} warps",
        lambda row: f"{1e6 * row['gpu_seconds']:.4g} us",
    )


def loops(rows: Rows) -> str:
    """A step's time, and over fastddpm's."""
    timed = [row for row in rows if "title" in row]
    return pivot(
        timed,
        lambda row: (f"{row['what']}: {row['title']}, batch {row['batch']}",),
        lambda row: row["provider"],
        lambda row: f"{table.duration(row['seconds']['median'])}, {table.ratio(row)}",
    )


def profile(rows: Rows) -> str:
    timed = [{"kernel": row["what"], "name": n, "value": v} for row in rows for n, v in row.get("metrics", {}).items()]
    return pivot(timed, lambda row: (row["name"],), lambda row: row["kernel"], lambda row: f"{row['value']:.6g}")


TABLES: dict[str, tuple[Callable[[Rows], str], tuple[str, ...]]] = {
    "conditions": (conditions, ("kernels", "test", "noise", "tune", "loops", "profile", "compile")),
    "proof": (proof, ("test", "noise", "profile")),
    "kernels": (kernels, ("kernels", "compile")),
    "host": (host, ("kernels", "compile")),
    "tune": (tune, ("tune",)),
    "loops": (loops, ("loops",)),
    "profile": (profile, ("profile",)),
}
"""A section's table, and the stages that it is made of."""


# ---- into the documents ----


def section(name: str, stages: dict[str, Rows]) -> str:
    make, wanted = TABLES[name]
    rows = [row for stage in wanted for row in stages.get(stage, ())]
    return (rows and make(rows)) or NONE


def fill(text: str, stages: dict[str, Rows], plot: str) -> str:
    return between(text, "gpu", lambda name: plot if name == "plot" else section(name, stages))


def draw(rows: Rows, path: Path) -> bool:
    """The fraction of the copy's bandwidth over the size, a stage a panel; whether there was anything to draw."""
    from . import plots

    timed = [row for row in rows if "of_copy_bandwidth" in row and row["dtype"] == "float32"]
    names = list(dict.fromkeys(row["what"] for row in timed))
    if not names:
        return False
    with plots.plt.rc_context(plots.STYLE):
        figure, axes = plots.plt.subplots(1, len(names), figsize=(2.4 * len(names), 3), sharey=True, squeeze=False)
        for axis, name in zip(axes.flat, names, strict=True):
            for provider in dict.fromkeys(row["provider"] for row in timed):
                here = [row for row in timed if (row["what"], row["provider"]) == (name, provider)]
                line = sorted((row["elements"], row["of_copy_bandwidth"]) for row in here)
                axis.semilogx(*zip(*line, strict=True), marker="o", markersize=3, color=plots.COLOURS[provider], label=provider)
            axis.set_title(name, fontsize=9)
        axes[0, 0].set_ylabel("of the copy's bandwidth")
        axes[0, 0].legend(frameon=False, fontsize=8)
        figure.supxlabel("elements, float32")
        figure.tight_layout()
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plots.plt.close(figure)
    return True


def publish(folder: Path, root: Path = ROOT) -> None:
    stages, results = load(folder), root / "benchmarks" / "results"
    results.mkdir(parents=True, exist_ok=True)
    device = slug(next(iter(stages.values()))[0]["machine"]["device"])
    for stage, rows in stages.items():
        (results / f"{device}-{stage}.json").write_text(json.dumps(rows, indent=1) + "\n")
    picture = results / f"{device}-gpu.png"
    drawn = draw(stages.get("kernels", []) + stages.get("compile", []), picture)
    for name in DOCUMENTS:
        document = root / name
        plot = f"![kernels on a GPU]({os.path.relpath(picture, document.parent)})" if drawn else NONE
        document.write_text(fill(document.read_text(), stages, plot))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    publish(parser.parse_args().folder)


if __name__ == "__main__":
    main()
