"""The run: the per-op cases under pytest-benchmark, then what is timed in turn, into one dict of results."""

import contextlib
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tqdm import tqdm

from . import growth, loops, machine, plan, versus, whole
from .networks import NETWORKS
from .ops import Case, LeftOutError
from .peers import DDPMScheduler

SCHEMA = 1
PYTEST = ["--benchmark-only", "--benchmark-disable-gc", "--benchmark-warmup=on", "--benchmark-warmup-iterations=3"]


class Job(NamedTuple):
    """What is timed together, in turn."""

    name: str
    run: Callable[[], list[dict]]


def jobs(quick: bool) -> list[Job]:
    found = [Job(case.name, lambda case=case: versus.measure(case, quick)) for case in plan.ratio_cases(quick)]
    found += [Job(case.name, lambda case=case: versus.layout(case, quick)) for case in plan.layout_cases(quick)]
    for network in ("mlp", "small") if quick else NETWORKS:
        found += [job for kind in ("train", "sample") for job in _loop_jobs(network, kind, quick)]
    found += [Job(f"loop/{op}/mlp/1", lambda op=op: whole.measure(op, "mlp", 1)) for op in whole.OPS]
    for axis, sizes in {} if quick else growth.SIZES.items():
        found += [Job(f"growth/{axis}/{n}", lambda axis=axis, n=n: growth.measure(axis, n)) for n in sizes]
    return found + [Job(f"threads/{op}", lambda op=op: growth.threads(op)) for op in growth.THREADED]


def _loop_jobs(network: str, kind: str, quick: bool) -> list[Job]:
    """One a batch size, up to the first that takes too long."""
    too_long: list[int] = []

    def run(batch: int) -> list[dict]:
        if NETWORKS[network].needs_diffusers and DDPMScheduler is None:
            raise LeftOutError("diffusers, whose network it is, is not installed")
        if too_long:
            raise LeftOutError(f"batch {too_long[0]} is left out already")
        try:
            return loops.measure(network, batch, kind)
        except LeftOutError:
            too_long.append(batch)
            raise

    batches = NETWORKS[network].batches
    kept = batches[:2] if quick else batches
    return [Job(f"loop/{kind}/{network}/{batch}", lambda batch=batch: run(batch)) for batch in kept]


class Selection:
    """A pytest plugin: keeps the cases wanted, moves the bar, and remembers what failed."""

    def __init__(self, names: set[str], bar: tqdm):
        self.names, self.bar = names, bar
        self.failed: list[dict[str, str]] = []

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.callspec.params["case"].name in self.names]

    def pytest_runtest_logstart(self, nodeid):
        self.bar.set_postfix_str(_name_in(nodeid))

    def pytest_runtest_logreport(self, report):
        if report.failed:
            message = str(getattr(report.longrepr, "reprcrash", None) or report.longrepr)
            self.failed.append({"what": _name_in(report.nodeid), "why": message})
        if report.when == "call":
            self.bar.update()


def _name_in(nodeid: str) -> str:
    return nodeid[nodeid.index("[") + 1 : -1]


def run(quick: bool = False, only: re.Pattern | None = None, reference: bool = False) -> dict:
    """Measures. The results: machine, run, cases, left_out, failed."""
    start = time.perf_counter()
    per_op = [case for case in [*plan.kernel_cases(quick), *plan.call_cases()] if _wanted(case.name, only)]
    others = [job for job in jobs(quick) if _wanted(job.name, only)]
    left_out = plan.left_out(quick)
    with tqdm(total=len(per_op) + len(others), desc="measuring", unit="case") as bar:
        cases, failed = _run_pytest(per_op, quick, reference, bar)
        for job in others:
            bar.set_postfix_str(job.name)
            try:
                with _quiet():
                    cases += job.run()
            except LeftOutError as reason:
                left_out.append({"what": job.name, "why": str(reason)})
            except (AssertionError, RuntimeError) as error:  # a wrong result, or too little memory
                failed.append({"what": job.name, "why": str(error)})
            bar.update()
    settings = {"quick": quick, "only": only.pattern if only else None, "seconds": round(time.perf_counter() - start)}
    return {
        "schema": SCHEMA,
        "machine": machine.describe(),
        "run": settings,
        "cases": cases,
        "left_out": left_out,
        "failed": failed,
    }


def _wanted(name: str, only: re.Pattern | None) -> bool:
    return only is None or only.search(name) is not None


def _run_pytest(cases: list[Case], quick: bool, reference: bool, bar: tqdm) -> tuple[list[dict], list[dict]]:
    if not cases:
        return [], []
    selection, said = Selection({case.name for case in cases}, bar), io.StringIO()
    budget = ["--benchmark-max-time=0.03", "--benchmark-min-rounds=3"] if quick else ["--benchmark-max-time=0.15"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmarks.json"
        here = [str(machine.HERE), f"--benchmark-json={path}", *(["--reference"] if reference else [])]
        with contextlib.redirect_stdout(said):
            code = pytest.main([*here, *PYTEST, *budget, "-q", "-p", "no:cacheprovider"], plugins=[selection])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise SystemExit(f"benchmarks: pytest ended with {code!r}\n{said.getvalue()}")
        measured = json.loads(path.read_text())["benchmarks"] if path.exists() else []  # none where all failed
    return [_record(case) for case in measured], selection.failed


def _record(case: dict) -> dict:
    """pytest-benchmark's entry as this suite's, its figures worked out."""
    stats, about = case["stats"], case["extra_info"]
    record = {**about, "seconds": {name: stats[name] for name in ("min", "q1", "median", "q3", "rounds")}}
    if about["level"] == "kernel":
        median = stats["median"]
        record["ns_per_element"] = 1e9 * median / about["elements"]
        for kind in ("recycled", "fresh"):
            bandwidth = about["copy_bytes"] / about[f"copy_{kind}_seconds"]
            record[f"of_{kind}_copy"] = about["bytes"] / median / bandwidth
    return record


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what native code (the profiler, compilers) writes to stderr; the bar writes between jobs."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
