"""Providers, and layouts of memory, against each other in turn, at the shapes that the figures of merit are given for."""

import math
from collections.abc import Callable

from . import clock, plan
from .inputs import Batch
from .ops import FUSED, Case, make

BUDGET = 5.0
"""Seconds a case."""


def measure(case: Case, quick: bool) -> list[dict]:
    """A record for each provider but fastddpm: both times and the ratio, round by round.

    Raises:
        AssertionError: a result is not what the op claims.
    """
    b = Batch(case.shape)
    calls = {name: make(case.op, name, b) for name in plan.ratio_providers(case.op, quick)}
    times = _in_turn(calls, quick)
    return [_record(case._replace(provider=name), times, name, FUSED) for name in calls if name != FUSED]


def layout(case: Case, quick: bool) -> list[dict]:
    """The same of one provider in the case's memory format and in contiguous memory."""
    formats = (case.memory_format, "contiguous")
    calls = {name: make(case.op, case.provider, Batch(case.shape, case.dtype, name)) for name in formats}
    return [_record(case, _in_turn(calls, quick), *formats)]


def _in_turn(calls: dict[str, Callable], quick: bool) -> dict[str, list[float]]:
    return clock.in_turn(calls, BUDGET / 4 if quick else BUDGET)


def _record(case: Case, times: dict[str, list[float]], of: str, over: str) -> dict:
    return {
        **case._asdict(),
        "name": case.name,
        "elements": math.prod(case.shape),
        "seconds": clock.spread(times[of]),
        f"{over}_seconds": clock.spread(times[over]),
        "ratio": clock.ratio(times, of, over),
    }
