"""Compiles every Triton kernel and variant for GPUs that are not there, and reports what came out, as JSON on stdout.

`python tests/triton_aot_lane.py [TARGET..]`, run by test_triton_aot.py in a process of its own (the interpreted lane must not
share it). `--write-budget` renews triton_budget.json for this triton and every target: instructions an element (those of a
thread, over its elements) of each variant. Compiling and counting is benchmarks/static.py's; here are the variants beyond its
main ones.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton
from fastddpm.kernels.keys import randn_kernel
from fastddpm.kernels.mse import mse_kernel
from fastddpm.kernels.noising import noising_kernel, noising_uniform_kernel
from fastddpm.kernels.reverse import reverse_backward_kernel, reverse_kernel
from fastddpm.kernels.vlb import hybrid_kernel, terms_kernel, vlb_kernel

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are no part of the package

from benchmarks.static import (
    TARGETS,
    Variant,
    bound_variants,
    learned_variants,
    loss_variants,
    main_variants,
    report,
    sample_variants,
    step,
    update_variants,
)

BUDGET = Path(__file__).with_name("triton_budget.json")


def _variants() -> dict[str, Variant]:
    made = sample_variants()
    eps = ("x_0_ptr", "x_t_ptr")
    for data in ("fp32", "bf16", "fp16"):
        other = "fp32" if data == "bf16" else data
        made |= (
            update_variants(data)
            | main_variants(data)
            | {
                f"noising tensor {data}": Variant(noising_kernel, data, other),
                f"noising none {data}": Variant(noising_kernel, data, None),
                f"noising_uniform {data}": Variant(noising_uniform_kernel, data),
                f"noising key {data} 3 channels last": Variant(noising_kernel, data, channels=3),
            }
        )
        made |= loss_variants(mse_kernel, "mse", f"key, x_0 {data}", ("x_t_ptr",), data=data)
    made |= {
        "noising key fp32 4 channels last": Variant(noising_kernel, channels=4),
        "noising key bf16 4 channels last": Variant(noising_kernel, "bf16", channels=4),
        "noising fp32 96 channels last, a call an element": Variant(noising_kernel, channels=96, block=1024),
        "noising key fp32 16 a thread": Variant(noising_kernel, block=2048),
        "noising key fp32 8 a thread": Variant(noising_kernel, block=256, warps=1),
        "noising key fp32 unaligned": Variant(noising_kernel, aligned=False),
        "noising key fp32 64-bit": Variant(noising_kernel, scalars={"elements": "i64"}),
        "noising key fp32 3 channels last 64-bit": Variant(
            noising_kernel, channels=3, scalars={"elements": "i64"}
        ),
        "noising key fp32, one element": Variant(noising_kernel, block=256, warps=1, scalars={"elements": "1"}),
        "randn fp32 3 channels last": Variant(randn_kernel, channels=3),
    }  # fmt: skip
    made |= loss_variants(mse_kernel, "mse", "key fp32, one element", eps, block=256, warps=1, scalars={"elements": "1"})
    made |= loss_variants(mse_kernel, "mse", "key fp32 8 a thread", eps, block=256, warps=1)
    made |= loss_variants(mse_kernel, "mse", "key fp32 3 channels last", eps, channels=3)
    made |= loss_variants(mse_kernel, "mse", "tensor fp32", eps, noise="fp32")
    made |= loss_variants(mse_kernel, "mse", "x_0, x_t fp32", (), noise=None)
    return made | _step_variants() | _learned_variants()


GUIDED = ("u_ptr", "guidance_ptr")
HISTORY = ("h1_ptr", "h2_ptr", "h3_ptr")


def _step_variants() -> dict[str, Variant]:
    """The reverse step's options, one by one and all at once."""
    backward, all_of_it = reverse_backward_kernel, (*GUIDED, *HISTORY, "bound_ptr", "x_0_ptr", "kept_ptr")
    grads = (*GUIDED, "grad_u_ptr")
    made = {f"reverse none fp32, history {n}": step(reverse_kernel, *HISTORY[:n], noise=None) for n in (1, 2, 3)}
    made |= {f"reverse key {data}, guided": step(reverse_kernel, *GUIDED, data=data) for data in ("fp32", "bf16")}
    made |= {f"reverse_backward {data}, guided": step(backward, *grads, data=data, noise=None) for data in ("fp32", "bf16")}
    return made | {
        "reverse key fp32 with x_0_hat": step(reverse_kernel, "x_0_ptr"),
        "reverse key fp32 3 channels last": step(reverse_kernel, channels=3),
        "reverse none fp32": step(reverse_kernel, noise=None),
        "reverse none fp32, the row's g": step(reverse_kernel, "u_ptr", noise=None),
        "reverse none bf16, history 3": step(reverse_kernel, *HISTORY, data="bf16", noise=None),
        "reverse none fp32, kept": step(reverse_kernel, "kept_ptr", noise=None),
        "reverse none fp32, own bound": step(reverse_kernel, "bound_ptr", noise=None),
        "reverse key fp32, all with own bound": step(reverse_kernel, *all_of_it),
        "reverse key fp32 3 channels last, guided": step(reverse_kernel, *GUIDED, channels=3),
        "reverse key learned fp32, guided": step(reverse_kernel, *GUIDED, learned=True),
        "reverse key learned fp32 3 channels last, guided": step(reverse_kernel, *GUIDED, learned=True, channels=3),
        "reverse key learned fp32, all with own bound": step(reverse_kernel, *all_of_it, learned=True),
        "reverse_backward fp32, both": step(backward, "grad_x_0_ptr", noise=None),
        "reverse_backward fp32, kept": step(backward, "grad_kept_ptr", noise=None),
        "reverse_backward fp32, own bound": step(backward, "bound_ptr", noise=None),
        "reverse_backward key learned fp32, guided": step(backward, *grads, learned=True),
    }


def _learned_variants() -> dict[str, Variant]:
    """The bound, and what has variance channels."""
    made: dict[str, Variant] = {}
    for data, channels, cdfs in (("fp32", 0, 2), ("bf16", 0, 1), ("fp32", 3, 2), ("fp32", 4, 1)):
        made |= learned_variants(data, channels)
        for tanh in (False, True)[:cdfs]:
            made |= bound_variants(data, channels, tanh)
    made |= loss_variants(vlb_kernel, "vlb", "x_t fp32", (), noise=None, block=2048)
    made |= loss_variants(hybrid_kernel, "hybrid", "tensor learned fp32", ("loss_ptr",), noise="fp32", learned=True, block=2048)
    made["terms key fp32"] = Variant(terms_kernel, absent=("x_t_ptr",), block=2048)
    return made


def _report(job: tuple[str, str]) -> dict[str, Any]:
    target, name = job
    return report(_variants()[name], target)


def _reports(targets: list[str]) -> dict[str, dict[str, Any]]:
    jobs = [(target, name) for name in _variants() for target in targets]
    workers = len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    with ProcessPoolExecutor(max(1, workers)) as pool:
        done = dict(zip(jobs, pool.map(_report, jobs, chunksize=4), strict=True))
    return {target: {name: done[target, name] for name in _variants()} for target in targets}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all where none is named")
    parser.add_argument("--write-budget", action="store_true")
    chosen = parser.parse_args()
    if chosen.write_budget:
        counts = {t: {name: r["per_element"] for name, r in rows.items()} for t, rows in _reports(list(TARGETS)).items()}
        budgets = json.loads(BUDGET.read_text()) | {triton.__version__: counts}
        BUDGET.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n")
    else:
        print(json.dumps(_reports(chosen.targets or list(TARGETS))))


if __name__ == "__main__":
    main()
