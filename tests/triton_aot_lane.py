"""Compiles every Triton kernel and variant for GPUs that are not there, and reports what came out, as JSON on stdout.

Run by test_triton_aot.py in a process of its own (the interpreted lane must not share it). `--write-budget` renews
triton_budget.json: instructions an element (those of a thread, over its elements) of each variant on each target.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.backends.nvidia
from fastddpm.kernels.keys import advance_kernel, fill_key_kernel, randn_kernel, timesteps_kernel
from fastddpm.kernels.mse import mse_backward_kernel, mse_kernel
from fastddpm.kernels.noising import noising_kernel
from fastddpm.kernels.reduce import _PLANS, finish_hybrid_kernel, finish_kernel
from fastddpm.kernels.reverse import reverse_backward_kernel, reverse_kernel
from fastddpm.kernels.tile import FLAGS
from fastddpm.kernels.vlb import hybrid_backward_kernel, hybrid_kernel, terms_kernel, vlb_backward_kernel, vlb_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
BUDGET = Path(__file__).with_name("triton_budget.json")
CUOBJDUMP = Path(triton.backends.nvidia.__file__).with_name("bin") / "cuobjdump"
FLOAT32_POINTERS = ("rows_ptr", "loss_ptr", "mse_ptr", "vlb_ptr", "terms_ptr", "shares_ptr", "mse_shares_ptr",
                    "vlb_shares_ptr", "upstream_ptr", "mse_upstream_ptr", "vlb_upstream_ptr")  # fmt: skip
INT64_POINTERS = ("t_ptr", "next_t_ptr", "key_ptr", "next_noise_ptr")
FLOATS = ("vlb_weight",)
UNALIGNED = ("num_rows", "num_timesteps", "batch", "count", "divisor", "steps", "seed", "subsequence", *FLOATS)


class Variant(NamedTuple):
    kernel: Any
    data: str = "fp32"
    noise: str | None = "i64"
    absent: tuple[str, ...] = ()
    channels: int = 0
    block: int = 4096
    warps: int = 4
    scalars: dict[str, str] = {}  # noqa: RUF012 (never written)
    aligned: bool = True
    learned: bool = False
    tanh: bool = False

    def source(self) -> ASTSource:
        names = self.kernel.arg_names
        types = {name: self._type(name) for name in names}
        constants: dict[str, Any] = {name: None for name, kind in types.items() if kind is None}
        constants |= {name: 1 for name, kind in types.items() if kind == "1"}  # as a launch specialises an int of 1
        constants |= {name: value for name, value in self._constants().items() if name in names}
        signature = {name: "constexpr" if name in constants else types[name] for name in names}
        wide = [name for name in names if self.aligned and name not in constants and name not in UNALIGNED]
        return ASTSource(
            self.kernel,
            signature,
            constexprs=constants,
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in wide},
        )

    def _constants(self) -> dict[str, int]:
        return {
            "T_STRIDE": 1, "NEXT_T_STRIDE": 1, "UPSTREAM_STRIDE": 0, "MSE_STRIDE": 0, "VLB_STRIDE": 0, "LEARNED": self.learned,
            "TANH": self.tanh, "CHANNELS": self.channels, "BLOCK": self.block, "TILE": self.block,
        }  # fmt: skip

    def _type(self, name: str) -> str | None:
        if name in self.absent:
            return None
        if name == "noise_ptr":
            return self.noise and f"*{self.noise}"
        if not name.endswith("_ptr"):
            other = "fp32" if name in FLOATS else "i64" if name in ("seed", "subsequence") else "i32"
            return self.scalars.get(name, other)
        return "*fp32" if name in FLOAT32_POINTERS else "*i64" if name in INT64_POINTERS else f"*{self.data}"


def _variants() -> dict[str, Variant]:
    made = {
        "fill_key": Variant(fill_key_kernel, block=128),
        "advance": Variant(advance_kernel, block=128),
        "timesteps": Variant(timesteps_kernel, block=128),
    }
    made |= {f"finish {size}": Variant(finish_kernel, block=size, warps=warps) for _, size, warps in _PLANS}
    made |= {f"finish_hybrid {size}": Variant(finish_hybrid_kernel, block=size, warps=warps) for _, size, warps in _PLANS}
    eps, fp32 = ("x_0_ptr", "x_t_ptr"), {"count": "fp32"}
    for data in ("fp32", "bf16", "fp16"):
        other = "fp32" if data == "bf16" else data
        made |= {
            f"randn {data}": Variant(randn_kernel, data),
            f"noising key {data}": Variant(noising_kernel, data),
            f"noising tensor {data}": Variant(noising_kernel, data, other),
            f"noising none {data}": Variant(noising_kernel, data, None),
            f"noising key {data} 3 channels last": Variant(noising_kernel, data, channels=3),
            f"mse key {data}": Variant(mse_kernel, data, absent=eps),
            f"mse key, x_0 {data}": Variant(mse_kernel, data, absent=("x_t_ptr",)),
            f"mse_backward key {data}": Variant(mse_backward_kernel, data, absent=eps, scalars=fp32),
            f"mse_backward key, x_0 {data}": Variant(mse_backward_kernel, data, absent=("x_t_ptr",), scalars=fp32),
            f"reverse key {data}": Variant(reverse_kernel, data, absent=("x_0_ptr",)),
            f"reverse_backward {data}": Variant(reverse_backward_kernel, data, None, absent=("grad_x_0_ptr",)),
        }
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
        "mse key fp32, one element": Variant(mse_kernel, absent=eps, block=256, warps=1, scalars={"elements": "1"}),
        "randn fp32 3 channels last": Variant(randn_kernel, channels=3),
        "mse key fp32 8 a thread": Variant(mse_kernel, absent=eps, block=256, warps=1),
        "mse key fp32 3 channels last": Variant(mse_kernel, absent=eps, channels=3),
        "mse tensor fp32": Variant(mse_kernel, noise="fp32", absent=eps),
        "mse x_0, x_t fp32": Variant(mse_kernel, noise=None),
        "mse_backward key fp32 3 channels last": Variant(
            mse_backward_kernel, absent=eps, channels=3, scalars=fp32
        ),
        "mse_backward x_0, x_t fp32": Variant(mse_backward_kernel, noise=None, scalars=fp32),
        "reverse key fp32 with x_0_hat": Variant(reverse_kernel),
        "reverse key fp32 3 channels last": Variant(reverse_kernel, absent=("x_0_ptr",), channels=3),
        "reverse none fp32": Variant(reverse_kernel, noise=None, absent=("x_0_ptr",)),
        "reverse_backward fp32, both": Variant(reverse_backward_kernel, noise=None),
    }  # fmt: skip
    return made | _learned_variants()


def _learned_variants() -> dict[str, Variant]:
    """The bound, and what has variance channels: at its largest blocks (a tanh form's gradient has half)."""
    made = {}
    for data, channels, cdfs in (("fp32", 0, 2), ("bf16", 0, 1), ("fp32", 3, 2), ("fp32", 4, 1)):
        name = f"learned {data}" + f" {channels} channels last" * bool(channels)
        form: dict[str, Any] = {"data": data, "channels": channels, "learned": True, "block": 2048}
        made |= {
            f"reverse key {name}": Variant(reverse_kernel, absent=("x_0_ptr",), **form),
            f"reverse_backward key {name}": Variant(reverse_backward_kernel, absent=("grad_x_0_ptr",), **form),
        }
        for tanh in (False, True)[:cdfs]:
            made |= _bound_variants(f"{name}, {'tanh' if tanh else 'exact'}", {**form, "tanh": tanh})
    made["vlb x_t fp32"] = Variant(vlb_kernel, noise=None, block=2048)
    made["vlb_backward x_t fp32"] = Variant(vlb_backward_kernel, noise=None, block=2048, scalars={"count": "fp32"})
    made["hybrid tensor learned fp32"] = Variant(hybrid_kernel, "fp32", "fp32", ("loss_ptr",), learned=True, block=2048)
    made["terms key fp32"] = Variant(terms_kernel, absent=("x_t_ptr",), block=2048)
    return made


def _bound_variants(name: str, form: dict[str, Any]) -> dict[str, Variant]:
    backward = {**form, "block": 1024 if form["tanh"] else 2048, "scalars": {"count": "fp32"}}
    alone = ("x_t_ptr", "mse_upstream_ptr", "vlb_upstream_ptr")
    return {
        f"vlb key {name}": Variant(vlb_kernel, absent=("x_t_ptr",), **form),
        f"vlb_backward key {name}": Variant(vlb_backward_kernel, absent=("x_t_ptr",), **backward),
        f"hybrid key {name}": Variant(hybrid_kernel, absent=("x_t_ptr", "loss_ptr"), **form),
        f"hybrid_backward key {name}": Variant(hybrid_backward_kernel, absent=alone, **backward),
        f"terms key {name}": Variant(terms_kernel, absent=("x_t_ptr",), **form),
    }


def report(variant: Variant, target: str) -> dict[str, Any]:
    options = {"num_warps": variant.warps, **FLAGS}
    compiled = triton.compile(variant.source(), target=TARGETS[target], options=options)
    measured = _amd(compiled) if target.startswith("gfx") else _nvidia(compiled)
    threads = variant.warps * TARGETS[target].warp_size
    elements = max(1, variant.block // threads)
    return {"per_element": round(measured["instructions"] / elements, 2), "elements": elements, **measured}


def _nvidia(compiled) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-sass", "-res-usage", file.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)[^\n]*?;", dump, re.MULTILINE)
    names = Counter(name for name in lines if name != "NOP")
    usage = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", dump)}
    local = sum(n for name, n in names.items() if name.startswith(("LDL", "STL")))
    return {
        "instructions": names.total(),
        "registers": usage["REG"],
        "stack": usage["STACK"] + usage["LOCAL"] + local,
        "loads_16": sum(n for name, n in names.items() if name.startswith("LDG") and ".128" in name),
        "stores_16": sum(n for name, n in names.items() if name.startswith("STG") and ".128" in name),
        "loads": sum(n for name, n in names.items() if name.startswith("LDG")),
        "stores": sum(n for name, n in names.items() if name.startswith("STG")),
        "roots": compiled.asm["ptx"].count("sqrt.rn"),
        "branches": len(re.findall(r"^\s+(?:@!?%p\d+ )?bra", compiled.asm["ptx"], re.MULTILINE)),
        "calls": sum(n for name, n in names.items() if name.startswith("CALL")),
    }


def _amd(compiled) -> dict[str, Any]:
    text = compiled.asm["amdgcn"]
    usage = {name: int(n) for name, n in re.findall(r"\.(\w+_(?:size|count)):\s+(\d+)", text)}
    names = Counter(re.findall(r"^\t([vs]_\w+|ds_\w+|buffer_\w+|global_\w+|flat_\w+|scratch_\w+)", text, re.MULTILINE))
    memory = {name: n for name, n in names.items() if name.startswith(("buffer_", "global_"))}
    return {
        "instructions": names.total() - names["s_nop"],
        "branches": sum(n for name, n in names.items() if name.startswith("s_cbranch")),
        "registers": usage["vgpr_count"],
        "stack": usage["private_segment_fixed_size"] + usage["vgpr_spill_count"],
        "scalar_spills": usage["sgpr_spill_count"],
        "loads_16": sum(n for name, n in memory.items() if "load_dwordx4" in name),
        "stores_16": sum(n for name, n in memory.items() if "store_dwordx4" in name),
        "loads": sum(n for name, n in memory.items() if "load" in name),
        "stores": sum(n for name, n in memory.items() if "store" in name),
    }


def _report(job: tuple[str, str]) -> dict[str, Any]:
    target, name = job
    return report(_variants()[name], target)


def main() -> None:
    jobs = [(target, name) for name in _variants() for target in TARGETS]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = dict(zip(jobs, pool.map(_report, jobs, chunksize=4), strict=True))
    reports = {target: {name: done[target, name] for name in _variants()} for target in TARGETS}
    if "--write-budget" in sys.argv:
        counts = {t: {name: r["per_element"] for name, r in rows.items()} for t, rows in reports.items()}
        BUDGET.write_text(json.dumps({"triton": triton.__version__, **counts}, indent=1) + "\n")
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
