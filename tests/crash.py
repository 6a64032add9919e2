"""A training run that dies in the middle, and what it must come to all the same."""

import json
import subprocess
from contextlib import contextmanager

import pytest
import torch

from fastddpm.train import checkpoint
from fastddpm.train.trainer import Trainer


class CrashError(Exception):
    pass


def crash_at(monkeypatch, step):
    train_step = Trainer.train_step

    def crashing(self):
        if self.step == step:
            raise CrashError
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", crashing)


def assert_same_run(out, expected):
    got, want = checkpoint.load(out, "cpu"), checkpoint.load(expected, "cpu")
    assert got["step"] == want["step"] == want["config"]["steps"]
    got |= {f"generators of {rank}": states for rank, states in enumerate(got["generators"])}
    want |= {f"generators of {rank}": states for rank, states in enumerate(want["generators"])}
    for part in ("network", "average", "generators of 0"):
        assert all(torch.equal(got[part][name], want[part][name]) for name in want[part]), part
    moments = [(a, b) for a, b in zip(got["optimizer"]["state"].values(), want["optimizer"]["state"].values(), strict=True)]
    assert all(torch.equal(a[name], b[name]) for a, b in moments for name in b)
    assert losses(out) == losses(expected)


def losses(out):
    """(step, loss) of every line; a broken line would not parse."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@contextmanager
def small_disk(path, size):
    """A disk of that size, there."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("a tmpfs can't be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
