"""The command line: what it does, and one clear line with exit code 2 where it can't."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import fails, importable
from PIL import Image

from fastddpm.train import checkpoint
from fastddpm.train.cli import main

TINY = ["--steps=4", "--batch-size=4", "--width=8", "--timesteps=10", "--log-every=2"]


needs_diffusers = pytest.mark.skipif(not importable("diffusers"), reason="diffusers is not installed")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "squares.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8))
    return str(path)


@needs_diffusers
def test_train_resume_sample(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", data, *TINY]) == 0
    run = tmp_path / "runs" / "squares"
    left = {"metrics.jsonl", "samples.png", "loss.png", "timing.json", "model_index.json", "unet", "scheduler", checkpoint.NAME}
    assert {path.name for path in run.iterdir()} == left
    output = capsys.readouterr().out
    assert all(stage in output for stage in ("noising", "network", "loss", "update", "total", "1.00x"))

    assert main(["train", "--resume", "--out", str(run), "--steps=6"]) == 0
    assert checkpoint.load(run, "cpu")["step"] == 6

    assert main(["sample", str(run), "-n", "3", "--steps=4", "--out", "three.png"]) == 0
    assert Image.open(run / "three.png").size == (3 * 72 + 8, 80)


@needs_diffusers
def test_resume_without_a_checkpoint_begins(tmp_path, data):
    """So that one command line serves the first start and every later one."""
    assert main(["train", "--resume", "--data", data, "--out", str(tmp_path / "run"), *TINY]) == 0


@needs_diffusers
def test_a_broken_image_is_named_in_one_line(tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("warning: skipped") and "bad.png" in lines[0]


@needs_diffusers
def test_mistakes(tmp_path, data, capsys):
    out = f"--out={tmp_path / 'run'}"
    assert "--data: expected digits" in fails(["train"], capsys)
    assert "holds no checkpoint" in fails(["train", "--resume", out], capsys)
    assert "no such file" in fails(["train", "--data=nowhere", out], capsys)
    assert "steps: expected 1 or more, got 0" in fails(["train", f"--data={data}", out, "--steps=0"], capsys)
    assert "schedule: expected one of linear, cosine, got 'sine'" in fails(
        ["train", f"--data={data}", "--schedule=sine"], capsys
    )
    assert "lr: expected a finite number above 0, got inf" in fails(["train", f"--data={data}", out, "--lr=inf"], capsys)
    assert "weight_decay: expected a finite number, 0 or more, got inf" in fails(
        ["train", f"--data={data}", out, "--weight-decay=inf"], capsys
    )
    assert "width: expected a multiple of 8, got 12" in fails(["train", f"--data={data}", out, "--width=12"], capsys)
    assert checkpoint.NAME in fails(["sample", str(tmp_path)], capsys)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").write_text("a file where the folder would be")
    assert "run" in fails(["train", f"--data={data}", out, *TINY], capsys)


@pytest.mark.parametrize("arguments", [[], ["paint"], ["train", "--steps=many"], ["sample", "run", "-n", "0"]])
def test_mistakes_of_grammar(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@needs_diffusers
def test_a_run_is_not_overwritten_unasked(tmp_path, data, capsys):
    (tmp_path / checkpoint.NAME).write_bytes(b"a run")
    assert "--resume" in fails(["train", f"--data={data}", f"--out={tmp_path}"], capsys)


def test_help_names_every_setting_and_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(
        option in text for option in ("--data", "--resume", "--overwrite", "--ema-decay", "--checkpoint-every", "--compile")
    )
    assert "(0.995)" in text and "None" not in text and "False" not in text


@needs_diffusers
def test_interrupt_outside_the_training_loop(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastddpm.train.runs.load_run", interrupted)
    assert main(["sample", "run"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "fastddpm: interrupted\n"


def test_a_missing_package_is_named_where_it_is_needed():
    hide = "import sys; sys.modules['diffusers'] = None; from fastddpm.train.cli import main"
    script = f"{hide}; assert main(['info']) == 0; sys.exit(main(['sample', 'run']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "diffusers" in done.stderr and "pip install 'fastddpm[train]'" in done.stderr, done.stderr


def test_info(capsys):
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


@needs_diffusers
def test_module(tmp_path):
    command = [sys.executable, "-m", "fastddpm.train", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 2 and "got none in" in done.stderr
