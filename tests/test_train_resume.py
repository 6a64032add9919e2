"""A run stopped at any moment and resumed ends with the bits of a run that never stopped."""

import os
import signal
from dataclasses import fields, replace

import pytest
import torch

pytest.importorskip("diffusers")

from crash import CrashError, assert_same_run, crash_at, losses

from fastddpm.train import TrainConfig, UsageError, checkpoint, resume, train
from fastddpm.train.config import FREE
from fastddpm.train.data import Data
from fastddpm.train.trainer import Trainer

CONFIG = TrainConfig(data="digits", steps=18, batch_size=8, width=8, dropout=0.2, timesteps=50, checkpoint_every=5, log_every=3)


@pytest.fixture(autouse=True)
def one_thread():
    """As the subprocesses have: a convolution's sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("unbroken")
    train(CONFIG, out)
    torch.set_num_threads(before)
    return out


@pytest.mark.parametrize("step", [0, 5, 17])
def test_crash_in_any_step(tmp_path, unbroken, monkeypatch, step):
    crash_at(monkeypatch, step)
    with pytest.raises(CrashError):
        train(CONFIG, tmp_path)
    monkeypatch.undo()
    resume(tmp_path)
    assert_same_run(tmp_path, unbroken)


def test_terminated_run_saves_too(tmp_path, unbroken, monkeypatch):
    train_step = Trainer.train_step

    def terminated(self):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", terminated)
    run = train(CONFIG, tmp_path)
    assert run.stopped_by == signal.SIGTERM and checkpoint.load(tmp_path, "cpu")["step"] == run.step == 5
    monkeypatch.undo()
    resume(tmp_path)
    assert_same_run(tmp_path, unbroken)


def test_a_second_signal_meets_the_handler_of_before(tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def impatient(self):
        os.kill(os.getpid(), signal.SIGINT)
        assert self.stopped_by == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", impatient)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_finished_run_goes_on_when_its_steps_are_raised(tmp_path, unbroken):
    (tmp_path / checkpoint.NAME).write_bytes((unbroken / checkpoint.NAME).read_bytes())
    assert resume(tmp_path, steps=21).step == 21
    assert [step for step, _ in losses(tmp_path)] == [3, 6, 9, 12, 15, 18, 21]
    with pytest.raises(UsageError, match="steps: expected 21 or more"):
        resume(tmp_path, steps=20)


def test_changed_settings_are_named(unbroken):
    with pytest.raises(UsageError, match=r"batch_size \(the run's: 8, given: 4\), lr \(the run's: 0.002, given: 0.1\)$"):
        resume(unbroken, lr=0.1, batch_size=4, steps=100)


OTHERS = {
    "data": "elsewhere",
    "image_size": 16,
    "channels": "grey",
    "class_conditional": True,
    "label_dropping": 0.2,
    "batch_size": 32,
    "lr": 1e-3,
    "weight_decay": 0.1,
    "ema_decay": 0.9,
    "timesteps": 500,
    "schedule": "linear",
    "prediction": "epsilon",
    "loss": "kl",
    "variance": "fixed_large",
    "timestep_sampling": "importance",
    "width": 16,
    "dropout": 0.1,
    "precision": "bf16",
    "channels_last": True,
    "compile": True,
    "graph": "off",
    "process": "flow",
    "seed": 1,
    "checkpoint_every": 100,
    "log_every": 10,
}


@pytest.mark.parametrize("name", [setting.name for setting in fields(TrainConfig) if setting.name not in FREE])
def test_no_setting_that_a_result_depends_on_may_change(name):
    saved = TrainConfig(data="digits", class_conditional=name == "label_dropping")
    with pytest.raises(UsageError, match=rf"these differ: {name} \(the run's: [^()]*\)$"):
        replace(saved, **{name: OTHERS[name]}).check_resumable(saved, 0)


def test_changed_data_is_an_error(unbroken, monkeypatch):
    monkeypatch.setattr("fastddpm.train.trainer.load", lambda *_: Data(torch.zeros(3, 1, 8, 8)))
    with pytest.raises(UsageError, match="data: expected the images that the run began with"):
        resume(unbroken)


def test_a_run_is_not_overwritten_unasked(tmp_path, unbroken):
    (tmp_path / checkpoint.NAME).write_bytes((unbroken / checkpoint.NAME).read_bytes())
    with pytest.raises(UsageError, match=r"--resume, or .* --overwrite"):
        train(CONFIG, tmp_path)
    train(CONFIG, tmp_path, overwrite=True)
    assert_same_run(tmp_path, unbroken)


def test_seed_decides_the_weights(tmp_path, unbroken):
    run = train(TrainConfig(**{**CONFIG.to_dict(), "steps": 1, "seed": 1}), tmp_path)
    other = checkpoint.load(unbroken, "cpu")["network"]
    assert not all(torch.equal(weight, other[name]) for name, weight in run.network.state_dict().items())
