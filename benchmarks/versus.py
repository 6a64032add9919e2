"""Providers against each other, in turn, at the shapes that the figures of merit are given for."""

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
    times = clock.in_turn(calls, BUDGET / 4 if quick else BUDGET)
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
