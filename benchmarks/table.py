"""The results as one table: a row a case, fastddpm's time and figures, and what the others take for the same."""

from collections import defaultdict

from .ops import COMPILED, FUSED, TITLES

OTHERS = ("eager", COMPILED, "diffusers", "lucidrains")
LEVELS = {
    "kernel": "kernel: an op on much data (others: their time over fastddpm's, each timed for itself)",
    "ratio": "kernel and call, in turn (others: the median of the rounds' ratios)",
    "layout": "layout: fastddpm in channels_last, and the ratio to its time in contiguous memory, in turn",
    "call": "call: an op on almost no data",
    "loop": "loop: a whole step, or all of a sampling loop, with its network (others: the median of the rounds' ratios)",
    "growth": "growth",
    "threads": "threads (1 thread's time over that of n)",
}


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f}x" if ratio < 9.95 else f"{ratio:.1f}x"


def ratio(case: dict | None) -> str:
    """The median of the rounds' ratios, and its quartiles."""
    if case is None:
        return ""
    r = case["ratio"]
    return f"{times(r['median'])} ({times(r['q1'])[:-1]} .. {times(r['q3'])[:-1]})"


def groups(cases: list[dict], level: str) -> dict[str, dict[str, dict]]:
    """{case without its provider: {provider: record}} of a level, in the order of the run."""
    found: dict[str, dict[str, dict]] = defaultdict(dict)
    for case in cases:
        if case["level"] == level:
            name = case["name"].removesuffix(f"/{case['provider']}").removeprefix(f"{level}/")
            found[name][case["provider"]] = case
    return found


def others(groups: dict[str, dict[str, dict]]) -> list[str]:
    """The providers that are in a level's groups beside fastddpm."""
    return [name for name in OTHERS if any(name in group for group in groups.values())]


def title(case: dict) -> str:
    return f"{TITLES[case['op']]}, {'x'.join(map(str, case['shape']))}"


def fused_seconds(group: dict[str, dict]) -> dict | None:
    if FUSED in group:
        return group[FUSED]["seconds"]
    return next((case["fastddpm_seconds"] for case in group.values() if "fastddpm_seconds" in case), None)


def over(group: dict[str, dict], provider: str) -> float | None:
    """That provider's time over fastddpm's."""
    case, ours = group.get(provider), fused_seconds(group)
    if case is None or ours is None:
        return None
    return case["ratio"]["median"] if "ratio" in case else case["seconds"]["median"] / ours["median"]


def figure(case: dict | None) -> str:
    """What a level is about, beside the time."""
    if case is None:
        return ""
    if case["level"] == "kernel":
        return f"{case['ns_per_element']:.3f} ns an element, {case['of_recycled_copy']:.0%} of the copy"
    if case["level"] == "call":
        return f"{case['launches']} launches, {case['host_reads']} reads, {case['peak_memory']:.2f} x memory"
    if case["level"] == "loop":
        return f"{case['images_per_second']:.0f} images/s"
    if case["level"] == "growth":
        return "" if case["peak_bytes"] is None else f"{case['peak_bytes'] / case['data_bytes']:.2f} x memory"
    return ratio(case) if case["level"] in ("threads", "layout") else ""


def text(results: dict, slower: dict[str, float]) -> str:
    """For a terminal. `slower`: cases to mark."""
    rows = []
    for level, title in LEVELS.items():
        found = groups(results["cases"], level)
        if found:
            rows += ["", title, _row("", FUSED, "quartiles", "", *OTHERS)]
        for name, group in found.items():
            ours = fused_seconds(group)
            if ours is None:
                continue
            spread = f"{duration(ours['q1'])} .. {duration(ours['q3'])}"
            cells = (duration(ours["median"]), spread, figure(group.get(FUSED)), *(times(over(group, o)) for o in OTHERS))
            marked = [slower[case["name"]] for case in group.values() if case["name"] in slower]
            rows.append(_row(name, *cells) + (f"  SLOWER {max(marked):.2f}x" if marked else ""))
    return "\n".join(rows[1:])


def _row(name: str, ours: str, spread: str, about: str, *others: str) -> str:
    return f"{name:46}{ours:>9}{spread:>22}  {about:41}" + "".join(f"{other:>15}" for other in others)
