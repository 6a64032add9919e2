"""Providers, and layouts of memory, against each other in turn, at the shapes that the figures of merit are given for."""

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
    calls = {name: clock.drained(make(case.op, name, b)) for name in plan.ratio_providers(case.op, quick)}
    times = clock.in_turn(calls, _budget(quick))
    ours = clock.spread(times[FUSED])
    return [
        {
            **case._asdict(),
            "name": case._replace(provider=name).name,
            "provider": name,
            "elements": b.elements,
            "seconds": clock.spread(times[name]),
            "fastddpm_seconds": ours,
            "ratio": clock.ratio(times, name, FUSED),
        }
        for name in calls
        if name != FUSED
    ]


def layout(case: Case, quick: bool) -> list[dict]:
    """One record: the case's time in its memory format, in contiguous memory, and the ratio, round by round."""
    formats = (case.memory_format, "contiguous")
    calls = {name: make(case.op, case.provider, Batch(case.shape, case.dtype, name)) for name in formats}
    times = clock.in_turn(calls, _budget(quick))
    return [
        {
            **case._asdict(),
            "name": case.name,
            "seconds": clock.spread(times[case.memory_format]),
            "contiguous_seconds": clock.spread(times["contiguous"]),
            "ratio": clock.ratio(times, *formats),
        }
    ]


def _budget(quick: bool) -> float:
    return BUDGET / 4 if quick else BUDGET
