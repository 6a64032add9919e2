"""`python -m benchmarks.drop_ins [FOLDER]`: objects of diffusers, OpenAI's code and lucidrains', as they are and patched.

Fills the tables of docs/integrations.md. FOLDER holds a checkout of what is on no index, in a folder `guided`
(guided-diffusion); rows of what is not found are left out.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastddpm as fd

from . import clock, table
from .docs import ROOT, between, markdown
from .drop_in_cases import Case, diffusers_cases, lucidrains_cases, openai_cases, whole_cases

WITH, WITHOUT = "patched", "original"
READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero")
UPLOADS = ("lift_fresh", "lift_fresh_copy", "scalar_tensor")
BUDGET = 2.0
"""Seconds a case."""


def objects(case: Case) -> dict[str, Any]:
    """{column: an object of its own}."""
    made = {name: case.make() for name in (WITHOUT, WITH, *(["philox"] if case.draws else []))}
    for name in list(made)[1:]:
        for part in case.parts(made[name]):
            fd.patch(part, noise="torch" if name == WITH else "philox", update=case.update)
    return made


def calls(case: Case, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    x, other = torch.randn(shape), torch.randn(shape)
    return {name: _bound(case.call, each, x, other) for name, each in objects(case).items()}


def _bound(call: Callable[..., Any], *given: Any) -> Callable[[], Any]:
    return lambda: call(*given)


# ---- what a call does ----


class Counts(TorchDispatchMode):
    """Ops, passes over tensors of the data's size (each read or written once an op), uploads and host reads."""

    def __init__(self, elements: int):
        super().__init__()
        self.elements, self.ops, self.passes, self.uploads, self.reads = elements, 0, 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view:
            return out
        self.ops += 1
        self.reads += name in READS
        self.uploads += name in UPLOADS
        self.passes += sum(x.numel() >= self.elements for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
        return out


def counted(call: Callable[[], Any], shape: tuple[int, ...]) -> Counts:
    """Of a warm call. The dispatcher does not see a table that numpy hands over, an upload on a GPU, nor tolist, a read."""
    call()
    from_numpy, tolist = torch.from_numpy, torch.Tensor.tolist
    with Counts(torch.Size(shape).numel()) as counts:

        def uploading(array):
            counts.uploads += 1
            return from_numpy(array)

        def reading(x):
            counts.reads += 1
            return tolist(x)

        torch.from_numpy, torch.Tensor.tolist = uploading, reading
        try:
            call()
        finally:
            torch.from_numpy, torch.Tensor.tolist = from_numpy, tolist
    return counts


# ---- the tables ----


def speeds(cases: dict[str, Case]) -> str:
    rows = []
    for title, case in cases.items():
        for shape in case.shapes:
            times = clock.in_turn(calls(case, shape), BUDGET)
            ratios = {name: clock.ratio(times, WITHOUT, name) for name in times if name != WITHOUT}
            before = table.duration(clock.spread(times[WITHOUT])["median"])
            cells = [table.ratio({"ratio": ratios[name]}) if name in ratios else "" for name in (WITH, "philox")]
            rows.append([title, "x".join(map(str, shape)), before, *cells])
            print(" | ".join(rows[-1]), flush=True)
    return markdown(["", "shape", "as it is", "patched", "patched, philox"], rows)


def counts(cases: dict[str, Case]) -> str:
    rows = []
    for title, case in cases.items():
        shape = case.shapes[-1] if len(case.shapes) == 1 else (16, 3, 32, 32)
        both = [counted(call, shape) for call in calls(case, shape).values()]
        for_each = [[getattr(each, name) for each in both] for name in ("ops", "passes", "uploads", "reads")]
        rows.append([title, *(" / ".join(map(str, values)) for values in for_each)])
    return markdown(["as it is / patched / philox", "ops", "full passes", "uploads", "host reads"], rows)


def main() -> None:
    cases = {**diffusers_cases(), **openai_cases(Path(sys.argv[1] if len(sys.argv) > 1 else ".")), **lucidrains_cases()}
    document = ROOT / "docs" / "integrations.md"
    inside = {"speeds": lambda: speeds(cases), "whole": lambda: speeds(whole_cases()), "counts": lambda: counts(cases)}
    document.write_text(between(document.read_text(), "drop-ins", lambda name: inside[name]()))


if __name__ == "__main__":
    main()
