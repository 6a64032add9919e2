"""`benchmarks/gpu.sh` without a GPU: its stages in dry runs, the rows they write, and what is published of made-up ones."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the suite is no part of the package

from benchmarks import captured, gpu_bench, gpu_loops, gpu_profile, gpu_publish, gpu_tune, loops, record  # noqa: E402
from benchmarks.networks import NETWORKS, OWN  # noqa: E402

STAGES = {
    "build": (record, ("build",), {"backend"}),
    "kernels": (gpu_bench, (), {"copy", "reverse", "hybrid gradient"}),
    "compile": (gpu_bench, ("--compile",), {"copy", "reverse", "hybrid gradient"}),
    "tune": (gpu_tune, (), {"noising", "mse", "reverse"}),
    "loops": (gpu_loops, (), {"train", "sample", *captured.KINDS}),
}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_walks_through_on_the_cpu_and_marks_its_rows(stage, tmp_path, monkeypatch):
    module, options, wanted = STAGES[stage]
    monkeypatch.setattr(sys, "argv", [stage, "--out", str(tmp_path), "--dry-run", *options])
    monkeypatch.setattr(loops.peers, "DDPMScheduler", None)  # with the network of our own
    for owner, name in ((loops, "BUDGET"), (loops, "why_not_compiled"), (captured, "BUDGET"), (captured, "STEPS")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back: a dry run changes them
    monkeypatch.setitem(NETWORKS, "own", OWN)
    assert module.main() == 0
    first, *rows = rows_of(tmp_path / f"{stage}.jsonl")
    assert first["machine"]["triton"] == triton.__version__ and all(row["dry"] for row in (first, *rows))
    assert wanted <= {row["what"] for row in rows}
    if stage == "loops":
        assert not [row for row in rows if "left_out" in row and row["network"] == "mlp"]
        assert {row["title"] for row in rows} == {NETWORKS["mlp"].title, OWN.title}


@pytest.mark.parametrize("any_batch", [False, True])
def test_each_cut_is_another_plan(any_batch):
    """That of the losses too, which does not depend on the batch."""
    plans = {}
    for per_thread, warps in itertools.product(gpu_tune.PER_THREAD, gpu_tune.WARPS):
        with gpu_tune.cut(per_thread, warps):
            plans[per_thread, warps] = gpu_tune.tile.cut(
                torch.contiguous_format, torch.Size((4, 16384)), False, any_batch, 32
            ).plan
    assert {cut: (plan.block, plan.num_warps) for cut, plan in plans.items()} == {
        (per_thread, warps): (32 * warps * per_thread, warps) for per_thread, warps in plans
    }


def test_the_script_begins_its_files_anew_in_the_folder_that_its_caller_means(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "noise.jsonl").write_text("old\n")
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--out", "rows", "--dry-run", "noise"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *rows = rows_of(tmp_path / "rows" / "noise.jsonl")
    assert "machine" in first and [row["what"] for row in rows] == ["words"] * 2
    assert done.stdout.splitlines()[-1].split()[::3] == ["noise", "3"]  # stage, rc, seconds, rows, failures


TESTS = """
import pytest

def test_right(): pass
def test_wrong(): assert 1 == 2
@pytest.mark.skip
def test_left_out(): pass
@pytest.fixture
def broken(): raise OSError
def test_unprepared(broken): pass
"""


@pytest.mark.slow
def test_failed_tests_and_totals_become_rows(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_none.py").write_text("import no_such_module")
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "benchmarks.gpu_tests", "--rows", str(tmp_path)]
    command += ["--continue-on-collection-errors", "-n", "1", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    first, *failed, totals = rows_of(tmp_path / "test.jsonl")
    assert "machine" in first, done.stdout + done.stderr
    named = {row["what"].split("::")[-1].split("/")[-1]: row["error"] for row in failed}
    assert named.keys() == {"test_wrong", "test_unprepared", "test_none.py"}
    assert "assert 1 == 2" in named["test_wrong"] and "no_such_module" in named["test_none.py"]
    assert {"passed": 1, "failed": 2, "skipped": 1, "not collected": 1}.items() <= totals.items() and totals["exitstatus"] == 1


def test_what_ncu_counted_is_read():
    table = """==PROF== Connected to process 1
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","noising_kernel","dram__bytes.sum","byte","536,870,912"
"0","noising_kernel","launch__registers_per_thread","register/thread","122"
"1","mse_kernel","dram__bytes.sum","byte","268,435,456"
"""
    counted = gpu_profile.counted(table.splitlines())
    assert counted["noising_kernel"] == {"dram__bytes.sum": 536870912.0, "launch__registers_per_thread": 122.0}
    assert counted["mse_kernel"] == {"dram__bytes.sum": 268435456.0} and gpu_profile.counted([]) == {}


# ---- publishing ----

MACHINE = {
    "device": "Made-up GPU",
    "driver": "1.2.3",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "python": "3.12.0",
    "date": "2026-01-02T03:04:05",
    "commit": "0123456789abcdef",
}
SPREAD = {"min": 0.9, "q1": 0.95, "median": 1.0, "q3": 1.05, "rounds": 9}


def timed(what, provider, n, **values):
    about = {"what": what, "provider": provider, "elements": 1 << n, "dtype": "float32"}
    return {**about, "gpu_seconds": 1.25e-4, "of_copy_bandwidth": 0.875, **values}


ROWS = {
    "test": [
        {"what": "tests/test_one.py::test_it", "error": "E"},
        {"what": "totals", "command": "-q", "passed": 7, "failed": 1, "seconds": 3.5},
    ],
    "noise": [{"what": "words", "first": 0, "count": 1 << 28, "wrong": {"radius": 0, "cos": 2, "sin": 0}}],
    "kernels": [
        timed("noising", "fastddpm", 26),
        timed("noising", "eager", 16),
        {"what": "noising", "provider": "eager", "host_seconds": 2e-5},
    ],
    "tune": [{**timed("mse", "fastddpm", 20), "per_thread": 16, "warps": 4}],
    "loops": [
        {"what": "train", "title": "MLP", "batch": 8, "provider": "fastddpm", "seconds": SPREAD, "ratio": SPREAD},
        {"what": "train", "network": "mlp", "batch": 128, "left_out": "too long"},
    ],
    "profile": [{"what": "noising_kernel", "metrics": {"dram__bytes.sum": 5e8}}],
}


@pytest.fixture
def rows(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()

    def write(stages, device=MACHINE["device"], **marks):
        for stage, measured in stages.items():
            lines = [{"machine": {**MACHINE, "device": device}}, *measured]
            (folder / f"{stage}.jsonl").write_text(
                "".join(json.dumps({"stage": stage, **marks, **row}) + "\n" for row in lines)
            )
        return folder

    return write


@pytest.fixture
def project(tmp_path):
    """A copy of the documents alone."""
    for name in gpu_publish.DOCUMENTS:
        copy = tmp_path / "project" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / name).read_text())
    return tmp_path / "project"


def test_rows_become_results_a_plot_and_sections(rows, project):
    gpu_publish.publish(rows(ROWS), project)
    results = project / "benchmarks" / "results"
    assert {path.name for path in results.iterdir()} == {f"Made-up-GPU-{stage}.json" for stage in ROWS} | {
        "Made-up-GPU-gpu.png"
    }
    page, front = ((project / name).read_text() for name in gpu_publish.DOCUMENTS)
    for text in (
        "Made-up GPU; driver 1.2.3, torch 2.11.0, triton 3.6.0, Python 3.12.0; 2026-01-02; commit 0123456789.",
        "- failed: `tests/test_one.py::test_it`\n- `pytest -q`: 7 passed, 1 failed; 3.5 s",
        "- 268435456 words: 2 values have not the C++ kernels' bits",
        "|  |  |  | 2^16 | 2^26 |",
        "| noising | float32 | fastddpm |  | 125 us (88%) |",
        "| noising | 20.0 us |",
        "| mse | float32 | 2^20 | 125 us |",
        "| train: MLP, batch 8 | 1 s, 1.00x (0.95 .. 1.05) |",
        "| dram__bytes.sum | 5e+08 |",
        "![kernels on a GPU](../benchmarks/results/Made-up-GPU-gpu.png)",
    ):
        assert text in page
    assert gpu_publish.NONE not in page and "Made-up GPU; driver" in front


def test_a_section_whose_stage_was_not_run_says_so(rows, project):
    gpu_publish.publish(rows({"noise": ROWS["noise"]}), project)
    page = (project / "docs" / "performance.md").read_text()
    assert "Made-up GPU" in page and page.count(gpu_publish.NONE) == len(gpu_publish.TABLES) + 1 - 2


def test_rows_that_are_no_figures_are_refused(rows, project):
    before = (project / "README.md").read_text()
    for stages, marks, why in (({}, {}, "holds no stage's file"), (ROWS, {"dry": True}, "is of a dry run")):
        with pytest.raises(SystemExit, match=why):
            gpu_publish.publish(rows(stages, **marks), project)
    rows(ROWS)
    with pytest.raises(SystemExit, match="several devices: Another, Made-up GPU"):
        gpu_publish.publish(rows({"test": ROWS["test"]}, device="Another"), project)
    assert (project / "README.md").read_text() == before and not (project / "benchmarks").exists()


def test_the_stage_s_tests_are_run_by_the_project_s_settings(tmp_path):
    """Which leave the slow ones out: an option's folder must not be taken for one of tests."""
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    options = (
        re.search(r"-p benchmarks.gpu_tests (.*?) \$\{DRY", script).group(1).replace('"', "").replace("$DIR", str(tmp_path))
    )
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_tests", *options.replace("$1", "test").split()]
    done = subprocess.run([*command, "--collect-only", "-k", "no test at all"], cwd=ROOT, capture_output=True, text=True)
    assert "configfile: pyproject.toml" in done.stdout, done.stdout[:2000]


def test_the_memory_check_chooses_about_forty_tests():
    """pytest's -k takes one line: in two it chose none, and the stage failed."""
    chosen = "".join(re.findall(r'\bSOME\+?="([^"]*)"', (ROOT / "benchmarks/gpu.sh").read_text()))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_triton_gpu.py",
        "-k",
        chosen,
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0 and 20 <= found.stdout.count("::test_") <= 80, found.stdout
