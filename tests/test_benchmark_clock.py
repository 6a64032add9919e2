"""What a figure of the suite is: which calls its clock makes, in which order, and which it keeps. On a time that is made up."""

import gc
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the suite is no part of the package

from benchmarks import clock, machine

FAST, SLOW = 2.0**-9, 0.25  # seconds, exact in binary
TURN = 2**-4
"""What the fixture makes of clock.TURN."""


class Calls:
    """Calls that take the seconds given, in turn and then the last for ever, and note who was called."""

    def __init__(self, monkeypatch):
        self.now, self.made = 0.0, []
        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def of(self, name, *seconds):
        left = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def call():
            self.made.append(name)
            self.now += next(left)

        return call


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(clock, "TURN", TURN)
    return Calls(monkeypatch)


def test_a_second_is_a_second(calls):
    assert clock.seconds(calls.of("a", 3.0)) == 3.0 and calls.made == ["a"]


def test_the_first_estimate_is_the_faster_of_two_calls_after_a_cold_one(calls):
    assert clock._once(calls.of("a", FAST / 4, 3 * FAST, FAST)) == FAST and len(calls.made) == 3
    assert clock._once(calls.of("b", FAST / 4, FAST, 3 * FAST)) == FAST


def test_a_slow_call_is_not_repeated_for_its_estimate(calls):
    assert clock._once(calls.of("a", SLOW, FAST)) == SLOW and calls.made == ["a"]
    assert clock._once(calls.of("b", clock.SLOW, FAST)) == FAST  # not beyond it


def test_a_turn_is_the_median_of_its_calls_without_the_first(calls):
    once = TURN / 3
    assert clock._turn(calls.of("a", 100.0, 1.0, 9.0, 2.0), once) == 2.0 and len(calls.made) == 4


@pytest.mark.parametrize("once, made", [(FAST, 32), (TURN, 1), (TURN / 1.75, 1), (2 * TURN, 1), (TURN / 1000, 200), (0.0, 200)])
def test_a_turn_is_as_many_calls_as_fit_it(calls, once, made):
    clock._turn(calls.of("a", FAST), once)
    assert len(calls.made) == 1 + made


def test_a_slow_call_is_not_warmed_up(calls):
    assert clock._turn(calls.of("a", 5.0, 1.0), SLOW) == 5.0 and calls.made == ["a"]
    clock._turn(calls.of("b", 5.0, 1.0), clock.SLOW)
    assert calls.made == ["a", "b"]


@pytest.mark.parametrize(
    "seconds, budget, rounds",
    [(SLOW, 0.0, 3), (SLOW, 4.0, 4), (SLOW, 5.5, 5), (SLOW, 1e3, 15), (FAST, 4 * 2 * 2 * TURN, 4), (FAST, 1e3, 15)],
)
def test_as_many_rounds_as_fit_the_budget(calls, seconds, budget, rounds):
    times = clock.in_turn({"a": calls.of("a", seconds), "b": calls.of("b", seconds)}, budget)
    assert times == {"a": [seconds] * rounds, "b": [seconds] * rounds}


def test_no_more_rounds_than_asked_for(calls):
    assert len(clock.in_turn({"a": calls.of("a", FAST)}, budget=1e3, rounds=7)["a"]) == 7


def test_every_other_round_goes_backwards(calls):
    names = "abc"
    clock.in_turn({name: calls.of(name, SLOW) for name in names}, budget=0.0)
    assert "".join(calls.made) == names + "abc" + "cba" + "abc"


def test_each_calls_estimate_is_its_own(calls):
    clock.in_turn({"slow": calls.of("slow", SLOW), "fast": calls.of("fast", FAST)}, budget=0.0)
    assert calls.made.count("slow") == clock.LEAST == 1 + 3
    assert calls.made.count("fast") == 3 + 3 * (1 + 32)


def test_garbage_is_collected_before_the_rounds_and_not_within(calls, monkeypatch):
    collected, within = [], []
    monkeypatch.setattr(clock.gc, "collect", lambda: collected.append(len(within)))
    clock.in_turn({"a": lambda: within.append(gc.isenabled())}, budget=0.0)
    assert collected == [3] and set(within[:3]) == {True} and set(within[3:]) == {False} and gc.isenabled()


def test_garbage_is_collected_again_after_a_call_that_fails(calls):
    turns = [0] * 4
    with pytest.raises(IndexError):
        clock.in_turn({"a": turns.pop}, budget=0.0)
    assert gc.isenabled()


def test_the_device_is_drained_before_the_start_and_before_the_end(calls, monkeypatch):
    monkeypatch.setattr(machine, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", calls.of("drain", 1.0))
    assert clock.seconds(calls.of("a", 2.0)) == 3.0 and calls.made == ["drain", "a", "drain"]
    clock.drained(calls.of("b", 2.0))()
    assert calls.made[3:] == ["b", "drain"]


def test_without_a_device_nothing_is_put_round_a_call(calls, monkeypatch):
    monkeypatch.setattr(machine, "DEVICE", torch.device("cpu"))
    call = calls.of("a", 1.0)
    assert clock.drained(call) is call


def test_a_spread_is_the_least_the_quartiles_and_the_count():
    assert clock.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"min": 1.0, "q1": 2.0, "median": 3.0, "q3": 4.0, "rounds": 5}
    assert clock.spread([5.0]) == {"min": 5.0, "q1": 5.0, "median": 5.0, "q3": 5.0, "rounds": 1}


def test_a_ratio_is_taken_round_by_round():
    times = {"a": [2.0, 6.0, 16.0], "b": [1.0, 2.0, 2.0]}
    assert clock.ratio(times, "a", "b") == {"min": 2.0, "q1": 2.5, "median": 3.0, "q3": 5.5, "rounds": 3}
    with pytest.raises(ValueError):
        clock.ratio({"a": [1.0], "b": [1.0, 2.0]}, "a", "b")


def test_a_record_is_of_one_step_where_a_call_makes_several():
    times = {"fastddpm": [2.0, 4.0, 6.0], "other": [8.0, 8.0, 12.0]}
    ours, other = clock.records("loop/train", "mlp", 16, times, count=2)
    assert ours["name"] == "loop/train/mlp/16/fastddpm" and other["provider"] == "other"
    assert [r["seconds"]["median"] for r in (ours, other)] == [2.0, 4.0]
    assert [r["images_per_second"] for r in (ours, other)] == [16 / 2.0, 16 / 4.0]
    assert ours["ratio"]["median"] == 1.0 and other["ratio"]["median"] == 2.0
