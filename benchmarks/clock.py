"""Time: a call with the device drained, and several calls in turn, since a machine's speed drifts while it is measured."""

import gc
import statistics
import time
from collections.abc import Callable

import torch

from . import machine
from .ops import FUSED, LeftOutError

TURN = 0.03
"""Seconds that a call is repeated for within its turn."""
SLOW = 0.2
"""A call of so many seconds is not warmed up again in every turn."""
LIMIT = 20.0
"""Seconds that a loop's fewest rounds may take: beyond, it is left out."""


def drain() -> None:
    if machine.DEVICE.type == "cuda":
        torch.cuda.synchronize()


def drained(call: Callable) -> Callable:
    """The call, waiting for the device inside."""
    if machine.DEVICE.type != "cuda":
        return call

    def wait():
        call()
        torch.cuda.synchronize()

    return wait


def seconds(call: Callable) -> float:
    drain()
    start = time.perf_counter()
    call()
    drain()
    return time.perf_counter() - start


def in_turn(calls: dict[str, Callable], budget: float, rounds: int = 15) -> dict[str, list[float]]:
    """Rounds of turns: in each, every call is repeated for a moment, and the median kept.

    Every other round goes backwards. There are as many rounds as fit the budget (seconds), at least three.
    """
    names = list(calls)
    once = {name: _once(calls[name]) for name in names}
    cost = sum(2 * max(TURN, t) for t in once.values())
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for i in range(max(3, min(rounds, int(budget / cost)))):
            for name in names if i % 2 == 0 else reversed(names):
                times[name].append(_turn(calls[name], once[name]))
    finally:
        gc.enable()
    return times


LEAST = 4
"""How often `in_turn` at least makes each call."""


def check_time(once: float, providers: int) -> None:
    """Leaves out, by a LeftOutError, a case of so many calls of so many seconds that would take longer than LIMIT."""
    total = once * LEAST * providers
    if total > LIMIT:
        raise LeftOutError(
            f"{once:.1f} s a turn, {total:.0f} s for {providers} providers {LEAST} times each: more than {LIMIT:.0f} s"
        )


def _once(call: Callable) -> float:
    first = seconds(call)
    return first if first > SLOW else min(seconds(call) for _ in range(2))


def _turn(call: Callable, once: float) -> float:
    if once < SLOW:
        call()  # brings back what the others' turns drove out of the caches
    return statistics.median(seconds(call) for _ in range(max(1, min(200, int(TURN / max(once, 1e-7))))))


def spread(values: list[float]) -> dict[str, float]:
    """What is recorded of a figure's measurements."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"min": min(values), "q1": q1, "median": median, "q3": q3, "rounds": len(values)}


def ratio(times: dict[str, list[float]], of: str, over: str) -> dict[str, float]:
    """The spread of one call's time over another's, round by round."""
    return spread([a / b for a, b in zip(times[of], times[over], strict=True)])


def records(kind: str, network: str, batch: int, times: dict[str, list[float]], count: int = 1) -> list[dict]:
    """What is recorded of a step or a loop with a network, `count` of them a call: one for each provider."""
    return [
        {
            "name": f"{kind}/{network}/{batch}/{provider}",
            "provider": provider,
            "network": network,
            "batch": batch,
            "seconds": spread([t / count for t in taken]),
            "images_per_second": batch * count / statistics.median(taken),
            "ratio": ratio(times, provider, FUSED),
        }
        for provider, taken in times.items()
    ]
