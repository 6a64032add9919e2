"""A checkpoint is whole or not there, gives back the tensors that it was given, and runs no code."""

import errno
import json
import os
import pickle
import resource
import stat
import struct
from functools import partial

import pytest
import torch

pytest.importorskip("diffusers")

from crash import CrashError, small_disk
from safetensors import safe_open
from safetensors.torch import save_file

from fastddpm.train import UsageError, checkpoint, state_file


def crash(*_):
    raise CrashError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- whole, or not there ----


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_crash_before_the_rename_leaves_the_old_one(tmp_path, monkeypatch, moment):
    checkpoint.save(tmp_path, {"step": 1, "weight": torch.ones(1000)})
    monkeypatch.setattr(os, moment, crash)
    with pytest.raises(CrashError):
        checkpoint.save(tmp_path, {"step": 2, "weight": torch.zeros(1000)})
    monkeypatch.undo()
    state = checkpoint.load(tmp_path, "cpu")
    assert state["step"] == 1 and state["weight"].sum() == 1000 and names(tmp_path) == [checkpoint.NAME]
    (tmp_path / "checkpoint.safetensors.tmp").write_bytes(b"what a kill left aside is no hindrance")
    checkpoint.save(tmp_path, {"step": 3})
    assert checkpoint.load(tmp_path, "cpu")["step"] == 3 and names(tmp_path) == [checkpoint.NAME]


def test_content_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    checkpoint.save(tmp_path, {"step": 1, "weight": torch.ones(1000)})
    assert calls == [(tmp_path / checkpoint.NAME).stat().st_size, "rename", "folder"]


@pytest.fixture(params=["tmpfs", "limit"])
def full_disk(request, tmp_path):
    """A folder with room for a checkpoint of a hundred numbers and none for one of a million."""
    if request.param == "limit":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        yield tmp_path, errno.EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    with small_disk(tmp_path, "100k"):
        yield tmp_path, errno.ENOSPC


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_aside(full_disk):
    folder, number = full_disk
    checkpoint.save(folder, {"step": 1, "weight": torch.ones(100)})
    with pytest.raises(OSError, match=rf"so this was left as it was: '{folder / checkpoint.NAME}'") as failed:
        checkpoint.save(folder, {"step": 2, "weight": torch.zeros(1_000_000)})
    assert failed.value.errno == number and names(folder) == [checkpoint.NAME]
    assert checkpoint.load(folder, "cpu")["weight"].sum() == 100


def test_what_is_written_does_not_follow_links_out_of_the_folder(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.write_text("precious")
    for name in (checkpoint.NAME, f"{checkpoint.NAME}.tmp"):
        (run / name).symlink_to(outside)
    checkpoint.save(run, {"step": 1})
    assert outside.read_text() == "precious" and names(run) == [checkpoint.NAME]
    assert not (run / checkpoint.NAME).is_symlink()


@pytest.mark.parametrize("keep, kept", [(1, []), (2, [15, 20]), (3, [10, 15, 20]), (9, [0, 5, 10, 15, 20])])
def test_the_last_checkpoints_are_kept(tmp_path, keep, kept):
    for step in (0, 5, 10, 15, 20, 20):
        checkpoint.save(tmp_path, {"step": step, "weight": torch.full((3,), step)}, keep)
    (tmp_path / "checkpoint-best.safetensors").touch()  # the user's
    assert names(tmp_path) == sorted([checkpoint.NAME, *map("checkpoint-{}.safetensors".format, ["best", *kept])])
    for step in kept:
        assert state_file.read(tmp_path / f"checkpoint-{step}.safetensors")["weight"].tolist() == [step] * 3
    checkpoint.save(tmp_path, {"step": 12}, keep)  # of a run that was gone back in
    later = [path for path in names(tmp_path) if path in ("checkpoint-15.safetensors", "checkpoint-20.safetensors")]
    assert later == [] and checkpoint.load(tmp_path, "cpu")["step"] == 12


# ---- what comes back ----


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {
        "step": 3,
        "floats": [0.1, float("inf"), -0.0, 1e-310],
        "nothing": None,
        "flags": (True, False),
        "empty": ({}, [], ()),
        "names": {"a.b/c": "ü", 7: [{"deep": torch.tensor(2.5)}]},
        "tensors": {
            dtype: torch.arange(6).to(dtype=getattr(torch, dtype))
            for dtype in ("float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool")
        },
        "scalar": torch.tensor(-1),
        "none": torch.zeros(0, 3),
    }
    checkpoint.save(tmp_path, state)
    loaded = checkpoint.load(tmp_path, "cpu")
    assert_alike(loaded, state)
    with safe_open(tmp_path / checkpoint.NAME, "pt") as file:  # as any reader of the format sees it
        assert file.get_tensor("tensors/float64").tolist() == [0, 1, 2, 3, 4, 5] and len(file.keys()) == 11


def assert_alike(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert_alike(list(a.values()), list(b.values()))
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_alike(x, y)
    else:
        assert repr(a) == repr(b)


def test_strides_come_back(tmp_path):
    x = torch.randn(2, 3, 4, 5)
    dense = [x, x.contiguous(memory_format=torch.channels_last), x.permute(3, 1, 0, 2), x.mT, x[:, 1:2].clone().mT, x[:1]]
    checkpoint.save(tmp_path, {"step": 0, "dense": dense, "others": [x[:, ::2], x[0, 0].expand(3, 4, 5)]})
    state = checkpoint.load(tmp_path, "cpu")
    assert_alike(state["dense"], dense)
    assert_alike(state["others"], [x[:, ::2].contiguous(), x[0, 0].expand(3, 4, 5).contiguous()])


def test_tied_tensors_are_written_once_and_come_back_tied(tmp_path):
    weight = torch.nn.Parameter(torch.randn(300, 200))
    state = {"step": 0, "in": weight, "out": weight, "turned": weight.t(), "flat": weight.view(-1), "part": weight[5:9]}
    checkpoint.save(tmp_path, state)
    assert weight.nbytes < (tmp_path / checkpoint.NAME).stat().st_size < 1.2 * weight.nbytes
    loaded = checkpoint.load(tmp_path, "cpu")
    for name in ("out", "turned", "flat"):
        assert loaded[name].data_ptr() == loaded["in"].data_ptr() and loaded[name].stride() == state[name].stride()
        assert torch.equal(loaded[name], state[name])
    assert torch.equal(loaded["part"], state["part"]) and not loaded["in"].requires_grad


def test_paths_that_read_alike_stay_apart(tmp_path):
    state = {"step": 0, "a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}}
    checkpoint.save(tmp_path, state)
    assert_alike(checkpoint.load(tmp_path, "cpu"), state)


# ---- what is no checkpoint ----


def write_truncated(path, part):
    checkpoint.save(path.parent, {"step": 1, "weight": torch.ones(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])


def write_header(path, text):
    """A safetensors file, in so far as its header is one, with this of ours in it."""
    header = json.dumps({"__metadata__": {state_file.FORMAT: text}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("something else"),
    "cut in its header": partial(write_truncated, part=0.02),
    "cut in its middle": partial(write_truncated, part=0.5),
    "cut by a byte": partial(write_truncated, part=0.9999),
    "someone else's": lambda path: save_file({"weight": torch.ones(3)}, path),
    "no json": partial(write_header, text="{"),
    "no state": partial(write_header, text='{"dict": [["a"]]}'),
    "no such kind of thing": partial(write_header, text='{"code": [1], "and": []}'),
    "no such tensor": partial(write_header, text='{"dict": [["a", {"tensor": ["b", [1], [1]]}]]}'),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"step": 1})),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("write", BROKEN.values(), ids=BROKEN)
def test_a_broken_or_foreign_file_is_named(tmp_path, write):
    write(tmp_path / checkpoint.NAME)
    with pytest.raises(UsageError, match=rf"checkpoint of fastddpm in '{tmp_path / checkpoint.NAME}', got .* can't be read: ."):
        checkpoint.load(tmp_path, "cpu")


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UsageError, match=rf"a folder with a checkpoint\.safetensors, got '{tmp_path}'"):
        checkpoint.load(tmp_path, "cpu")


# ---- checkpoint.pt ----


def test_an_old_checkpoint_is_read_until_a_new_one_is_saved(tmp_path):
    old = {"step": 4, "optimizer": {"state": {0: {"betas": (0.9, 0.99)}}}, "generators": {"cpu": torch.ones(3).double()}}
    torch.save(old, tmp_path / "checkpoint.pt")
    assert checkpoint.exists(tmp_path)
    state, of_one_rank = checkpoint.load(tmp_path, "cpu"), {**old, "generators": [old["generators"]]}
    assert_alike(state, of_one_rank)
    checkpoint.save(tmp_path, state)
    assert names(tmp_path) == [checkpoint.NAME]
    assert_alike(checkpoint.load(tmp_path, "cpu"), of_one_rank)


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", [checkpoint.NAME, "checkpoint.pt"])
@pytest.mark.parametrize("write", [torch.save, partial(pickle.dump, protocol=2)], ids=["zip", "pickle"])
def test_a_checkpoint_runs_no_code(tmp_path, write, name):
    with open(tmp_path / name, "wb") as file:
        write({"step": Malicious(tmp_path / "made")}, file)
    with pytest.raises(UsageError, match=rf"{name}', got .* can't be read"):
        checkpoint.load(tmp_path, "cpu")
    assert not (tmp_path / "made").exists()
