"""A checkpoint is whole or not there."""

import os
import pickle
import stat
from functools import partial

import pytest
import torch

from fastddpm.train import UsageError, checkpoint


class CrashError(Exception):
    pass


def crash(*_):
    raise CrashError


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_crash_before_the_rename_leaves_the_old_one(tmp_path, monkeypatch, moment):
    checkpoint.save(tmp_path, {"step": 1, "weight": torch.ones(1000)})
    monkeypatch.setattr(os, moment, crash)
    with pytest.raises(CrashError):
        checkpoint.save(tmp_path, {"step": 2, "weight": torch.zeros(1000)})
    monkeypatch.undo()
    state = checkpoint.load(tmp_path, "cpu")
    assert state["step"] == 1 and state["weight"].sum() == 1000
    checkpoint.save(tmp_path, {"step": 3})  # what the crash left aside is no hindrance
    assert checkpoint.load(tmp_path, "cpu")["step"] == 3


def test_content_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    checkpoint.save(tmp_path, {"weight": torch.ones(1000)})
    assert calls == [(tmp_path / checkpoint.NAME).stat().st_size, "rename", "folder"]


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UsageError, match=r"a folder with a checkpoint\.pt"):
        checkpoint.load(tmp_path, "cpu")
    (tmp_path / checkpoint.NAME).write_bytes(b"something else")
    with pytest.raises(UsageError, match="can't be read"):
        checkpoint.load(tmp_path, "cpu")


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, partial(pickle.dump, protocol=2)], ids=["zip", "pickle"])
def test_a_checkpoint_runs_no_code(tmp_path, write):
    with open(tmp_path / checkpoint.NAME, "wb") as file:
        write({"step": Malicious(tmp_path / "made")}, file)
    with pytest.raises(UsageError, match="can't be read"):
        checkpoint.load(tmp_path, "cpu")
    assert not (tmp_path / "made").exists()
