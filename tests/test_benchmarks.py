"""The benchmark suite's own logic: what it refuses, chooses, compares and writes, on measurements that are made up or tiny."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import importable

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the suite is no part of the package

from benchmarks import (  # noqa: E402
    __main__,
    clock,
    compare,
    docs,
    eager,
    gates,
    growth,
    host,
    inputs,
    loops,
    networks,
    ops,
    peers,
    plan,
    plots,
    record,
    suite,
    table,
    versus,
    whole,
)
from fastddpm import _extension  # noqa: E402

built = pytest.mark.skipif(_extension.module is None, reason="there are no kernels to measure")
needs_diffusers = pytest.mark.skipif(not importable("diffusers"), reason="diffusers is not installed")


def spread(median, width=0.1):
    return {
        "min": median * (1 - width),
        "q1": median * (1 - width / 2),
        "median": median,
        "q3": median * (1 + width / 2),
        "rounds": 9,
    }


def kernel(provider="fastddpm", seconds=1e-3, op="noising", elements=1 << 20):
    shape = [elements >> 14, 4, 64, 64]
    case = ops.Case("kernel", op, provider, tuple(shape))
    size = 4 * elements
    about = {"bytes": 2 * size, "copy_bytes": 2 * size, "copy_recycled_seconds": 5e-4, "copy_fresh_seconds": 1e-3}
    figures = {"ns_per_element": 1e9 * seconds / elements, "of_recycled_copy": 0.5, "of_fresh_copy": 1.0}
    return {**case._asdict(), "name": case.name, "elements": elements, "seconds": spread(seconds), **about, **figures}


def others(provider="eager", ratio=4.0):
    case = ops.Case("ratio", "noising", provider, (128, 3, 32, 32))
    both = {"seconds": spread(4e-3), "fastddpm_seconds": spread(1e-3), "ratio": spread(ratio)}
    return {**case._asdict(), "name": case.name, "elements": 393216, **both}


def layout(ratio=1.1, seconds=1.1e-3):
    (case, *_) = plan.layout_cases(quick=True)
    both = {"seconds": spread(seconds), "contiguous_seconds": spread(1e-3), "ratio": spread(ratio)}
    return {**case._asdict(), "name": case.name, **both}


def results(*cases, commit="0123456789abcdef"):
    versions = {"torch": "2.13.0", "fastddpm": "0.1.0"}
    machine = {"device": "a CPU, 2 cores", "threads": 2, "backend": "C++ (avx512)", "versions": versions, "compiler": "gcc 12"}
    machine |= {"commit": commit, "date": "2026-01-01T00:00:00+00:00", "python": "3.11"}
    run = {"quick": False, "only": None, "seconds": 1}
    return {"schema": suite.SCHEMA, "machine": machine, "run": run, "cases": list(cases), "left_out": [], "failed": []}


# ---- what got slower ----


def test_slower_beyond_the_spread_is_marked():
    old, new = results(kernel(seconds=1e-3)), results(kernel(seconds=1.3e-3))
    assert list(compare.slower(old, new).values()) == [pytest.approx(1.3)]
    assert "SLOWER 1.30x" in "\n".join(compare.lines(old, new))
    assert "SLOWER 1.30x" in table.text(new, compare.slower(old, new))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.04])
def test_faster_or_within_the_spread_is_not(factor):
    assert compare.slower(results(kernel(seconds=1e-3)), results(kernel(seconds=factor * 1e-3))) == {}


def test_a_machine_that_got_slower_is_no_regression():
    old = results(kernel(), kernel("eager", 4e-3))
    new = results(kernel(seconds=1.3e-3), kernel("eager", 5.2e-3))
    assert compare.drift(old, new, "kernel") == pytest.approx(1.3)
    assert compare.slower(old, new) == {}


def test_ratios_in_turn_are_compared_as_ratios():
    assert list(compare.slower(results(others(ratio=4.0)), results(others(ratio=3.0))).values()) == [pytest.approx(4 / 3)]
    assert compare.slower(results(others(ratio=4.0)), results(others(ratio=5.0))) == {}


def test_a_layout_is_compared_by_what_it_takes_over_contiguous_memory():
    old = results(layout(1.1))
    assert list(compare.slower(old, results(layout(1.3))).values()) == [pytest.approx(1.3 / 1.1)]
    assert compare.slower(old, results(layout(0.9))) == compare.slower(old, results(layout(1.12))) == {}
    assert compare.slower(old, results(layout(1.1, seconds=9.0))) == {}


def test_a_loop_is_compared_by_what_it_is_beside_the_others():
    def run(seconds, ratio):
        loop = {"level": "loop", "seconds": spread(seconds)}
        ours = {**loop, "name": "loop/train/mlp/1/fastddpm", "provider": "fastddpm", "ratio": spread(1.0)}
        return results(ours, {**loop, "name": "loop/train/mlp/1/eager", "provider": "eager", "ratio": spread(ratio)})

    assert compare.slower(run(1.0, 1.5), run(9.0, 1.5)) == {}
    assert compare.slower(run(1.0, 1.5), run(1.0, 1.2)) == {"loop/train/mlp/1/eager": pytest.approx(1.25)}


def test_cases_of_one_run_alone_are_no_regression():
    assert compare.slower(results(kernel()), results(kernel(op="mse", seconds=1.0))) == {}


# ---- the table, the documents, the plots ----


def test_the_table_has_a_row_a_case_and_the_others_beside():
    text = table.text(results(kernel(), kernel("eager", 4e-3), others()), {})
    rows = [line for line in text.splitlines() if line.startswith("noising/")]
    assert len(rows) == 2 and all("4.00x" in row for row in rows)
    assert "0.954 ns an element, 50% of the copy" in rows[0]


def test_a_layouts_ratio_stands_in_the_table_and_in_the_documents():
    run = results(layout())
    (row,) = [line for line in table.text(run, {}).splitlines() if line.startswith("noising/")]
    assert row.split()[:3] == ["noising/128x3x32x32/float32/channels_last", "1.1", "ms"] and "1.10x (1.04 .. 1.16)" in row
    assert "| noising (q_sample), 128x3x32x32 | 1 ms | 1.1 ms | 1.10x (1.04 .. 1.16) |" in docs.layouts(run)


@pytest.mark.parametrize("seconds, text", [(2.5, "2.5 s"), (1.5e-3, "1.5 ms"), (9.9e-6, "9.9 us"), (5e-8, "50 ns")])
def test_durations(seconds, text):
    assert table.duration(seconds) == text


def test_documents_are_filled_between_their_markers_alone():
    run = results(others(), *(kernel(elements=1 << n, seconds=1e-9 * (1 << n)) for n in (14, 18, 26)))
    text = "before <!-- run: ratios -->\nold\n<!-- /run --> between <!-- run: plot ratios --><!-- /run --> after"
    filled = docs.fill(text, run, ROOT / "benchmarks" / "results" / "A.json", ROOT / "docs")
    assert filled.startswith("before ") and " between " in filled and filled.endswith(" after") and "old" not in filled
    assert "4.00x (3.80 .. 4.20)" in filled and "(../benchmarks/results/A-ratios.png)" in filled
    assert docs.fill(filled, run, ROOT / "benchmarks" / "results" / "A.json", ROOT / "docs") == filled
    for name in docs.TABLES:
        docs.TABLES[name](run)


def test_the_documents_hold_their_markers():
    text = (ROOT / "docs" / "performance.md").read_text()
    names = set(re.findall(r"<!-- run: ([a-z ]+) -->", text))
    assert names == {*docs.TABLES, *(f"plot {name}" for name in plots.PLOTS)}
    assert text.count("<!-- /run -->") == len(names)
    assert "<!-- benchmarks: begin -->" in (ROOT / "README.md").read_text()


def test_plots_are_written_for_what_was_measured(tmp_path):
    drawn = plots.save(results(kernel(), others(), others("diffusers", 0.7)), tmp_path / "run.json")
    assert {path.name for path in drawn} == {
        f"run-{name}{suffix}" for name in ("kernels", "ratios") for suffix in (".png", ".svg")
    }
    assert all(path.stat().st_size > 1000 for path in drawn)


# ---- the counts, the growth, the loops ----


def test_launches_and_reads_are_counted():
    x = torch.ones(4)
    assert host.dispatched(lambda: (x + 1).mul_(2).view(2, 2)) == {"launches": 2, "host_reads": 0}
    assert host.dispatched(lambda: x.sum().item()) == {"launches": 1, "host_reads": 1}
    assert host.dispatched(lambda: torch.empty_like(x).detach()) == {"launches": 0, "host_reads": 0}


def test_the_peak_of_memory_counts_what_is_held_together():
    x = torch.ones(1 << 16)
    for call, tensors in ((lambda: x + x, 1), (lambda: (x + x) + (x + x), 3), (lambda: x + x + x + x, 2)):
        assert host.peak_bytes(call) == tensors * 4 * x.numel()
    b = inputs.Batch((2, 3, 64, 64))
    for _ in range(3):  # a chain frees the gradient of the call before, which is not taken off
        assert round(host.peak_bytes(ops.make("chain", ops.FUSED, b), b.forget) / (4 * b.elements)) == 2


def test_a_layout_is_timed_in_turn_with_contiguous_memory(monkeypatch):
    times = {"channels_last": [3.0, 4.0, 5.0], "contiguous": [2.0, 2.0, 2.0]}
    made = {}

    def in_turn(calls, budget):
        made.update({name: call().stride() for name, call in calls.items()}, budget=budget)
        return times

    monkeypatch.setattr(clock, "in_turn", in_turn)
    case = ops.Case("layout", "noising", ops.FUSED, (2, 3, 4, 4), memory_format="channels_last")
    (record,) = versus.layout(case, quick=False)
    assert made == {"channels_last": (48, 1, 12, 3), "contiguous": (48, 16, 4, 1), "budget": versus.BUDGET}
    assert record["seconds"]["median"] == 4.0 and record["contiguous_seconds"]["median"] == 2.0
    assert record["ratio"] == {"min": 1.5, "q1": 1.75, "median": 2.0, "q3": 2.25, "rounds": 3}
    versus.layout(case, quick=True)
    assert made["budget"] == versus.BUDGET / 4


@pytest.mark.parametrize("quick", [True, False])
def test_layouts_are_compared_at_shapes_of_real_work(quick):
    names = [job.name for job in suite.jobs(quick) if job.name.startswith("layout/")]
    shapes = {
        "noising": ("128x3x32x32", "64x3x256x256"),
        "chain": ("128x3x32x32", "64x3x256x256"),
        "reverse": ("16x3x32x32", "64x3x64x64"),
        "hybrid": ("128x3x32x32", "16x3x256x256"),
        "kl": ("128x3x32x32", "16x3x256x256"),
    }
    kept = [(op, shape) for op, both in shapes.items() for shape in (both[:1] if quick else both)]
    assert names == [f"layout/{op}/{shape}/float32/channels_last/fastddpm" for op, shape in kept]


def test_without_a_compiler_the_rest_is_measured(monkeypatch):
    def fails(function):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", fails)
    reason = ops.why_not_compiled.__wrapped__()
    assert reason == "torch.compile fails here: no C++ compiler found"
    for user in (plan, loops):
        monkeypatch.setattr(user, "why_not_compiled", lambda: reason)
    assert ops.COMPILED not in plan.ratio_providers("noising", quick=False)
    assert {"what": ops.COMPILED, "why": reason} in plan.left_out(quick=False)
    assert ops.COMPILED not in loops.Loop("mlp", 1).losses()


def test_growth_finds_where_launches_stop_mattering():
    start, exponent = growth.linear([(float(n), 1e-5 + 1e-6 * n) for n in (1, 4, 16, 64, 256, 1024, 4096)])
    assert start == 64 and 0.9 < exponent < 1.05


def test_a_loop_that_takes_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(clock, "LIMIT", 0.0)
    first, second, *_ = [job for job in suite.jobs(quick=False) if job.name.startswith("loop/train/mlp/")]
    with pytest.raises(ops.LeftOutError, match="more than 0 s"):
        first.run()
    with pytest.raises(ops.LeftOutError, match="batch 1 is left out already"):
        second.run()


def test_a_loops_gate_sees_a_wrong_loss():
    loop = loops.Loop("mlp", 4)
    with pytest.raises(AssertionError, match="half's loss"):
        loop.check_losses({"half": lambda: loop._fused_loss()() / 2})
    with pytest.raises(AssertionError, match="quiet's step"):
        loop.check_steps({"quiet": lambda x, i: eager.step(loop.model(x, x), x, eager.numbers(loop.schedule, i), 0.0)[0]})


@needs_diffusers
def test_a_whole_loop_stands_in_the_table_and_in_the_documents(monkeypatch, tmp_path):
    monkeypatch.setattr(whole, "BUDGET", 0.0)
    run = results(others(), *whole.measure("ddim", "mlp", 1))
    (row,) = [line for line in table.text(run, {}).splitlines() if line.startswith("ddim/mlp/1 ")]
    assert "images/s" in row and row.rstrip().endswith("x")
    assert "| 50 DDIM steps, MLP on action chunks, 1.43 M, batch 1 |" in docs.whole(run)
    assert docs.loops(run, "sample").count("\n") == 1 and plots.loops(run) is None  # it has no parts
    assert len(plots.save(run, tmp_path / "run.json")) == 2  # the ratios


@needs_diffusers
def test_a_whole_loop_to_other_images_has_no_figure(monkeypatch):
    network = networks.NETWORKS["mlp"].make().eval()
    monkeypatch.setitem(peers.SCHEDULERS, "ddim", "EulerDiscreteScheduler")
    with pytest.raises(AssertionError, match="not close"):
        whole.calls("ddim", network, (2, 16, 7))


@needs_diffusers
def test_the_cifar10_network_is_that_of_the_paper():
    network = networks.NETWORKS["cifar10"].make()
    assert sum(p.numel() for p in network.parameters()) == 35_746_307


# ---- a run ----


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A suite of two ops, one layout and one loop, its files elsewhere."""
    monkeypatch.setattr(clock, "TURN", 1e-4)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # with it pytest-benchmark refuses: its figures would not be fair
    case = ops.Case("ratio", "noising", "all", (4, 3, 8, 8))
    last = ops.Case("layout", "noising", ops.FUSED, (4, 3, 8, 8), memory_format="channels_last")
    jobs = [
        suite.Job(case.name, lambda: versus.measure(case, quick=True)),
        suite.Job(last.name, lambda: versus.layout(last, quick=True)),
        suite.Job("loop/none", left_out),
    ]
    monkeypatch.setattr(suite, "jobs", lambda quick: jobs)
    folder = tmp_path / "results"
    monkeypatch.setattr(__main__, "_folder", lambda: folder)
    return folder


def left_out():
    raise ops.LeftOutError("not today")


@built
def test_a_run_writes_its_file_and_plots(tiny, capfd, monkeypatch):
    monkeypatch.setattr(versus, "BUDGET", 0.1)
    assert __main__.main(["--quick", "--only", "kernel/noising/1x4x16x16|call/reverse|ratio|layout|loop"]) == 0
    (path,) = tiny.glob("*.json")
    run = json.loads(path.read_text())
    assert path.stem.endswith("-quick-only") and run["schema"] == suite.SCHEMA
    machine = run["machine"]
    assert torch.__version__.startswith(machine["versions"]["torch"])  # which may lack what is behind the "+"
    assert machine["threads"] == torch.get_num_threads()
    assert machine["instruction_set"] == _extension.module.isa and machine["device"] and "commit" in machine
    assert {case["level"] for case in run["cases"]} == {"kernel", "call", "ratio", "layout"}
    for case in run["cases"]:
        assert case["seconds"]["min"] <= case["seconds"]["q1"] <= case["seconds"]["median"] <= case["seconds"]["q3"]
    calls = {case["provider"]: case for case in run["cases"] if case["level"] == "call"}
    assert calls["fastddpm"]["launches"] == 1 and calls["fastddpm"]["host_reads"] == 0
    assert not importable("diffusers") or calls["diffusers"]["host_reads"] > 0
    sweep = next(case for case in run["cases"] if case["level"] == "kernel" and case["provider"] == "fastddpm")
    assert sweep["bytes"] == 2 * 4 * 1024 and sweep["of_recycled_copy"] > 0
    in_turn = next(case for case in run["cases"] if case["level"] == "layout")
    assert in_turn["memory_format"] == "channels_last" and in_turn["ratio"]["rounds"] == in_turn["contiguous_seconds"]["rounds"]
    assert {"what": "loop/none", "why": "not today"} in run["left_out"] and run["failed"] == []
    assert {p.suffix for p in tiny.glob("*ratios*")} == {".png", ".svg"}
    said = capfd.readouterr()
    assert "noising/1x4x16x16" in said.out and "left out: loop/none: not today" in said.out and "measuring" in said.err


@built
def test_a_failing_check_leaves_no_figure(tiny, capsys, monkeypatch):
    def wrong(p, result):
        raise AssertionError("off by a mile")

    monkeypatch.setitem(gates.GATES, "noising", wrong)
    assert __main__.main(["--quick", "--only", "kernel/noising/1x4x16x16|ratio|layout"]) == 1
    (path,) = tiny.glob("*.json")
    run = json.loads(path.read_text())
    assert run["cases"] == [] and len(run["failed"]) == 4
    assert capsys.readouterr().out.count("off by a mile") == 4


@built
def test_a_pattern_that_no_case_holds_is_an_error(tiny):
    with pytest.raises(SystemExit, match="no case's name holds 'nothing such'"):
        __main__.main(["--only", "nothing such"])


@pytest.mark.parametrize("arguments", [["--only", "("], ["--compare", "none.json"], ["--fast"]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        __main__.main(arguments)
    assert arguments[0] in capsys.readouterr().err


# ---- without a build ----


def run_without_build(*arguments):
    """The suite in a process that finds no `fastddpm._C`, as in a fresh checkout."""
    hide = (
        "import importlib.util as u, runpy, sys; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'fastddpm._C' else find(name, *a); "
        "sys.argv = ['benchmarks', *sys.argv[1:]]; runpy.run_module('benchmarks', run_name='__main__')"
    )
    settings = {k: v for k, v in os.environ.items() if k != "FASTDDPM_SKIP_CPP"}
    command = [sys.executable, "-c", hide, *arguments]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120)


def test_without_a_build_it_stops_and_names_the_mend():
    done = run_without_build("--quick")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install --no-build-isolation -e ." in done.stderr and "--reference" in done.stderr


def test_the_reference_is_measured_where_that_is_asked_for():
    done = run_without_build("--quick", "--reference", "--only", "nothing such")
    assert done.returncode == 1 and "no case's name holds" in done.stderr


def test_a_record_goes_on_past_a_failure_and_keeps_what_was_measured(tmp_path):
    kept = record.Record(tmp_path, "kernels", dry=False)
    kept.row(what="first", gpu_seconds=1.0)
    lines = (tmp_path / "kernels.jsonl").read_text().splitlines()  # before the run ends
    assert "machine" in json.loads(lines[0]) and json.loads(lines[1])["what"] == "first" and "dry" not in lines[1]
    assert not kept.attempt("second", lambda: 1 / 0) and kept.attempt("third", lambda: kept.row(what="third"))
    _, _, failed, after = map(json.loads, (tmp_path / "kernels.jsonl").read_text().splitlines())
    assert failed["error"] == "ZeroDivisionError: division by zero" and after["what"] == "third" and kept.failures == 1
