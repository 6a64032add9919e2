"""What a run leaves: pictures, metrics, timings, and a pipeline for diffusers."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from diffusers import DDPMPipeline

from fastddpm import q_sample, reverse_step, samplers
from fastddpm.train import TrainConfig, UsageError, checkpoint, report, train
from fastddpm.train.config import SCHEDULES
from fastddpm.train.drawing import draw
from fastddpm.train.metrics import Metrics
from fastddpm.train.network import make_network, make_scheduler
from fastddpm.train.pictures import GAP, save_bound_plot, save_grid
from fastddpm.train.results import write_results
from fastddpm.train.runs import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = TrainConfig(data="digits", steps=80, batch_size=32, width=8, timesteps=50, ema_decay=0.9, log_every=10)
    trainer = train(config, tmp_path_factory.mktemp("run"))
    trainer.table = write_results(trainer)
    return trainer


def test_loss_goes_down(run):
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10, 81, 10))
    assert lines[-1]["loss"] < 0.75 * lines[0]["loss"]
    assert all(line["images_per_second"] > 0 for line in lines)


def test_pictures_are_there(run):
    assert Image.open(run.out / "samples.png").size == (8 * 72 + 8, 8 * 72 + 8)
    assert min(Image.open(run.out / "loss.png").size) > 300


def test_diffusers_loads_the_averaged_weights_and_samples(run):
    pipeline = DDPMPipeline.from_pretrained(run.out)
    pipeline.set_progress_bar_config(disable=True)
    average = checkpoint.load(run.out, "cpu")["average"]
    weights = pipeline.unet.state_dict()
    assert all(torch.equal(weight, average[name]) for name, weight in weights.items())
    assert not all(torch.equal(weight, run.network.state_dict()[name]) for name, weight in weights.items())
    images = pipeline(batch_size=3, num_inference_steps=10, output_type="np").images
    assert images.shape == (3, 8, 8, 1) and np.isfinite(images).all() and images.std() > 0.1
    expected = {name: value for name, value in make_scheduler(run.config).config.items() if not name.startswith("_")}
    assert expected.items() <= dict(pipeline.scheduler.config).items() and expected["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_our_betas_are_diffusers(schedule):
    config = TrainConfig(data="digits", schedule=schedule)
    ours = config.diffusion().schedule.betas
    assert torch.allclose(ours.float(), make_scheduler(config).betas, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [50, 10])
def test_our_chain_is_diffusers(schedule, prediction, steps):
    """The exported scheduler and our sampler walk to the same images, given the same outputs and the same noise."""
    config = TrainConfig(data="digits", schedule=schedule, prediction=prediction, timesteps=50)
    scheduler = make_scheduler(config)
    scheduler.set_timesteps(steps)
    rows = samplers.ddpm(config.diffusion().schedule.respace(steps), prediction)
    assert scheduler.timesteps.tolist() == rows.timesteps.flip(0).tolist()
    our_noise, their_noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    ours = theirs = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, t in zip(range(steps - 1, -1, -1), scheduler.timesteps, strict=True):
        ours, _ = reverse_step(torch.sin(3 * ours), ours, i, rows, torch.randn(2, 1, 8, 8, generator=our_noise))
        theirs = scheduler.step(torch.sin(3 * theirs), t, theirs, generator=their_noise).prev_sample
    assert torch.allclose(ours, theirs, atol=2e-3), (ours - theirs).abs().max()


def test_drawing(run):
    trained = load_run(run.out)
    assert trained.config == run.config and trained.classes == () and not trained.network.training
    images = draw(trained, 4, steps=5, seed=1)
    assert images.shape == (4, 1, 8, 8)
    assert torch.allclose(images[:2], draw(trained, 2, steps=5, seed=1), atol=1e-4)
    assert not torch.allclose(images, draw(trained, 4, steps=5, seed=2), atol=0.1)
    with pytest.raises(UsageError, match=r"steps: expected 1 \.\. 50"):
        draw(trained, 4, steps=51)


def test_timings(run):
    stages = json.loads((run.out / "timing.json").read_text())["stages"]
    assert list(stages) == [*report.STAGES, "total"]
    assert all(row["fastddpm"] > 0 and row["eager"] > 0 for row in stages.values())
    for column in ("fastddpm", "eager"):
        assert stages["total"][column] == pytest.approx(sum(stages[stage][column] for stage in report.STAGES))
    rows = {line.split()[0]: line.split()[1:] for line in run.table.splitlines() if line.endswith("x")}
    assert list(rows) == list(stages)
    assert rows["network"][-1] == "1.00x"


def test_timing_leaves_the_run_alone(run):
    before = {name: weight.clone() for name, weight in run.network.state_dict().items()}
    report.measure_step(run, steps=2)
    assert all(torch.equal(weight, before[name]) for name, weight in run.network.state_dict().items())


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_eager_step_that_is_timed_is_the_same_step(run, prediction):
    config = TrainConfig(**{**run.config.to_dict(), "prediction": prediction})
    diffusion = config.diffusion()
    step = report._Step(type("Run", (), {**vars(run), "config": config, "diffusion": diffusion}), report._Clock(run.device))
    x_0 = run.data.images[:16]
    noise, t, x_t = step._eager_noising(x_0)
    assert torch.allclose(x_t, q_sample(x_0, t, diffusion.schedule, noise), atol=1e-5)
    output = torch.sin(x_t)
    ours, eager = step.diffusion.loss_of(output, x_0, x_t, t, noise), step.eager_loss(output, x_0, x_t, noise, t)
    assert torch.allclose(ours, eager, rtol=1e-5)


def test_grid_keeps_gaps_and_whole_pixels(tmp_path):
    images = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    save_grid(images, tmp_path / "grid.png", columns=2, target=8)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (19, 19)
    assert (grid[1:9, 1:9] == 0).all() and (grid[1:9, 10:18] == 128).all() and (grid[10:18, 1:9] == 255).all()
    assert (grid[:, 9] == GAP).all() and (grid[10:18, 10:18] == GAP).all()
    save_grid(images.expand(3, 3, 2, 2), tmp_path / "rgb.png", target=8)
    assert Image.open(tmp_path / "rgb.png").mode == "RGB"


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 12), (3, 32, 16), (1, 5, 5)])
def test_network_takes_any_image(shape):
    network = make_network(TrainConfig(data="digits", width=8), shape).eval()
    x = torch.zeros(2, *shape)
    assert network(x, torch.tensor([0, 9])).sample.shape == x.shape


def test_each_line_is_the_mean_of_its_own_steps(tmp_path):
    """The last one's of fewer."""
    metrics = Metrics(tmp_path / "metrics.jsonl", 4, torch.device("cpu"))
    metrics.start(0)
    for step, loss in enumerate((1.0, 2.0, 3.0, 6.0, 10.0, 20.0)):
        metrics.add(step, torch.tensor(loss))
        if step in (3, 5):
            metrics.write(step + 1, 8)
    assert [(line["step"], line["loss"]) for line in metrics.lines] == [(4, 3.0), (6, 15.0)]


def test_a_run_that_diverges_is_told_of_once_and_its_file_is_json(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", 1, torch.device("cpu"))
    metrics.start(0)
    with pytest.warns(UserWarning, match="loss: not finite in the steps up to 2") as told:
        for step, loss in enumerate((1.0, math.nan, math.inf)):
            metrics.add(step, torch.tensor(loss))
            metrics.write(step + 1, 8)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(told) == 1 and [json.loads(line, parse_constant=pytest.fail)["loss"] for line in lines] == [1.0, None, None]


def test_a_bound_of_nothing_that_is_finite_is_drawn_all_the_same(tmp_path):
    nothing = torch.full((5,), math.nan)
    save_bound_plot(torch.arange(5), nothing, nothing, nothing, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (1200, 480)
