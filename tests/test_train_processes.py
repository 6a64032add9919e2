"""Runs of a flow and of EDM: trained, resumed, drawn from and compared; what only a chain has is refused."""

import json

import pytest
import torch
from helpers import fails

pytest.importorskip("diffusers")

from fastddpm.train import TrainConfig, UsageError, train
from fastddpm.train.drawing import draw, rows_of
from fastddpm.train.results import write_results
from fastddpm.train.runs import load_run


@pytest.fixture(scope="module", params=["flow", "edm"])
def run(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    levels = {"timesteps": 50} if request.param == "flow" else {}
    config = TrainConfig(data="digits", steps=40, batch_size=32, width=8, log_every=10, process=request.param, **levels)
    trainer = train(config, out)
    trainer.table = write_results(trainer)
    return trainer


def test_it_learns_and_leaves_pictures_but_no_pipeline_nor_timings(run):
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert (run.out / "samples.png").exists() and not (run.out / "model_index.json").exists()
    assert not (run.out / "timing.json").exists() and "its DDPMPipeline is not of process" in run.table


def test_images_are_drawn_by_the_process_s_own_sampler_and_others(run):
    loaded, own = load_run(run.out), {"flow": "euler", "edm": "heun"}[run.config.process]
    given = {"steps": 5, "progress": False}
    images = draw(loaded, 4, **given)
    assert images.shape == (4, 1, 8, 8) and images.abs().max() <= 1.001
    assert torch.equal(images, draw(loaded, 4, own, **given)) and not torch.equal(images, draw(loaded, 4, "dpmpp_2m", **given))


def test_any_number_of_steps_is_walked(run):
    assert len(rows_of(run.config, "euler", 1200)) == 1200
    assert len(rows_of(run.config)) == {"flow": 50, "edm": 35}[run.config.process]
    with pytest.raises(UsageError, match="steps: expected 1 or more, got 0"):
        rows_of(run.config, "euler", 0)


def test_what_only_a_chain_has_is_refused(run, capsys):
    assert "expected one of process ddpm, whose chain has a bound" in fails(["eval", str(run.out)], capsys)
    with pytest.raises(UsageError, match="sampler ddpm of 5 steps: schedule: expected a NoiseSchedule"):
        rows_of(run.config, "ddpm", 5)


BAD = {
    "loss": ({"process": "flow", "loss": "kl"}, "loss: expected none with process flow, which has its own, got 'kl'"),
    "prediction": ({"process": "edm", "prediction": "epsilon"}, "prediction: expected none with process edm"),
    "schedule": ({"process": "edm", "schedule": "linear"}, "schedule: expected none with process edm"),
    "sampling": ({"process": "edm", "timestep_sampling": "importance"}, "timestep_sampling: expected none with process edm"),
    "timesteps": ({"process": "edm", "timesteps": 50}, "timesteps: expected none with process edm, .* got 50"),
    "process": ({"process": "vp"}, "process: expected one of ddpm, flow, edm, got 'vp'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case):
    settings, message = BAD[case]
    with pytest.raises(UsageError, match=message):
        TrainConfig(data="digits", **settings)
