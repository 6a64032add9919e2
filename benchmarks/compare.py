"""What got slower since another run, beyond the spread of both and the drift of the machine."""

import statistics

from .ops import FUSED

BY_RATIO = ("ratio", "loop", "threads")
"""Levels whose cases were timed in turn: what is compared is the ratio, others' over fastddpm's, which does not drift."""


def drift(old: dict, new: dict, level: str) -> float:
    """What the rest of the machine takes now, over what it took then: the median over the level's cases of other providers."""
    then, now = ({c["name"]: c for c in run["cases"] if c["level"] == level and c["provider"] != FUSED} for run in (old, new))
    ratios = [now[name]["seconds"]["median"] / then[name]["seconds"]["median"] for name in now.keys() & then.keys()]
    return statistics.median(ratios) if ratios else 1.0


def changes(old: dict, new: dict) -> dict[str, tuple[float, bool]]:
    """{case: (what fastddpm takes now over what it took then, whether it is slower beyond the spread)} of cases in both runs.

    Slower beyond the spread: three quarters of the new rounds are above three quarters of the old.
    """
    then = {case["name"]: case for case in old["cases"]}
    drifts = {case["level"]: drift(old, new, case["level"]) for case in new["cases"]}
    return {
        case["name"]: _change(then[case["name"]], case, drifts[case["level"]])
        for case in new["cases"]
        if case["name"] in then and _counts(case)
    }


def slower(old: dict, new: dict) -> dict[str, float]:
    """The cases to mark, and by how much."""
    return {name: change for name, (change, beyond) in changes(old, new).items() if beyond}


def _counts(case: dict) -> bool:
    """fastddpm's own times; of ratios to others, those of the others."""
    return (case["provider"] == FUSED) == (case["level"] not in ("ratio", "loop"))


def _change(then: dict, now: dict, machine: float) -> tuple[float, bool]:
    if now["level"] in BY_RATIO:
        before, after = then["ratio"], now["ratio"]
        return before["median"] / after["median"], after["q3"] < before["q1"]
    figure = "ratio" if now["level"] == "layout" else "seconds"  # fastddpm's over its own: more is slower, as of seconds
    before, after = then[figure], now[figure]
    return after["median"] / before["median"] / machine, after["q1"] > before["q3"] * max(1.0, machine)


def lines(old: dict, new: dict) -> list[str]:
    """The comparison as text."""
    found, machine = slower(old, new), f"{drift(old, new, 'kernel'):.2f}x"
    head = (
        f"against {old['machine']['commit'] or 'another run'} of {old['machine']['date']}: {len(changes(old, new))} cases in "
        f"both, {len(found)} slower beyond their spread (other providers' kernels: {machine})"
    )
    return [head, *(f"  SLOWER {change:.2f}x  {name}" for name, change in sorted(found.items(), key=lambda item: -item[1]))]
