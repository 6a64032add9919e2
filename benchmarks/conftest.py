"""What the per-op cases share: a case is checked, then timed by pytest-benchmark, and what it moved or cost is kept."""

from functools import lru_cache

import pytest
import torch

from . import clock, host, inputs, machine, ops, plan


def pytest_configure(config):
    if not machine.has_kernels() and not getattr(config.option, "reference", False):
        pytest.exit(f"benchmarks: {machine.mend()}", returncode=4)


def pytest_addoption(parser):
    parser.addoption("--reference", action="store_true", help="benchmarks: go on where the kernels are not built")


@pytest.fixture
def timed(benchmark):
    """Times a case. On a GPU the call waits for it inside."""

    def run(case: ops.Case, about):
        b = inputs.batch(case.shape, case.dtype, case.memory_format)
        call = ops.make(case.op, case.provider, b)
        benchmark.group = f"{case.level} {case.op} {b.shape} {case.dtype} {case.memory_format}"
        benchmark.extra_info.update(case._asdict(), name=case.name, elements=b.elements, **about(case, call))
        benchmark(clock.drained(call))

    return run


def moved(case: ops.Case, call) -> dict:
    """The bytes that the op must move, and what the machine's own copy took for data of that size."""
    del call
    size = inputs.batch(case.shape, case.dtype, case.memory_format).elements * inputs.DTYPES[case.dtype].itemsize
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
