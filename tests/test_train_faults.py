"""What befalls a run, done to real ones: killed at any moment, asked to end, short of disk. The next start goes on to the bits
of a run to which nothing happened."""

import os
import random
import signal
import time
from dataclasses import replace

import pytest
from helpers import threads

pytest.importorskip("diffusers")

from crash import assert_same_run, losses, small_disk
from processes import ended, start
from test_train_folder import save_images

from fastddpm.train import TrainConfig, checkpoint, cli, data, resume, train, trainer

CONFIG = TrainConfig(data="digits", steps=18, batch_size=8, width=8, dropout=0.2, timesteps=50, checkpoint_every=1, log_every=3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with threads(1):
        return train(CONFIG, tmp_path_factory.mktemp("undisturbed")).out


def command(out, config):
    given = {name: value for name, value in config.to_dict().items() if value not in (None, False)}
    return ["train", "--resume", f"--out={out}", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())]


def before_each_step(do):
    train_step = trainer.Trainer.train_step

    def patched(self):
        do(self)
        return train_step(self)

    trainer.Trainer.train_step = patched


def slow_command(arguments, in_memory=data.IN_MEMORY):
    """In a group of processes of its own, with pauses between the steps."""
    os.setpgid(0, 0)
    data.IN_MEMORY = in_memory
    before_each_step(lambda self: time.sleep(0.03))
    return cli.main(arguments)


def signalled_in_a_step(arguments, number):
    before_each_step(lambda self: self.step == 13 and os.kill(os.getpid(), number))
    return cli.main(arguments)


def killed_in_a_checkpoint(arguments, number):
    rename, calls = os.replace, []

    def killing(aside, path):
        calls.append(path)
        if sum(path.name == checkpoint.NAME for path in calls) == 3:  # steps 0 and 5 are saved, 10 is about to be
            os.kill(os.getpid(), number)
        rename(aside, path)

    os.replace = killing
    return cli.main(arguments)


def wait_for(condition, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def kill_at_random_moments(out, config, times):
    """Starts the run and goes on with it; each time, once it has saved again, it has a random moment left."""
    moments, path, steps = random.Random(times), out / checkpoint.NAME, []
    for _ in range(times):
        before = path.stat().st_mtime_ns if path.exists() else 0
        run = start(slow_command, command(out, config))
        wait_for(lambda before=before: path.exists() and path.stat().st_mtime_ns > before)
        time.sleep(moments.uniform(0, 0.1))
        run.kill()
        assert ended([run]) == [-signal.SIGKILL]
        steps.append(checkpoint.load(out, "cpu")["step"])
    assert steps == sorted(steps) and steps[-1] < config.steps
    with threads(1):
        resume(out)
    assert not list(out.glob("*.tmp"))


def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(tmp_path, undisturbed):
    kill_at_random_moments(tmp_path, CONFIG, 2)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("target, saved", [(signalled_in_a_step, 10), (killed_in_a_checkpoint, 5)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, undisturbed, target, saved):
    run = start(target, command(tmp_path, replace(CONFIG, checkpoint_every=5)), signal.SIGKILL)
    assert ended([run]) == [-signal.SIGKILL]
    assert checkpoint.load(tmp_path, "cpu")["step"] == saved
    assert losses(tmp_path)[-1][0] > saved  # so the file ran ahead of the checkpoint
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "lo')  # a line that a kill cut short
    with threads(1):
        resume(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_an_interrupted_run_finishes_its_step_and_saves(tmp_path, undisturbed):
    log, out = tmp_path / "log", tmp_path / "run"
    run = start(signalled_in_a_step, command(out, replace(CONFIG, checkpoint_every=5)), signal.SIGINT, log=log)
    assert ended([run]) == [128 + signal.SIGINT], log.read_text()
    assert f"fastddpm train --resume --out {out}" in log.read_text() and "Traceback" not in log.read_text()
    assert checkpoint.load(out, "cpu")["step"] == 14 and not (out / "samples.png").exists()
    with threads(1):
        resume(out)
    assert_same_run(out, undisturbed)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_as_if_undisturbed(tmp_path):
    config = replace(CONFIG, steps=150)
    with threads(1):
        train(config, tmp_path / "undisturbed")
    kill_at_random_moments(tmp_path / "run", config, 20)
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_a_terminated_run_saves_and_exits_with_0(tmp_path):
    """Also where the signal goes to all processes of its group, while others decode its images."""
    images = save_images(tmp_path / "images", [f"{i}.png" for i in range(9)])
    config, out = replace(CONFIG, data=images, image_size=8, steps=1000, checkpoint_every=1000), tmp_path / "run"
    run = start(slow_command, command(out, config), 0, log=tmp_path / "log")
    metrics = out / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 1)
    before = time.monotonic()
    os.killpg(run.pid, signal.SIGTERM)
    assert ended([run]) == [0] and time.monotonic() - before < 20, (tmp_path / "log").read_text()
    step = checkpoint.load(out, "cpu")["step"]
    assert step >= 6 and f"Stopped by SIGTERM after step {step}, saved. Go on" in (tmp_path / "log").read_text()


def test_a_run_that_meets_a_full_disk_says_so_and_goes_on_later(tmp_path, undisturbed, monkeypatch, capsys):
    train_step = trainer.Trainer.train_step

    def filling(self):
        if self.step == 6:
            with open(self.out / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(4096))
        return train_step(self)

    with small_disk(tmp_path, "16m"), threads(1):
        monkeypatch.setattr(trainer.Trainer, "train_step", filling)
        assert cli.main(command(tmp_path, CONFIG)) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("fastddpm: ") and "No space left on device" in told and str(tmp_path / checkpoint.NAME) in told
        assert checkpoint.load(tmp_path, "cpu")["step"] == 6 and not list(tmp_path.glob("*.tmp"))
        (tmp_path / "filler").unlink()
        monkeypatch.undo()
        resume(tmp_path)
        assert_same_run(tmp_path, undisturbed)
