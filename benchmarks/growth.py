"""How time and memory grow with the batch, the resolution and the length of the chain, and what a second thread brings."""

import math
import statistics

import torch

import fastddpm as fd

from . import clock, host, machine, ops
from .inputs import Batch
from .ops import FUSED

SIZES = {
    "batch": [2**n for n in range(11)],
    "resolution": [2**n for n in range(3, 10)],
    "T": [1, 4, 16, 64, 256, 1000],
}
PROVIDERS = (FUSED, "eager")
THREADED = dict.fromkeys(("noising", "chain", "reverse", "hybrid"), (64, 4, 128, 128))


def measure(axis: str, size: int) -> list[dict]:
    """A record for each provider: noising, mse and gradient along batch and resolution, sampling along T."""
    calls, data, forget = _sampling(size) if axis == "T" else _chain(axis, size)
    times = clock.in_turn(calls, budget=1.5, rounds=7)
    return [
        {
            "level": "growth",
            "name": f"growth/{axis}/{size}/{provider}",
            "op": axis,
            "provider": provider,
            "size": size,
            "data_bytes": data,
            "seconds": clock.spread(times[provider]),
            "peak_bytes": host.peak_bytes(call, forget),
        }
        for provider, call in calls.items()
    ]


def _chain(axis: str, size: int):
    b = Batch((size, 3, 32, 32) if axis == "batch" else (8, 3, size, size))
    return {name: ops.make("chain", name, b) for name in PROVIDERS}, 4 * b.elements, b.forget


def _sampling(steps: int):
    """The whole of `sample`, its tables made anew, with a network that costs nothing; its images must be in bounds."""
    diffusion, shape = fd.GaussianDiffusion(fd.NoiseSchedule.linear(1000)), (16, 3, 32, 32)

    def call():
        return diffusion.sample(lambda x, t: x, shape, steps=steps, progress=False, device=machine.DEVICE)

    images = call()
    assert images.shape == shape and images.isfinite().all() and images.abs().max() <= 1, "the images are out of bounds"
    return {FUSED: call}, 4 * math.prod(shape), lambda: None


def linear(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Of (size, seconds): the size from which launches stop mattering, where a call takes four times what the smallest takes;
    and the exponent of the growth from there on (1: in proportion), by least squares of the logarithms."""
    points = sorted(points)
    grown = [(math.log(size), math.log(t), size) for size, t in points if t >= 4 * points[0][1]]
    if len(grown) < 2:
        return math.nan, math.nan
    x, y = ([value[i] for value in grown] for i in (0, 1))
    return grown[0][2], statistics.linear_regression(x, y).slope


def threads(op: str) -> list[dict]:
    """The same call on one thread and on all, in turn."""
    call, most = ops.make(op, FUSED, Batch(THREADED[op])), torch.get_num_threads()

    def with_threads(count: int):
        def run():
            torch.set_num_threads(count)
            call()

        return run

    try:
        times = clock.in_turn({str(n): with_threads(n) for n in sorted({1, most})}, budget=2.0)
    finally:
        torch.set_num_threads(most)
    return [
        {
            "level": "threads",
            "name": f"threads/{op}/{n}",
            "op": op,
            "provider": FUSED,
            "threads": int(n),
            "shape": THREADED[op],
            "seconds": clock.spread(values),
            "ratio": clock.ratio(times, "1", n),
        }
        for n, values in times.items()
    ]
