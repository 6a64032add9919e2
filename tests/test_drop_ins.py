"""The timing and counting of drop-ins, and the document that holds its tables."""

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from benchmarks import clock, drop_ins
from benchmarks.docs import ROOT


def test_a_call_is_counted_and_timed(monkeypatch):
    cases = {name: case for name, case in drop_ins.diffusers_cases().items() if name == "DDPMScheduler.step"}
    (line,) = drop_ins.counts(cases).splitlines()[2:]
    ops, passes, _, reads = (cell.split(" / ") for cell in line.split(" | ")[1:])
    assert int(ops[0]) > 10 * int(ops[1]) and int(passes[0]) > 3 * int(passes[1]) > 3 * int(passes[2])
    assert int(reads[0]) >= 13 > 1 >= int(reads[1])
    monkeypatch.setattr(clock, "in_turn", lambda calls, budget: {name: [4.0 - n, 4.0] for n, name in enumerate(calls)})
    small, *_, large = drop_ins.speeds(cases).splitlines()[2:]
    assert small == "| DDPMScheduler.step | 1x3x8x8 | 4 s | 1.17x (1.08 .. 1.25) | 1.50x (1.25 .. 1.75) |"
    assert "64x3x64x64" in large


def test_the_document_holds_the_tables():
    text = (ROOT / "docs/integrations.md").read_text()
    filled = drop_ins.between(text, "drop-ins", lambda name: f"the {name}")
    assert all(f"the {name}" in filled for name in ("speeds", "whole", "counts"))
