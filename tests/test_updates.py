"""The timing of optimizers, and the document that holds its table."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from benchmarks import clock, updates
from benchmarks.docs import ROOT


def test_what_is_timed_does_the_same():
    for calls in (updates.alone("mlp"), updates.whole("mlp")):
        for call in calls.values():
            call()
    networks = updates.updates(torch.nn.Linear(3, 3))
    for network, update in networks.values():
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        update()
    first, *others = ([*network.parameters()] for network, _ in networks.values())
    assert all(torch.allclose(p, q, atol=1e-7) for other in others for p, q in zip(first, other, strict=True))


def test_the_document_holds_the_table(monkeypatch):
    monkeypatch.setattr(clock, "in_turn", lambda calls, budget: {name: [1.0 + n, 1.0 + n] for n, name in enumerate(calls)})
    line = "| a training step, MLP on action chunks, batch 16 | 1 s | 2 s | 3 s | 2.00x (2.00 .. 2.00) | 3.00x (3.00 .. 3.00) |"
    monkeypatch.setattr(updates, "NETWORKS", {"mlp": updates.NETWORKS["mlp"]})
    assert updates.speeds().splitlines()[-1] == line
    text = (ROOT / "docs/optimizer.md").read_text()
    assert "the table" in updates.between(text, "updates", lambda name: "the table")
