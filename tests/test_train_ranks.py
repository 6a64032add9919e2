"""A run on 1, 2 and 3 ranks, real processes over gloo, is one run: the same images, noise, t and labels to the bit."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import threads
from PIL import Image

pytest.importorskip("diffusers")

from processes import ended, start_ranks

import fastddpm
from fastddpm.train import TrainConfig, UsageError, checkpoint, cli, ranks, resume, train, trainer
from fastddpm.train.data import load
from fastddpm.train.drawing import draw
from fastddpm.train.evaluate import evaluate
from fastddpm.train.network import make_network
from fastddpm.train.runs import Run

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")

CONFIG = TrainConfig(
    data="digits",
    class_conditional=True,
    steps=30,
    batch_size=7,
    lr=0.02,
    width=16,
    timesteps=40,
    log_every=1,
    checkpoint_every=10,
)
CLASSES = tuple("0123456789")
EXAMPLES = Path(__file__).parents[1] / "examples"


class Elementwise(torch.nn.Module):
    """A network whose outputs do not depend on the batch."""

    def __init__(self):
        super().__init__()
        self.config = {"sample_size": (8, 8), "in_channels": 1}

    def forward(self, x, t, class_labels):
        return SimpleNamespace(sample=0.4 * x + 0.01 * (t + class_labels).view(-1, 1, 1, 1))


def results(folder):
    """What this process, a rank or a whole, sees of a run, and gets of an evaluation and of drawing."""
    inputs = []

    def look(module, arguments, kwargs):
        if module.training:
            inputs.append((*arguments, kwargs["class_labels"]))

    def watched(*arguments):
        network = make_network(*arguments)
        network.register_forward_pre_hook(look, with_kwargs=True)
        return network

    trainer.make_network = watched
    try:
        losses = losses_of_a_batch(trainer.Trainer(CONFIG, folder))
        inputs.clear()
        run = train(CONFIG, folder / "run")
    finally:
        trainer.make_network = make_network
    result = {"inputs": inputs, "losses": losses, "curve": [line["loss"] for line in run.metrics.lines]}
    fresh, digits = make_network(CONFIG, (1, 8, 8), 10).eval(), load("digits", labelled=True).first(50)
    for name, network in (("elementwise", Elementwise()), ("network", fresh)):
        drawn, config = Run(network, CONFIG, CLASSES), {"steps": 8, "seed": 3, "progress": False}
        several = torch.arange(5) + 7
        result[name] = {
            "drawn": draw(drawn, 7, guidance=2.0, **config),
            "drawn of seeds": draw(drawn, 5, **{**config, "seed": several}),
            **vars(evaluate(drawn, digits, steps=5, batch_size=8)),
        }
    return result


def losses_of_a_batch(run):
    x_0, kwargs = run.batch(11)
    return run.diffusion.training_loss(run.network, x_0, run.key(11), kwargs, reduction="none").detach()


def rank_main(folder):
    with ranks.joined():
        torch.save(results(folder), folder / f"{ranks.rank()}.pt")


def log_of(folder):
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("log.*")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with threads(1):
        return results(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=[2, 3])
def split(request, tmp_path_factory):
    """By rank."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    codes = ended(start_ranks(request.param, rank_main, folder, log=folder / "log"))
    assert codes == [0] * request.param, log_of(folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


def test_every_step_sees_the_same_images_labels_noise_and_t(whole, split):
    assert len(whole["inputs"]) == CONFIG.steps and not torch.equal(whole["inputs"][0][0], whole["inputs"][1][0])
    sizes = {len(part["inputs"][0][0]) for part in split}
    assert sizes == ({3, 4} if len(split) == 2 else {2, 3})
    for step, want in enumerate(whole["inputs"]):
        for i, name in enumerate(("x_t", "t", "labels")):
            assert torch.equal(torch.cat([part["inputs"][step][i] for part in split]), want[i]), (step, name)


def test_losses_agree_to_rounding(whole, split):
    losses = torch.cat([part["losses"] for part in split])
    assert losses.shape == (7,) and torch.allclose(losses, whole["losses"], rtol=1e-5)
    for part in split:
        assert len(part["curve"]) == 30 and part["curve"] == pytest.approx(whole["curve"], rel=1e-3)
        assert part["curve"] == split[0]["curve"]
    assert sum(whole["curve"][-10:]) < 0.85 * sum(whole["curve"][:10])


def test_an_evaluation_is_one_processes_to_the_bit(whole, split):
    """A network's too: its batches stay whole."""
    for part in split:
        for model in ("elementwise", "network"):
            for name in ("images", "total", "total_error", "prior", "vb", "x_0_mse", "eps_mse"):
                assert torch.equal(*(torch.as_tensor(result[model][name]) for result in (part, whole))), (model, name)


def test_images_are_one_processes(whole, split):
    for part in split:
        for name in ("drawn", "drawn of seeds"):
            assert torch.equal(part["elementwise"][name], whole["elementwise"][name])
            assert torch.allclose(part["network"][name], whole["network"][name], atol=1e-5)


def signalled(folder, number):
    """`fastddpm train`, in which rank 1 alone gets a signal."""
    train_step = trainer.Trainer.train_step

    def signalling(self):
        if self.step == 13 and ranks.rank() == 1:
            os.kill(os.getpid(), number)
        return train_step(self)

    trainer.Trainer.train_step = signalling
    given = {name: value for name, value in CONFIG.to_dict().items() if value not in (None, False)}
    options = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in given.items()]
    return cli.main(["train", f"--out={folder / 'run'}", *options])


def test_ranks_stop_together_and_one_process_goes_on(tmp_path, whole):
    assert ended(start_ranks(2, signalled, tmp_path, signal.SIGTERM, log=tmp_path / "log")) == [0, 0], log_of(tmp_path)
    assert log_of(tmp_path).count("Stopped by SIGTERM after step 15, saved") == 1
    state = checkpoint.load(tmp_path / "run", "cpu")
    assert state["step"] == 15 and len(state["generators"]) == 2
    with threads(1):
        run = resume(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31)) and run.step == 30
    assert [line["loss"] for line in lines] == pytest.approx(whole["curve"], rel=1e-3)


def test_the_others_end_when_a_rank_dies(tmp_path):
    start = time.monotonic()
    first, second = ended(start_ranks(2, signalled, tmp_path, signal.SIGKILL, log=tmp_path / "log"), timeout=60)
    assert second == -signal.SIGKILL and first not in (0, None) and time.monotonic() - start < 60
    assert checkpoint.load(tmp_path / "run", "cpu")["step"] == 10


def accelerated(folder):
    """examples/accelerate_loop.py, for one epoch: its samples' places, step by step, and its losses."""
    sys.path.insert(0, str(EXAMPLES))
    os.environ["ACCELERATE_USE_CPU"] = "true"  # as `accelerate launch --cpu` says it
    places, noise_key = [], fastddpm.noise_key

    def looking(seed, step, count, **options):
        places.append((step, options["first_sample"], count))
        return noise_key(seed, step, count, **options)

    fastddpm.noise_key = looking
    losses = runpy.run_path(str(EXAMPLES / "accelerate_loop.py"))["main"](1)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps([places, losses]))


def test_the_processes_of_accelerate_are_ranks(tmp_path):
    pytest.importorskip("accelerate")
    assert ended(start_ranks(2, accelerated, tmp_path, log=tmp_path / "log")) == [0, 0], log_of(tmp_path)
    for rank in range(2):
        places, losses = json.loads((tmp_path / f"{rank}.json").read_text())
        assert places == [[step, 64 * rank, 64] for step in range(14)] and losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_torchrun_trains_evaluates_and_draws(tmp_path):
    """The command lines themselves, beside those of one process."""
    settings = ["--data=digits", "--steps=30", "--batch-size=7", "--width=8", "--timesteps=40", "--log-every=1"]
    alone, several = [sys.executable], [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for program, name in ((alone, "alone"), (several, "several")):
        out = str(tmp_path / name)
        for arguments in (["train", *settings, "--out", out], ["eval", out, "--limit=50", "--steps=9", "--batch-size=8"]):
            done = subprocess.run([*program, "-m", "fastddpm", *arguments], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("bits/dim") == 1  # one rank prints
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("alone", "several")]
    assert files[0] == files[1] and "samples.png" in files[0]
    curves, totals = [], []
    for name in ("alone", "several"):
        curves.append([json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
        totals.append(json.loads((tmp_path / name / "eval.json").read_text())["total"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3) and totals[0] == pytest.approx(totals[1], rel=1e-3)
    pixels = [np.asarray(Image.open(tmp_path / name / "samples.png")).astype(int) for name in ("alone", "several")]
    assert abs(pixels[0] - pixels[1]).max() <= 8


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"batch_size": 2}, "batch_size: expected 3 or more on as many ranks, got 2"),
        (
            {"batch_size": 16, "timestep_sampling": "importance", "timesteps": 4},
            "batch_size: expected a multiple of the 3 ranks with timestep_sampling importance, got 16",
        ),
    ],
)
def test_what_can_not_be_shared_is_refused(tmp_path, monkeypatch, settings, told):
    monkeypatch.setattr(ranks, "count", lambda: 3)
    with pytest.raises(UsageError, match=told):
        trainer.Trainer(replace(CONFIG, **settings), tmp_path)
