"""The Triton kernels as machine code for GPUs that are not here: sm_90 and gfx942, and in the slow lane sm_80 and sm_100."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

LANE = Path(__file__).with_name("triton_aot_lane.py")
BUDGETS = json.loads(Path(__file__).with_name("triton_budget.json").read_text())
NVIDIA = ("sm_90", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sm_80", "sm_100")))
OTHER_VERSION = 1.05  # a triton without a budget schedules a little differently than the last that has one
BOUND = {f"{loss}{wanted}" for loss in ("vlb", "hybrid") for wanted in ("", "_grad", "_backward")} | {"terms"}
SCALAR_LOADS = 12  # t, the key's two words, up to eight coefficients, the upstream gradient
STEP_SCALAR_LOADS = 17  # up to twelve coefficients, the sample's guidance and bound
BOUND_SCALAR_LOADS = 20  # up to sixteen coefficients, two keys
SUMS = {"runs", "finish", "finish_hybrid"}
UPDATE = {"squares", "adamw"}
DIVISIONS = {"mse": 1, "mse_grad": 2, "mse_backward": 1, "vlb": 1, "vlb_grad": 2, "vlb_backward": 1, "hybrid": 2,
             "hybrid_grad": 4, "hybrid_backward": 2, "terms": 2, "finish": 1, "finish_hybrid": 2}  # fmt: skip
STORED_SCALARS = {"mse": 1, "mse_grad": 1, "vlb": 1, "vlb_grad": 1, "hybrid": 2, "hybrid_grad": 2, "terms": 2,
                  "noising_uniform": 1}  # fmt: skip
"""A program's shares of a loss, and a sample's t."""

nvidia = pytest.mark.parametrize("target", NVIDIA, indirect=True)


@pytest.fixture(scope="module", params=(*NVIDIA, "gfx942"))
def target(request):
    return request.param


@pytest.fixture(scope="module")
def rows(target):
    """What was counted of each variant, by its name."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # the disassembler takes most of its time over it
    done = subprocess.run([sys.executable, LANE, target], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[target]


def kernel_of(name):
    return name.split()[0]


def test_every_kernel_is_compiled(rows):
    ops = {"noising", "noising_uniform", "mse", "mse_grad", "mse_backward", "scale", "reverse", "reverse_backward"}
    assert set(map(kernel_of, rows)) == ops | SUMS | BOUND | {"fill_key", "advance", "timesteps", "randn"} | UPDATE


def test_no_stack_and_no_spill(rows):
    assert [name for name, row in rows.items() if row["stack"]] == []
    # gfx942 keeps coefficients of polynomials in scalar registers, and what does not fit in lanes of a vector register
    assert max(row.get("scalar_spills", 0) for row in rows.values()) <= 16


@nvidia
def test_the_bound_leaves_registers_for_other_blocks(rows):
    """Near the 255 of a thread the compiler is a step from spilling; runs of three channels need the most addresses."""
    most = 208  # of the KL with its gradient; they are given by eights
    for name, row in rows.items():
        if kernel_of(name) in BOUND:
            assert row["registers"] <= (250 if "3 channels last" in name else most), name


def test_global_accesses_are_16_bytes_wide(rows):
    """Of aligned data; what else is loaded are a sample's scalars. Variance channels beside three of the mean's, in
    channels_last, lie in runs of three."""
    for name, row in rows.items():
        kernel, scattered = kernel_of(name), "learned" in name and "3 channels last" in name
        if row["elements"] < 8 or kernel in SUMS | UPDATE or "unaligned" in name or "one element" in name or scattered:
            continue
        limit = BOUND_SCALAR_LOADS if kernel in BOUND else STEP_SCALAR_LOADS if "reverse" in kernel else SCALAR_LOADS
        assert row["loads"] - row["loads_16"] <= limit, name
        assert row["loads_16"] or kernel == "randn", name
        assert row["stores_16"] == row["stores"] - STORED_SCALARS.get(kernel, 0), name
        assert row["stores_16"] > 0 or kernel in ("mse", "vlb", "hybrid"), name


@nvidia
def test_an_update_moves_40_bytes_a_weight_by_16(rows):
    """A whole block of float32: g; then p, g, m, v and e in, p, m, v and e out (and the norm's 1024 shares). What else is
    loaded and stored are a block's scalars and a weight's last, masked block."""
    for name, loads, stores, shares in (("squares fp32", 1, 0, 0), ("adamw fp32", 5, 4, 2)):
        accesses = rows[name]["elements"] // 4  # of 16 bytes a thread and tensor
        assert (rows[name]["loads_16"], rows[name]["stores_16"]) == (loads * accesses + shares, stores * accesses)


@nvidia
def test_no_branch_in_the_noise(rows):
    """What is left to call is sqrt.rn's slow path, never taken, and that of a few divisions, of a sum or by a sample's bound.
    The variational bound has one branch, for t = 0, and one root, of the precision; a gradient's scaling one, where its
    factor is 1."""
    from fastddpm.kernels.philox import BRANCHLESS_ROOT

    for name, row in rows.items():
        kernel = kernel_of(name)
        if "64-bit" in name or kernel in UPDATE:  # a 64-bit division branches; so does a weight's last block
            continue
        bound = kernel in BOUND
        branches = 3 if bound else 1 if kernel == "scale" else 0  # into it, round the other, out
        assert row["branches"] == branches, name
        assert row["calls"] == row["roots"] + DIVISIONS.get(kernel, 0) + ("own bound" in name), name
        if "key" in name.split() or kernel == "randn":
            draws = 0 if BRANCHLESS_ROOT else 2 if kernel == "terms" else 1
            assert row["roots"] == draws * row["elements"] // 2 + bound, name


@pytest.mark.parametrize("target", ["gfx942"], indirect=True)
def test_no_branch_in_the_noise_of_a_wavefront(rows):
    assert [name for name, row in rows.items() if kernel_of(name) == "randn" and row["branches"]] == []


def test_no_mul_and_add_are_made_an_fma_unasked(rows):
    """As the launches have it, whose options these are: the noise's bits are promised."""
    assert [name for name, row in rows.items() if row["fusion"] or row.get("contractible")] == []


@nvidia
def test_the_clamp_of_a_reverse_step_keeps_a_nan(rows):
    """The interpreter's minimum keeps it whatever the kernel asks for."""
    assert [name for name, row in rows.items() if name.startswith("reverse") and row["swallow_nan"]] == []


@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
def test_noising_with_its_noise_fits_the_goal(rows):
    assert rows["noising key fp32"]["per_element"] <= 50
    assert rows["noising key bf16"]["per_element"] <= 53


@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
def test_a_loss_and_its_gradient_take_little_more_than_one_of_them(rows):
    for name in ("mse key fp32", "mse key bf16", "vlb key learned fp32, exact", "hybrid key learned fp32, exact"):
        one, both = rows[name], rows[name.replace(" ", "_grad ", 1)]
        assert both["per_element"] <= 1.2 * one["per_element"], name


def test_channels_last_takes_at_most_one_and_a_half_times_the_instructions(rows):
    losses = [f"{name} key fp32" for name in ("mse", "mse_grad", "mse_backward")]
    for kernel in ("noising key fp32", "noising key bf16", *losses, "reverse key fp32"):
        assert rows[f"{kernel} 3 channels last"]["per_element"] <= 1.5 * rows[kernel]["per_element"], kernel
    for name in rows:
        if "learned fp32 3 channels last" in name:
            most = 1.6 if name.startswith("reverse_backward") else 1.5  # of 20 and more bytes an element moved
            assert rows[name]["per_element"] <= most * rows[name.replace(" 3 channels last", "")]["per_element"], name


def test_instructions_an_element_stay_in_the_budget(rows, target):
    """Renew the file with `python tests/triton_aot_lane.py --write-budget` after a change that is worth its cost, with each
    triton that it holds."""
    import triton

    slack = 1 if triton.__version__ in BUDGETS else OTHER_VERSION
    latest = max(BUDGETS, key=lambda version: [int(number) for number in version.split(".")])
    budget = BUDGETS.get(triton.__version__, BUDGETS[latest])[target]
    assert rows.keys() == budget.keys()
    taken = {name: (row["per_element"], budget[name]) for name, row in rows.items()}
    over = {name: (count, allowed) for name, (count, allowed) in taken.items() if count > allowed * slack + 0.01}
    assert over == {}


def test_a_kernel_whose_columns_moved_is_compiled_anew(monkeypatch):
    """Triton's cache does not see what an attribute of a module holds: columns are imported each by its name."""
    import triton
    from fastddpm.kernels.noising import noising_kernel

    def key():
        return triton.jit(noising_kernel.fn).cache_key

    key()  # the first one's differs: what the kernel calls was not read yet
    before = key()
    assert key() == before
    monkeypatch.setitem(noising_kernel.fn.__globals__, "NOISING_A", triton.language.constexpr(1))
    assert key() != before
