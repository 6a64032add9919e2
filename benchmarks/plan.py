"""Which cases a run is made of, and which it leaves out and why."""

from collections.abc import Iterable

import torch

from . import machine, peers
from .ops import COMPILED, FUSED, OPS, TITLES, Case, why_not_compiled

EXPONENTS = range(10, 27, 2)
QUICK_EXPONENTS = (10, 16, 22)
OTHERS_END = 22
"""The exponent of the largest size at which eager code is timed in the sweep."""
REFERENCE_END = 16
"""And of the largest for `--reference`, whose noise is made of integer ops in Python."""
DTYPE_EXPONENTS = (18, 24)
CALL_SHAPE = (1, 3, 8, 8)
MEMORY_SHAPE = (8, 3, 64, 64)
SMALL, LARGE = (128, 3, 32, 32), (64, 3, 256, 256)
BOUND_LARGE = (16, 3, 256, 256)
STEP_SHAPES = ((16, 3, 32, 32), (64, 3, 64, 64))
PROCESS_OPS = ("flow", "edm")
"""The chain of another forward process."""
STEP_OPS = tuple(op for op in TITLES if op not in OPS + PROCESS_OPS)
"""Other reverse steps than DDPM's."""
RATIO_SHAPES = {
    "noising": (SMALL, LARGE),
    "mse": (SMALL, LARGE),
    "chain": (SMALL, LARGE),
    "reverse": STEP_SHAPES,
    "hybrid": (SMALL, BOUND_LARGE),
    "kl": (SMALL, BOUND_LARGE),
    "bits_per_dim": (SMALL, BOUND_LARGE),
    **dict.fromkeys(PROCESS_OPS, (SMALL, LARGE)),
    **dict.fromkeys(STEP_OPS, STEP_SHAPES),
}
CALLED = tuple(op for op in RATIO_SHAPES if op in OPS)
LAYOUTS = ("noising", "chain", "reverse", "hybrid", "kl")
"""Ops timed in channels_last and contiguous memory in turn."""


def shape_of(exponent: int) -> tuple[int, ...]:
    """2^exponent elements in samples of 4 channels: 64 x 64 pixels, 16 x 16 where that is too large."""
    side = 64 if exponent >= 14 else 16
    return (2**exponent // (4 * side * side), 4, side, side)


def kernel_cases(quick: bool) -> list[Case]:
    """The sweep. Cases of one kind of data follow each other, so that they share it."""
    built = machine.has_kernels()
    cases = []
    for n in QUICK_EXPONENTS if quick else EXPONENTS:
        here = n <= (max(EXPONENTS) if built else REFERENCE_END)
        cases += [Case("kernel", op, FUSED, shape_of(n)) for op in OPS if here]
        cases += [Case("kernel", op, "eager", shape_of(n)) for op in OPS if n <= OTHERS_END]
    kinds = [("bfloat16", "contiguous"), ("float16", "contiguous"), ("float32", "channels_last")]
    exponents = (() if quick else DTYPE_EXPONENTS) if built else (REFERENCE_END,)
    return cases + [Case("kernel", op, FUSED, shape_of(n), *kind) for n in exponents for kind in kinds for op in OPS]


def call_cases() -> list[Case]:
    """Almost no data, so that only the way to it is left."""
    names = [FUSED, "eager", *peers.installed()]
    return [Case("call", op, name, CALL_SHAPE) for op in CALLED for name in names if has(op, name)]


def _paired(ops: Iterable[str], quick: bool) -> list[tuple[str, tuple[int, ...]]]:
    return [(op, shape) for op in ops for shape in RATIO_SHAPES[op][: 1 if quick else None]]


def ratio_cases(quick: bool) -> list[Case]:
    """One for each op and shape: there all providers are timed in turn."""
    return [Case("ratio", op, "all", shape) for op, shape in _paired(RATIO_SHAPES, quick)]


def layout_cases(quick: bool) -> list[Case]:
    """One for each op and shape: there fastddpm is timed in turn with itself on contiguous data."""
    return [Case("layout", op, FUSED, shape, memory_format="channels_last") for op, shape in _paired(LAYOUTS, quick)]


def ratio_providers(op: str, quick: bool) -> list[str]:
    compiled = not quick and op not in STEP_OPS and not why_not_compiled()
    names = [FUSED, "eager", *([COMPILED] if compiled else []), *peers.installed()]
    return [name for name in names if has(op, name)]


def has(op: str, provider: str) -> bool:
    return provider in (FUSED, "eager", COMPILED) or op in peers.CALLS[provider]


def left_out(quick: bool) -> list[dict[str, str]]:
    """What is not measured anywhere in this run."""
    reasons = [
        (
            f"kernel: eager beyond 2^{OTHERS_END} elements",
            "a call takes seconds there, and the time an element no longer changes",
        ),
        (
            "torch.compile of the guided step and of other samplers' steps",
            "compiling each takes as long as the rest of its case; the reverse step has it",
        ),
        ("kernel: other providers than eager", "they are timed against fastddpm in turn, at the shapes of level ratio"),
    ]
    for name in sorted(set(peers.CALLS) - set(peers.installed())):
        reasons.append((name, "not installed, or without something that it imports"))
    if not torch.cuda.is_available():
        reasons.append(("GPUs", "not measured on a GPU"))
    if not quick and why_not_compiled():
        reasons.append((COMPILED, why_not_compiled()))
    if quick:
        reasons.append(("torch.compile of the ops; most sizes; dtypes but float32; the 35.7 M network; growth", "--quick"))
    return [{"what": what, "why": why} for what, why in reasons]
