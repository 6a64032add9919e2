"""The Triton kernels as machine code for sm_80, sm_90, sm_100 and gfx942, compiled here, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

LANE = Path(__file__).with_name("triton_aot_lane.py")
BUDGET = json.loads(Path(__file__).with_name("triton_budget.json").read_text())
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
NVIDIA = TARGETS[:3]
OTHER_VERSION = 1.05  # another triton than the budget's schedules a little differently
SCALAR_LOADS = 10  # t, the key's two words, up to seven coefficients


@pytest.fixture(scope="module")
def reports():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # the disassembler takes most of its time over it
    done = subprocess.run([sys.executable, LANE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def each(reports, *targets):
    return [(f"{name} on {target}", row) for target in targets or TARGETS for name, row in reports[target].items()]


def test_every_kernel_is_compiled(reports):
    kernels = {name.split()[0] for name in reports["sm_90"]}
    ops = {"noising", "mse", "mse_backward", "finish", "reverse", "reverse_backward"}
    assert kernels == ops | {"fill_key", "advance", "timesteps", "randn"}


def test_no_stack_and_no_spill(reports):
    assert [name for name, row in each(reports) if row["stack"]] == []


def test_global_accesses_are_16_bytes_wide(reports):
    """Of aligned data; what else is loaded are a sample's scalars."""
    for name, row in each(reports):
        if row["elements"] < 8 or name.startswith("finish") or "unaligned" in name or "one element" in name:
            continue
        assert row["loads"] - row["loads_16"] <= SCALAR_LOADS, name
        assert row["loads_16"] or name.startswith("randn"), name
        if not name.startswith("mse "):  # it stores one float
            assert row["stores_16"] == row["stores"] > 0, name


def test_no_branch_in_the_noise(reports):
    """What is left to call is sqrt.rn's slow path, never taken, and that of the one division of a loss."""
    for name, row in each(reports, *NVIDIA):
        if name.startswith("finish") or "64-bit" in name:  # a loop; a 64-bit division
            continue
        divisions = 1 if name.startswith("mse") else 0
        assert (row["branches"], row["calls"]) == (0, row["roots"] + divisions), name
        if "key" in name.split() or name.startswith("randn"):
            assert row["roots"] == row["elements"] // 2, name
    for name, row in each(reports, "gfx942"):
        assert not name.startswith("randn") or row["branches"] == 0, name


def test_noising_with_its_noise_fits_the_goal(reports):
    assert reports["sm_90"]["noising key fp32"]["per_element"] <= 50
    assert reports["sm_90"]["noising key bf16"]["per_element"] <= 53


@pytest.mark.parametrize("target", TARGETS)
def test_channels_last_takes_at_most_one_and_a_half_times_the_instructions(reports, target):
    rows = reports[target]
    for kernel in ("noising key fp32", "noising key bf16", "mse key fp32", "mse_backward key fp32", "reverse key fp32"):
        assert rows[f"{kernel} 3 channels last"]["per_element"] <= 1.5 * rows[kernel]["per_element"], kernel


@pytest.mark.parametrize("target", TARGETS)
def test_instructions_an_element_stay_in_the_budget(reports, target):
    """Renew the file with `python tests/triton_aot_lane.py --write-budget` after a change that is worth its cost."""
    import triton

    slack = 1 if triton.__version__ == BUDGET["triton"] else OTHER_VERSION
    assert reports[target].keys() == BUDGET[target].keys()
    over = {
        name: (row["per_element"], BUDGET[target][name])
        for name, row in reports[target].items()
        if row["per_element"] > BUDGET[target][name] * slack + 0.01
    }
    assert over == {}
