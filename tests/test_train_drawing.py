"""`fastddpm sample` by any sampler, seed by seed, with its film; `fastddpm compare`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import fails
from PIL import Image

pytest.importorskip("diffusers")

from fastddpm import samplers
from fastddpm.train import TrainConfig, train
from fastddpm.train.cli import main
from fastddpm.train.comparison import able, compare
from fastddpm.train.config import DRAWS
from fastddpm.train.drawing import draw, rows_of
from fastddpm.train.pictures import FRAMES, GAP, Film
from fastddpm.train.runs import load_run

CONFIG = TrainConfig(data="digits", steps=2, batch_size=4, width=16, timesteps=60)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("run")).out


# ---- samplers and seeds ----


@pytest.mark.parametrize("sampler", [name for name in DRAWS if name != "plms"])
def test_every_sampler_draws(run, sampler):
    trained = load_run(run)
    images = draw(trained, 2, sampler, 4, seed=3, progress=False)
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all()
    diffusion = trained.config.diffusion()
    options = {"ddim": {"use_clipped_model_output": True}, "heun": {"spacing": "karras"}}.get(sampler, {})
    options = {"sampler": sampler, "steps": 4, "seed": 3, "clip_denoised": True, "progress": False, **options}
    assert torch.equal(images, diffusion.sample(trained.network, (2, 1, 8, 8), **options))


@pytest.mark.parametrize(
    "sampler, timesteps, steps",
    [("ddpm", 60, 60), ("ddpm", 1000, 250), ("ddim", 60, 50), ("dpmpp_2m", 60, 50), ("dpmpp_2m", 50, 49), ("ddim", 1, 1)],
)
def test_steps_where_none_are_asked_for(sampler, timesteps, steps):
    assert len(rows_of(replace(CONFIG, timesteps=timesteps), sampler)) == steps


def test_a_spacing_is_the_samplers(run):
    schedule = CONFIG.diffusion().schedule
    for sampler in ("ddpm", "ddim"):
        rows = samplers.SAMPLERS[sampler](schedule, "v_prediction", clip_denoised=True, steps=6, spacing="leading")
        assert rows_of(CONFIG, sampler, 6, "leading").timesteps.tolist() == rows.timesteps.tolist() == [0, 10, 20, 30, 40, 50]


def sheet(path, count):
    """The images of a grid `[count, 64, 64]`."""
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (80, 72 * count + 8) and (pixels[:8] == GAP).all()
    return np.stack([pixels[8:72, 72 * i + 8 : 72 * i + 72] for i in range(count)]).astype(int)


def test_each_of_several_seeds_makes_the_first_image_of_its_own(run):
    command = ["sample", str(run), "--sampler", "euler_ancestral", "--steps", "4", "--out", "a.png"]
    assert main([*command, "--seed", "5,1,-2"]) == 0
    together = sheet(run / "a.png", 3)
    for seed, image in zip((5, 1, -2), together, strict=True):
        assert main([*command, f"--seed={seed}", "-n", "1"]) == 0
        assert abs(sheet(run / "a.png", 1)[0] - image).max() <= 1
    assert abs(together[0] - together[1]).max() > 10


def test_mistakes(run, capsys):
    command = ["sample", str(run), "--steps=2"]
    assert "--seed: expected one, or one for each of the images, -n 5, got 3" in fails(
        [*command, "--seed=1,2,3", "-n5"], capsys
    )
    assert "steps: expected 1 .. 60" in fails(["sample", str(run), "--steps=61"], capsys)
    assert "sampler plms of 2 steps: prediction_type" in fails([*command, "--sampler=plms"], capsys)
    assert "sampler lcm of 60 steps: steps" in fails([*command, "--sampler=lcm", "--steps=60"], capsys)
    assert "spacing: expected one of" in fails([*command, "--sampler=ddim", "--spacing=even"], capsys)
    for option, suffix in (("--out", ".png"), ("--gif", ".gif")):
        assert f"{option}: expected a {suffix} file" in fails([*command, option, "a.txt"], capsys)
        told = fails([*command, option, f"no/a{suffix}"], capsys)
        assert f"{option}: expected a file that can be written, in a folder that exists" in told
        (run / f"folder{suffix}").mkdir()
        assert f"{option}: expected a file" in fails([*command, option, f"folder{suffix}"], capsys)
    assert not (run / "samples.png").exists()


@pytest.mark.parametrize("kind", ["sample --out", "sample --gif", "compare --out"])
def test_nothing_is_written_outside_the_runs_folder(run, tmp_path, capsys, kind):
    command, option = kind.split()
    suffix = {"--out": ".png", "--gif": ".gif"}[option]
    (run / "way_out").unlink(missing_ok=True)
    (run / "way_out").symlink_to(tmp_path)
    for path in (tmp_path / f"a{suffix}", f"../a{suffix}", f"way_out/a{suffix}", run.parent / f"{run.name}2{suffix}"):
        told = fails([command, str(run), "-n1", "--steps=2", option, str(path)], capsys)
        assert f"{option}: expected a file in the run's folder, '{run}', got " in told
    assert not list(tmp_path.iterdir()) and not list(run.parent.glob(f"*{suffix}"))


def test_a_path_may_name_the_runs_folder_or_start_in_it(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    for path in (f"{run.name}/b.png", run / "c.png", "d.png"):
        assert main(["sample", run.name, "-n1", "--steps=1", "--out", str(path)]) == 0
    assert all((run / f"{name}.png").exists() for name in "bcd")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--sampler=ddim_inverse"], "--sampler: expected one of ddpm, ddim"),
        (["--sampler=best"], "--sampler: expected one of ddpm, ddim"),
        (["--seed=1,,2"], "--seed: expected values with commas between, got '1,,2'"),
        (["--seed=1.5"], "--seed: expected values with commas between"),
        (["--guidance=nan"], "--guidance: expected a finite number, got 'nan'"),
        (["--guidance=much"], "--guidance"),
    ],
)
def test_mistakes_of_grammar(arguments, told, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sample", "run", *arguments])
    assert stop.value.code == 2 and told in capsys.readouterr().err.replace("argument ", "")


# ---- the film ----


def test_the_film_ends_with_the_picture(run, capsys):
    out, gif = run / "film.png", run / "film.gif"
    assert main(["sample", str(run), "--steps=5", "-n2", "--seed=1", "--out", str(out), "--gif", str(gif)]) == 0
    assert str(gif) in capsys.readouterr().out
    film = Image.open(gif)
    assert film.n_frames == 5 and film.info["loop"] == 0
    frames = []
    for i in range(5):
        film.seek(i)
        frames.append(np.asarray(film.convert("L")).astype(int))
    assert abs(frames[-1] - np.asarray(Image.open(out))).max() <= 1 and abs(frames[0] - frames[-1]).max() > 20


@pytest.mark.parametrize("steps", [1, 3, FRAMES, FRAMES + 1, 1000])
def test_a_film_keeps_some_steps_and_the_last(tmp_path, steps):
    film = Film(tmp_path / "a.gif")
    for i in reversed(range(steps)):
        film(i, i, torch.full((1, 1, 2, 2), i / steps), torch.zeros(1, 1, 2, 2))
    assert min(steps, FRAMES // 2) <= len(film.grids) <= FRAMES and film.grids[-1].max() == 128


# ---- compare ----


def test_a_comparison_is_of_one_beginning(run):
    """Where everything is walked, DDIM is the reference to the bit; a distance is what its name says."""
    trained = load_run(run)
    reference, drawn = compare(trained, ["ddim", "euler", "ddpm"], [4, 60], 3, seed=2)
    assert torch.equal(reference, draw(trained, 3, "ddim", 60, seed=2, progress=False))
    assert [(one.sampler, one.steps) for one in drawn] == [(name, n) for name in ("ddim", "euler", "ddpm") for n in (4, 60)]
    assert drawn[1].distance == 0 and drawn[0].distance > 0
    assert [one.adds_noise for one in drawn] == [False] * 4 + [True] * 2
    for one in drawn:
        assert torch.equal(one.images, draw(trained, 3, one.sampler, one.steps, seed=2, progress=False)) and one.seconds > 0
        assert one.distance == pytest.approx(float((one.images - reference).pow(2).mean().sqrt()), rel=1e-6)


def test_the_table_and_the_picture(run, capsys):
    assert main(["compare", str(run), "-n2", "--steps=2,3", "--sampler=ddim,lcm"]) == 0
    text = capsys.readouterr().out
    rows = {line[:18].strip(): line[18:].split() for line in text.splitlines()}
    assert rows["steps"] == ["2", "3"] and len(rows["ddim"]) == len(rows["lcm *"]) == 4 and "DDIM's of all 60 steps" in text
    assert "* adds noise" in text and str(run / "compare.png") in text and "Left out" not in text
    assert min(Image.open(run / "compare.png").size) > 100


def test_who_can_not_walk_is_left_out(run, capsys):
    assert set(DRAWS) - set(able(CONFIG, [2])) == {"plms"} and set(DRAWS) - set(able(CONFIG, [2, 55])) == {"plms", "lcm"}
    assert main(["compare", str(run), "-n1", "--steps=1"]) == 0
    assert "Left out, since they can't walk these steps of this run: plms\n" in capsys.readouterr().out
    assert "steps: expected 1 .. 60" in fails(["compare", str(run), "--steps=10,61"], capsys)
    assert "sampler plms of 3 steps" in fails(["compare", str(run), "--steps=3", "--sampler=ddim,plms"], capsys)
    assert "--out: expected a .png file" in fails(["compare", str(run), "--out=a.jpg"], capsys)
    assert "label: expected none" in fails(["compare", str(run), "--label=1"], capsys)
