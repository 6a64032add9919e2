"""Folders that are not held in memory: decoded by processes as the run goes, the same run as if they were."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import threads
from PIL import Image

pytest.importorskip("diffusers")

from crash import CrashError, crash_at

from fastddpm.train import TrainConfig, UsageError, checkpoint, folder, resume, train
from fastddpm.train.cli import main
from fastddpm.train.data import fingerprint, has_digest, load
from fastddpm.train.evaluate import evaluate, load_data
from fastddpm.train.runs import load_run

CONFIG = TrainConfig(data="", image_size=8, channels="grey", steps=7, batch_size=4, width=16, timesteps=20, checkpoint_every=2)


def save_images(root, names):
    """Of 12x12, each a noise of its own."""
    random = np.random.default_rng(0)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).save(root / name)
    return str(root)


@pytest.fixture
def data(tmp_path):
    return save_images(tmp_path / "images", [f"{name}/{i}.png" for name in ("b", "a-c", "a", "a/z") for i in range(3)])


@pytest.fixture
def from_disk(monkeypatch):
    """Folders are held nowhere from here on."""
    return lambda: monkeypatch.setattr("fastddpm.train.data.IN_MEMORY", 0)


def in_order(found, size, workers):
    count = len(found.images)
    parts = [torch.arange(i, min(i + size, count)) for i in range(0, count, size)]
    images, labels = zip(*found.batches(parts, workers), strict=True)
    return torch.cat(images), None if labels[0] is None else torch.cat(labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_images_and_labels_are_those_held_in_memory(data, from_disk, workers):
    held = load(data, 8, "rgb", labelled=True)
    assert held.classes == ("a", "a-c", "b") and isinstance(held.images, torch.Tensor)
    from_disk()
    found = load(data, 8, "rgb", labelled=True)
    assert isinstance(found.images, folder.ImageFolder) and found.images.shape == held.images.shape == (12, 3, 8, 8)
    assert found.classes == held.classes and torch.equal(found.labels, held.labels)
    images, labels = in_order(found, 5, workers)
    assert torch.equal(images, held.images) and torch.equal(labels, held.labels)
    images, _ = in_order(found.first(7), 5, 0)
    assert torch.equal(images, held.images[:7])


def test_files_come_in_the_order_of_their_paths(data):
    """Of their parts, not their letters: that of `sorted` before there were strings."""
    assert folder.files_in(data) == [str(path) for path in sorted(Path(data).rglob("*.png"))]


def test_the_next_image_stands_for_a_broken_one(data, from_disk):
    held = load(data, 8, "rgb", labelled=True)
    paths = folder.files_in(data)
    for i in (2, 3, 11):
        Path(paths[i]).write_text("no image")
    from_disk()
    with pytest.warns(UserWarning, match="can't be read as an image"):
        images, labels = in_order(load(data, 8, "rgb", labelled=True), 12, 0)
    places = [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 0]
    assert torch.equal(images, held.images[places]) and torch.equal(labels, held.labels[places])
    for path in paths:
        Path(path).write_text("no image")
    with pytest.raises(UsageError, match="12 broken files"), pytest.warns(UserWarning):
        in_order(load(data, 8, "rgb"), 12, 0)


def test_a_fingerprint_sees_names_and_sizes(data, from_disk):
    from_disk()
    before = fingerprint(load(data))
    assert before == fingerprint(load(data)) and before.startswith("files:")
    path = Path(folder.files_in(data)[3])
    path.write_bytes(path.read_bytes() + b"\0")
    longer = fingerprint(load(data))
    path.rename(path.with_name("other.png"))
    assert len({before, longer, fingerprint(load(data))}) == 3


@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_that_a_run_of_before_held_in_memory_is_known_again(data, from_disk, labelled):
    saved = fingerprint(load(data, 8, "rgb", labelled))
    from_disk()
    assert has_digest(load(data, 8, "rgb", labelled), saved)
    assert not has_digest(load(data, 8, "grey", labelled), saved) and not has_digest(load(data, 8, "rgb", not labelled), saved)


def test_a_run_and_its_resumption_inside_an_epoch_are_those_of_images_in_memory(data, tmp_path, from_disk, monkeypatch):
    config = replace(CONFIG, data=data, class_conditional=True, dropout=0.2)
    with threads(1):
        held = train(config, tmp_path / "held")
        trained = load_run(held.out)
        bound = evaluate(trained, load_data(trained), steps=4, batch_size=5)
        from_disk()
        with monkeypatch.context() as patch, pytest.raises(CrashError):
            crash_at(patch, 5)
            train(config, tmp_path / "run")
        assert checkpoint.load(tmp_path / "run", "cpu")["step"] == 4  # an epoch has three
        run = resume(tmp_path / "run", workers=1)
        again = evaluate(trained, load_data(trained), steps=4, batch_size=5)
    assert isinstance(run.data.images, folder.ImageFolder) and run.step == 7
    weights = held.network.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in run.network.state_dict().items())
    assert again.total == bound.total and again.images == 12


class Deadly(folder.ImageFolder):
    """Its fifth image is the end of the process that decodes it."""

    def __getitem__(self, i):
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def test_a_worker_that_dies_is_told_of(data, tmp_path, from_disk, monkeypatch, capsys):
    from_disk()
    monkeypatch.setattr("fastddpm.train.data.ImageFolder", Deadly)
    out = tmp_path / "run"
    assert main(["train", "--data", data, "--out", str(out), "--steps=9", "--batch-size=4", "--width=8"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "fastddpm: data: a process that decodes images died (short of memory?): DataLoader worker (pid" in told
    assert checkpoint.load(out, "cpu")["step"] == 0
