"""`python -m benchmarks.docs RESULTS.json`: fills the tables and plots of docs/performance.md and the README from a run.

A figure in a document stands between two markers, `<!-- run: NAME -->` and `<!-- /run -->`, and nowhere else; in the README all
between `<!-- benchmarks: begin -->` and `<!-- benchmarks: end -->` is the run's.
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from . import growth, table
from .inputs import STEPS
from .machine import short
from .networks import NETWORKS
from .ops import ACCESSES, FUSED, OPS, TITLES

ROOT = Path(__file__).parents[1]
CALLED, CACHED, STREAMED = 1 << 10, 1 << 18, 1 << 26
"""Sizes at which the call is all; at which the caches hold all that an op touches; at which they hold none of it."""
README_ROWS = ("noising", "chain", "reverse", "hybrid", "kl", "bits_per_dim")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def between(text: str, kind: str, inside: Callable[[str], str]) -> str:
    """A document with what `inside` makes of each NAME, between `<!-- KIND: NAME -->` and `<!-- /KIND -->`."""
    return re.sub(
        rf"(<!-- {kind}: ([a-z ]+) -->).*?(<!-- /{kind} -->)",
        lambda match: f"{match[1]}\n\n{inside(match[2])}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def _power(elements: int) -> str:
    return f"2^{elements.bit_length() - 1}"


def _ns(value: float) -> str:
    return f"{value:.3g}"


# ---- what a run says ----


def conditions(results: dict) -> str:
    machine, versions = results["machine"], results["machine"]["versions"]
    kernels = f"{machine['backend']} kernels, built with {machine['compiler']}" if machine["compiler"] else machine["backend"]
    return (
        f"{machine['device']}, {machine['threads']} threads; {kernels}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; Python {machine['python']}; "
        f"{machine['date'][:10]}; commit {short(machine['commit'])}; {results['run']['seconds']} s for the whole run."
    )


def ratios(results: dict, ops: tuple[str, ...] = tuple(TITLES)) -> str:
    groups = {name: group for name, group in table.groups(results["cases"], "ratio").items() if name.split("/")[0] in ops}
    others, rows = table.others(groups), []
    for group in groups.values():
        case = next(iter(group.values()))
        ours = table.duration(case["fastddpm_seconds"]["median"])
        rows.append([table.title(case), ours, *(table.ratio(group.get(o)) for o in others)])
    return markdown(["", FUSED, *others], rows)


def _kernels(results: dict, **fixed) -> list[dict]:
    fixed = {"level": "kernel", "provider": FUSED, **fixed}
    return [case for case in results["cases"] if all(case[name] == value for name, value in fixed.items() if name in case)]


PLAIN = {"dtype": "float32", "memory_format": "contiguous"}


def sweep(results: dict) -> str:
    """ns an element, and the fraction of the copy's bandwidth onto recycled memory."""
    sizes = sorted({case["elements"] for case in _kernels(results, **PLAIN)})
    rows = []
    for op in OPS:
        cells = {case["elements"]: case for case in _kernels(results, op=op, **PLAIN)}
        cell = {n: f"{_ns(c['ns_per_element'])} ({c['of_recycled_copy']:.0%})" for n, c in cells.items()}
        rows.append([TITLES[op], *(cell.get(n, "") for n in sizes)])
    return markdown(["", *map(_power, sizes)], rows)


def copies(results: dict) -> str:
    """The machine's own copy, GB/s read and written."""
    cases = {case["elements"]: case for case in _kernels(results, **PLAIN)}
    rows = []
    for kind, title in (("recycled", "onto memory used again"), ("fresh", "onto memory newly asked for")):
        cells = [f"{c['copy_bytes'] / c[f'copy_{kind}_seconds'] / 1e9:.3g}" for _, c in sorted(cases.items())]
        rows.append([title, *cells])
    return markdown(["copy, GB/s", *map(_power, sorted(cases))], rows)


def limits(results: dict) -> str:
    """Each kernel at the largest size over its floors: moving its bytes, and its arithmetic alone (itself in the caches, the
    cost of the call taken off)."""
    rows = []
    for op in OPS:
        cases = {case["elements"]: case for case in _kernels(results, op=op, **PLAIN)}
        if not {CALLED, CACHED, STREAMED} <= cases.keys():
            continue
        large, here = cases[STREAMED], cases[STREAMED]["ns_per_element"]
        more = cases[CACHED]["seconds"]["median"] - cases[CALLED]["seconds"]["median"]
        arithmetic = 1e9 * more / (CACHED - CALLED)
        copied = 1e9 * large["copy_recycled_seconds"] * large["bytes"] / large["copy_bytes"] / large["elements"]
        held = "arithmetic" if arithmetic > copied else "memory"
        over = (here / max(arithmetic, copied), here / (arithmetic + copied))
        rows.append([TITLES[op], str(4 * ACCESSES[op]), *map(_ns, (copied, arithmetic, here)), held, *map(table.times, over)])
    head = ["ns an element", "bytes", "copying them", "in the caches", f"at {_power(STREAMED)}", "the higher floor", "over it"]
    return markdown([*head, "over the sum of both"], rows)


def kinds(results: dict) -> str:
    """Other dtypes and channels_last, over float32 contiguous of the same size."""
    plain = {(c["op"], c["elements"]): c["ns_per_element"] for c in _kernels(results, **PLAIN)}
    found: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    for case in _kernels(results):
        key = (case["op"], case["elements"])
        if key in plain:
            found.setdefault(key, {})[case["dtype"], case["memory_format"]] = case["ns_per_element"] / plain[key]
    wanted = (("bfloat16", "contiguous"), ("float16", "contiguous"), ("float32", "channels_last"))
    rows = [
        [f"{TITLES[op]}, {_power(n)}", *(table.times(ratios.get(kind)) for kind in wanted)]
        for (op, n), ratios in sorted(found.items(), key=lambda item: (list(TITLES).index(item[0][0]), item[0][1]))
        if len(ratios) > 1
    ]
    return markdown(["time over float32 contiguous", "bfloat16", "float16", "channels_last"], rows)


def layouts(results: dict) -> str:
    """fastddpm's own."""
    rows = []
    for case in (c for c in results["cases"] if c["level"] == "layout"):
        both = (table.duration(case[name]["median"]) for name in ("contiguous_seconds", "seconds"))
        rows.append([table.title(case), *both, table.ratio(case)])
    return markdown(["", "contiguous", "channels_last", "channels_last over contiguous"], rows)


def calls(results: dict) -> str:
    rows = []
    for group in table.groups(results["cases"], "call").values():
        for provider in (FUSED, *table.OTHERS):
            if case := group.get(provider):
                counts = (case["launches"], case["host_reads"], f"{case['peak_memory']:.1f}")
                rows.append([TITLES[case["op"]], provider, f"{1e6 * case['seconds']['median']:.1f}", *map(str, counts)])
    return markdown(["", "", "us of the host", "ops dispatched", "values read", "peak memory, x_0's"], rows)


def loops(results: dict, kind: str) -> str:
    groups = {n: g for n, g in table.groups(results["cases"], "loop").items() if n.startswith(kind)}
    others, rows = table.others(groups), []
    for group in groups.values():
        case = group[FUSED]
        parts = case["parts"]
        owned = sum(seconds for part, seconds in parts.items() if part in ("noising", "loss", "reverse step"))
        rows.append(
            [
                _network(case),
                table.duration(case["seconds"]["median"]),
                f"{case['images_per_second']:.3g}",
                f"{owned / sum(parts.values()):.2%}",
                *(table.ratio(group.get(other)) for other in others),
            ]
        )
    return markdown(["", "fastddpm, a step", "samples/s", "of it fastddpm's", *others], rows)


def whole(results: dict) -> str:
    """Loops from noise to images."""
    groups = {n: g for n, g in table.groups(results["cases"], "loop").items() if "parts" not in next(iter(g.values()))}
    others, rows = table.others(groups), []
    for group in groups.values():
        case = group[FUSED]
        about = f"{STEPS} {TITLES[case['op']]}s, {_network(case)}"
        cells = (table.duration(case["seconds"]["median"]), f"{case['images_per_second']:.3g}")
        rows.append([about, *cells, *(table.ratio(group.get(other)) for other in others)])
    return markdown(["", "fastddpm, a loop", "samples/s", *others], rows)


def _network(case: dict) -> str:
    return f"{NETWORKS[case['network']].title}, {case['parameters'] / 1e6:.2f} M, batch {case['batch']}"


def grown(results: dict) -> str:
    """Where launches stop mattering, and the exponent from there on."""
    rows = []
    for axis in growth.SIZES:
        for provider in growth.PROVIDERS:
            cases = [c for c in results["cases"] if (c["level"], c["op"], c["provider"]) == ("growth", axis, provider)]
            if not cases:
                continue
            by = "size" if axis == "T" else "data_bytes"  # along the resolution the data grows with the square of the side
            start, exponent = growth.linear([(c[by], c["seconds"]["median"]) for c in cases])
            size = next((c["size"] for c in cases if c[by] == start), "")
            memory = [c["peak_bytes"] / c["data_bytes"] for c in cases if c["peak_bytes"]]
            spread = f"{min(memory):.2f} .. {max(memory):.2f}" if memory else ""
            rows.append([axis, provider, f"{min(c['size'] for c in cases)} .. {max(c['size'] for c in cases)}"])
            rows[-1] += [str(size), f"{exponent:.2f}", spread]
    head = ["along", "", "sizes", "launches stop mattering at", "exponent from there", "peak memory, the data's"]
    return markdown(head, rows)


def threads(results: dict) -> str:
    rows = []
    for name in growth.THREADED:
        cases = [c for c in results["cases"] if (c["level"], c["op"]) == ("threads", name)]
        rows += [[TITLES[name], str(c["threads"]), table.duration(c["seconds"]["median"]), table.ratio(c)] for c in cases]
    return markdown(["", "threads", "time", "one thread's time over it"], rows)


def missing(results: dict) -> str:
    return markdown(["left out", "why"], [[part["what"], part["why"]] for part in results["left_out"]])


TABLES: dict[str, Callable[[dict], str]] = {
    "conditions": conditions,
    "ratios": ratios,
    "copies": copies,
    "sweep": sweep,
    "limits": limits,
    "kinds": kinds,
    "layouts": layouts,
    "calls": calls,
    "train": lambda results: loops(results, "train"),
    "sample": lambda results: loops(results, "sample"),
    "whole": whole,
    "growth": grown,
    "threads": threads,
    "missing": missing,
}


# ---- into the documents ----


def fill(text: str, results: dict, path: Path, folder: Path) -> str:
    """A document in `folder` with the tables, and the plots beside `path`, of this run."""

    def inside(name: str) -> str:
        return _plot(name.removeprefix("plot "), path, folder) if name.startswith("plot ") else TABLES[name](results)

    return between(text, "run", inside)


def _plot(name: str, path: Path, folder: Path) -> str:
    place = os.path.relpath(path.with_name(f"{path.stem}-{name}.png"), folder)
    return f"![{name}]({place})"


def readme(text: str, results: dict, path: Path) -> str:
    """The README with this run's one table and one plot."""
    machine = results["machine"]
    inside = (
        f"{_plot('ratios', path, ROOT)}\n\n"
        f"*Time over fastddpm's: {machine['device']}, {machine['threads']} threads, {machine['backend']} kernels, torch "
        f"{machine['versions']['torch']}, float32, contiguous; providers timed in turn, medians of the rounds' ratios, "
        f"whiskers their quartiles; `make bench` at commit {short(machine['commit'])}.*\n\n"
        f"{ratios(results, README_ROWS)}"
    )
    begin, end = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{inside}\n{end}", text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results.resolve()
    results = json.loads(path.read_text())
    document, front = ROOT / "docs" / "performance.md", ROOT / "README.md"
    document.write_text(fill(document.read_text(), results, path, document.parent))
    front.write_text(readme(front.read_text(), results, path))


if __name__ == "__main__":
    main()
