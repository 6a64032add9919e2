"""Ops are checked, then timed by pytest-benchmark. Kernel level: 2^10 .. 2^26 elements, beside the bytes it must move and the
machine's own copy of as many. Call level: [1, 3, 8, 8], where the arithmetic is nothing and the way to the kernel is all.
"""

import math
from functools import lru_cache

import pytest
import torch

from . import clock, host, inputs, machine, ops, plan


@pytest.mark.parametrize("case", [*plan.kernel_cases(quick=False), *plan.call_cases()], ids=lambda case: case.name)
def bench_op(benchmark, case: ops.Case):
    """On a GPU the call waits for it inside."""
    b = inputs.batch(case.shape, case.dtype, case.memory_format)
    call = ops.make(case.op, case.provider, b)
    about = moved(case) if case.level == "kernel" else cost(case, call)
    benchmark.group = f"{case.level} {case.op} {b.shape} {case.dtype} {case.memory_format}"
    benchmark.extra_info.update(case._asdict(), name=case.name, elements=b.elements, **about)
    benchmark(clock.drained(call))


def moved(case: ops.Case) -> dict:
    """The bytes that the op must move, and what the machine's own copy took for data of that size."""
    size = math.prod(case.shape) * inputs.DTYPES[case.dtype].itemsize
    return {"bytes": ops.ACCESSES[case.op] * size, "copy_bytes": 2 * size, **copy_seconds(case.shape, case.dtype)}


@lru_cache(maxsize=64)
def copy_seconds(shape: tuple[int, ...], dtype: str) -> dict[str, float]:
    """Onto memory that is used again, as fastddpm's outputs are, and onto memory freshly asked for."""
    x = torch.zeros(shape, dtype=inputs.DTYPES[dtype], device=machine.DEVICE)
    again = torch.zeros_like(x)
    times = clock.in_turn({"recycled": lambda: again.copy_(x), "fresh": x.clone}, budget=0.5, rounds=5)
    return {f"copy_{name}_seconds": clock.spread(values)["median"] for name, values in times.items()}


def cost(case: ops.Case, call) -> dict:
    """Ops dispatched and values read, by the call; and memory, as multiples of the data, by one on more of it."""
    more = inputs.Batch(plan.MEMORY_SHAPE)
    peak = host.peak_bytes(ops.make(case.op, case.provider, more), more.forget)
    return {**host.dispatched(call), "peak_memory": round(peak / (4 * more.elements), 2)}
