"""Compiles Triton kernels for GPUs that are not there, and counts what came out: registers, memory, instructions, accesses.

What benchmarks/static_report.py says and what tests/triton_aot_lane.py holds to its budget are these counts.
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.backends.nvidia
from fastddpm.kernels.adamw import adamw_kernel, squares_kernel
from fastddpm.kernels.keys import advance_kernel, fill_key_kernel, randn_kernel, timesteps_kernel
from fastddpm.kernels.launcher import FLAGS
from fastddpm.kernels.mse import mse_kernel, scale_kernel
from fastddpm.kernels.noising import noising_kernel
from fastddpm.kernels.reduce import _TILES, finish_hybrid_kernel, finish_kernel, runs_kernel
from fastddpm.kernels.reverse import _PER_THREAD, reverse_backward_kernel, reverse_kernel
from fastddpm.kernels.tile import VIEWS, plan
from fastddpm.kernels.vlb import _PER_THREAD as _PER_THREAD_OF_THE_BOUND
from fastddpm.kernels.vlb import hybrid_kernel, terms_kernel, vlb_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CUOBJDUMP = Path(triton.backends.nvidia.__file__).with_name("bin") / "cuobjdump"
FLOAT32_POINTERS = ("rows_ptr", "loss_ptr", "mse_ptr", "vlb_ptr", "terms_ptr", "shares_ptr", "mse_shares_ptr",
                    "vlb_shares_ptr", "sums_ptr", "upstream_ptr", "mse_upstream_ptr", "vlb_upstream_ptr", "guidance_ptr",
                    "bound_ptr", "sizes_ptr", "steps_ptr", "found_ptr", "norm_ptr", "scale_ptr")  # fmt: skip
FLOAT64_POINTERS = ("settings_ptr",)
WIDE_POINTERS = ("out_ptr", "grad_ptr", "grad_out_ptr", "grad_u_ptr")  # with variance channels: of twice the channels
INT64_POINTERS = ("t_ptr", "next_t_ptr", "key_ptr", "next_noise_ptr", "weights_ptr", "blocks_ptr")
STEP_OPTIONS = ("x_0_ptr", "kept_ptr", "u_ptr", "h1_ptr", "h2_ptr", "h3_ptr", "guidance_ptr", "bound_ptr",
                "grad_x_0_ptr", "grad_kept_ptr", "grad_u_ptr")  # fmt: skip
FLOATS = ("vlb_weight", "away", "max_norm")
KINDS = ("fp32", "bf16", "fp16")
LOSSES = ("loss_ptr", "mse_ptr", "vlb_ptr")
UPSTREAMS = ("upstream_ptr", "mse_upstream_ptr", "vlb_upstream_ptr")
UNALIGNED = ("num_rows", "num_timesteps", "batch", "count", "divisor", "steps", "seed", "subsequence", "blocks", "parts",
             "update_after", *FLOATS, *VIEWS)  # fmt: skip


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
            "T_STRIDE": 1, "NEXT_T_STRIDE": 1, "UPSTREAM_STRIDE": 0, "MSE_STRIDE": 0, "VLB_STRIDE": 0, "GUIDANCE_STRIDE": 1,
            "BOUND_STRIDE": 1, "LEARNED": self.learned, "TANH": self.tanh, "CHANNELS": self.channels, "BLOCK": self.block,
            "TILE": self.block, "KIND": KINDS.index(self.data), "KINDS": 1, "ALIGNED": self.aligned, "SHARES": 1024,
            "AVERAGE": 1, "ZERO": 0, "WARMUP": 0,
        }  # fmt: skip

    def _type(self, name: str) -> str | None:
        if name in self.absent:
            return None
        if name == "noise_ptr":
            return self.noise and f"*{self.noise}"
        if not name.endswith("_ptr"):
            other = "fp32" if name in FLOATS else "i64" if name in ("seed", "subsequence") else "i32"
            return self.scalars.get(name, other)
        kinds = {"*fp32": FLOAT32_POINTERS, "*fp64": FLOAT64_POINTERS, "*i64": INT64_POINTERS}
        return next((kind for kind, names in kinds.items() if name in names), f"*{self.data}")

    def accesses(self) -> int:
        """How many tensors of x_0's size it must read or write, one of twice the channels being two."""
        data = [name for name in self.kernel.arg_names if self._type(name) == f"*{self.data}" and name not in FLOAT32_POINTERS]
        return len(data) + sum(self.learned for name in data if name in WIDE_POINTERS)


# ---- the variants ----

ELEMENTS = 3 * 64 * 64
"""Of a sample, in a tensor of 2^26: the main variants have the blocks that the ops cut it into."""


def cut(any_batch: bool = False, most: int = 32) -> dict[str, Any]:
    made = plan(2**26 // ELEMENTS, ELEMENTS, 0, any_batch, most)
    return {"block": made.block, "warps": made.num_warps}


def sample_variants() -> dict[str, Variant]:
    """Of what works on samples, and of the end of a loss, at its largest tile first."""
    tiles = _TILES[::-1]
    made = {
        "fill_key": Variant(fill_key_kernel, block=128),
        "advance": Variant(advance_kernel, block=128),
        "timesteps": Variant(timesteps_kernel, block=128),
    }
    made["runs"] = Variant(runs_kernel, block=tiles[0][0], warps=tiles[0][1])
    made |= {f"finish {size}": Variant(finish_kernel, block=size, warps=warps) for size, warps in tiles}
    return made | {f"finish_hybrid {size}": Variant(finish_hybrid_kernel, block=size, warps=warps) for size, warps in tiles}


def loss_variants(kernel: Any, name: str, about: str, absent: tuple[str, ...], **form: Any) -> dict[str, Variant]:
    """What may be wanted of a loss's kernel: the loss, its gradient with it, and in a backward that alone."""
    form["scalars"] = {"count": "fp32"} | form.get("scalars", {})
    return {
        f"{name} {about}": Variant(kernel, absent=(*absent, "grad_ptr", *UPSTREAMS), **form),
        f"{name}_grad {about}": Variant(kernel, absent=(*absent, *UPSTREAMS), **form),
        f"{name}_backward {about}": Variant(kernel, absent=(*absent, *LOSSES, *UPSTREAMS[1:]), **form),
    }


def main_variants(data: str) -> dict[str, Variant]:
    """Of what works on elements of that dtype, at the block of a large tensor, its noise made of a key."""
    eps = ("x_0_ptr", "x_t_ptr")
    return loss_variants(mse_kernel, "mse", f"key {data}", eps, data=data, **cut(any_batch=True)) | {
        f"randn {data}": Variant(randn_kernel, data, **cut()),
        f"noising key {data}": Variant(noising_kernel, data, **cut()),
        f"scale {data}": Variant(scale_kernel, data, **cut()),
        f"reverse key {data}": step(reverse_kernel, data=data),
        f"reverse_backward {data}": step(reverse_backward_kernel, data=data, noise=None),
    }


def update_variants(data: str) -> dict[str, Variant]:
    """Of an optimizer's step, its weights of that dtype."""
    kernels = {"squares": squares_kernel, "adamw": adamw_kernel}
    return {f"{name} {data}": Variant(kernel, data, block=1024) for name, kernel in kernels.items()}


def learned_variants(data: str, channels: int = 0) -> dict[str, Variant]:
    """Of the reverse step with variance channels."""
    name = learned_name(data, channels)
    form: dict[str, Any] = {"data": data, "channels": channels, "learned": True}
    return {
        f"reverse key {name}": step(reverse_kernel, **form),
        f"reverse_backward key {name}": step(reverse_backward_kernel, **form),
    }


def step(kernel, *present: str, learned: bool = False, **form: Any) -> Variant:
    """A reverse step with so many of its options."""
    absent = tuple(name for name in STEP_OPTIONS if name not in present)
    most = _PER_THREAD[learned] // (2 if learned and kernel is reverse_kernel and "u_ptr" in present else 1)
    return Variant(kernel, absent=absent, learned=learned, **cut(most=most) | form)


def bound_variants(data: str, channels: int = 0, tanh: bool = False) -> dict[str, Variant]:
    """Of the bound with variance channels, at its largest blocks."""
    name = f"{learned_name(data, channels)}, {'tanh' if tanh else 'exact'}"
    form: dict[str, Any] = {"data": data, "channels": channels, "learned": True, "tanh": tanh}
    form |= cut(any_batch=True, most=_PER_THREAD_OF_THE_BOUND[tanh])
    return (
        loss_variants(vlb_kernel, "vlb", f"key {name}", ("x_t_ptr",), **form)
        | loss_variants(hybrid_kernel, "hybrid", f"key {name}", ("x_t_ptr", "loss_ptr"), **form)
        | {f"terms key {name}": Variant(terms_kernel, absent=("x_t_ptr",), **form)}
    )


def learned_name(data: str, channels: int) -> str:
    return f"learned {data}" + f" {channels} channels last" * bool(channels)


# ---- the counts ----


def report(variant: Variant, target: str) -> dict[str, Any]:
    options = {"num_warps": variant.warps, **FLAGS}
    compiled = triton.compile(variant.source(), target=TARGETS[target], options=options)
    measured = _amd(compiled) if target.startswith("gfx") else _nvidia(compiled)
    threads = variant.warps * TARGETS[target].warp_size
    elements = max(1, variant.block // threads)
    per_element = round(measured["instructions"] / elements, 2)
    cut = {"block": variant.block, "warps": variant.warps}
    kept = {"shared": compiled.metadata.shared, "fusion": compiled.metadata.enable_fp_fusion}
    return {"per_element": per_element, "elements": elements, **cut, **kept, **measured}


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
    ptx = compiled.asm["ptx"]
    return {
        "instructions": names.total(),
        "registers": usage["REG"],
        "stack": usage["STACK"] + usage["LOCAL"] + local,
        "spills": local,
        "load_bytes": _widths(names, "LDG", _NVIDIA_WIDTH, 4),
        "store_bytes": _widths(names, "STG", _NVIDIA_WIDTH, 4),
        "loads_16": sum(n for name, n in names.items() if name.startswith("LDG") and ".128" in name),
        "stores_16": sum(n for name, n in names.items() if name.startswith("STG") and ".128" in name),
        "loads": sum(n for name, n in names.items() if name.startswith("LDG")),
        "stores": sum(n for name, n in names.items() if name.startswith("STG")),
        "roots": ptx.count("sqrt.rn"),
        "branches": len(re.findall(r"^\s+(?:@!?%p\d+ )?bra", ptx, re.MULTILINE)),
        "contractible": len(re.findall(r"\b(?:add|sub|mul)\.f32\b", ptx)),  # those with .rn are not
        "swallow_nan": len(re.findall(r"\b(?:min|max)\.f32\b", ptx)),  # those with .NaN do not
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
        "spills": usage["vgpr_spill_count"],
        "scalar_spills": usage["sgpr_spill_count"],
        "load_bytes": _widths(memory, r"\w+_load", _AMD_WIDTH, 0),
        "store_bytes": _widths(memory, r"\w+_store", _AMD_WIDTH, 0),
        "loads_16": sum(n for name, n in memory.items() if "load_dwordx4" in name),
        "stores_16": sum(n for name, n in memory.items() if "store_dwordx4" in name),
        "loads": sum(n for name, n in memory.items() if "load" in name),
        "stores": sum(n for name, n in memory.items() if "store" in name),
    }


_NVIDIA_WIDTH = {r"\.256": 32, r"\.128": 16, r"\.64": 8, r"\.[US]16": 2, r"\.[US]8": 1}
_AMD_WIDTH = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "byte": 1}


def _widths(names: dict[str, int], kind: str, widths: dict[str, int], otherwise: int) -> list[int]:
    """Bytes that a thread's global accesses of that kind move, narrowest first."""
    found = (
        next((n for part, n in widths.items() if re.search(part, name)), otherwise) for name in names if re.match(kind, name)
    )
    return sorted(set(found))
