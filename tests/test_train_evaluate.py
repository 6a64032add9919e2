"""`fastddpm eval`: the bound over a data set, as a table, eval.json and eval.png."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import fails
from PIL import Image

pytest.importorskip("diffusers")

from fastddpm.train import TrainConfig, UsageError, train
from fastddpm.train.cli import main
from fastddpm.train.data import Data
from fastddpm.train.evaluate import evaluate, format_evaluation, load_data
from fastddpm.train.network import make_network
from fastddpm.train.runs import Run, load_run

SETTINGS = {"batch_size": 4, "width": 8, "steps": 4, "log_every": 2}


@pytest.fixture(scope="module", params=["fixed_small", "learned_range"])
def run(request, tmp_path_factory):
    loss = "mse" if request.param == "fixed_small" else "hybrid"
    config = TrainConfig(data="digits", timesteps=25, variance=request.param, loss=loss, **SETTINGS)
    return train(config, tmp_path_factory.mktemp("run"))


def test_files_and_table(run, capsys):
    assert main(["eval", str(run.out), "--limit=11", "--batch-size=4", "--seed=3"]) == 0
    text = capsys.readouterr().out
    result = json.loads((run.out / "eval.json").read_text())
    assert min(Image.open(run.out / "eval.png").size) > 300
    assert not list(run.out.glob("*.tmp"))

    trained = load_run(run.out)
    config, x_0 = trained.config, load_data(trained).images[:11]
    terms = config.diffusion().bits_per_dim(trained.network, x_0, seed=3, progress=False)
    assert result["images"] == 11 and result["timesteps"] == list(range(25)) and result["seed"] == 3
    assert result["run"] == config.to_dict() and result["data"] == "digits"
    assert result["total"] == pytest.approx(float(terms["total"].mean()), rel=1e-5)
    assert result["total_error"] == pytest.approx(float(terms["total"].std()) / math.sqrt(11), rel=1e-3)
    assert result["prior"] == pytest.approx(float(terms["prior"].mean()), rel=1e-5)
    assert result["total"] == pytest.approx(result["prior"] + sum(result["vb"]), rel=1e-5)
    for name in ("vb", "x_0_mse", "eps_mse"):
        assert result[name] == pytest.approx(terms[name].mean(0).tolist(), rel=1e-4)

    rows = {line[:20].strip(): line[20:].split() for line in text.splitlines()}
    assert float(rows["total"][0]) == pytest.approx(result["total"], abs=1e-4)
    assert float(rows["L_0"][0]) == pytest.approx(result["vb"][0], abs=1e-4)
    assert float(rows["the other L_t"][0]) == pytest.approx(sum(result["vb"][1:]), abs=1e-4)
    tenths = [values for name, values in rows.items() if name.startswith("t = ")]
    assert len(tenths) == 10 and sum(float(row[0]) for row in tenths) == pytest.approx(sum(result["vb"]), abs=2e-3)
    assert "11 images of digits, 25 steps" in text and str(run.out / "eval.json") in text


def test_a_batch_size_does_not_change_the_figure(run):
    trained = load_run(run.out)
    a, b = (evaluate(trained, load_data(trained, limit=9), batch_size=size, seed=1) for size in (9, 4))
    assert a.total == pytest.approx(b.total, rel=1e-4) and torch.allclose(a.vb, b.vb, rtol=1e-3, atol=1e-5)


def test_nothing_drops_out():
    """Whatever mode the network comes in."""
    config = TrainConfig(data="digits", timesteps=5, width=8, dropout=0.9)
    network, data = make_network(config, (1, 8, 8)), Data(torch.zeros(2, 1, 8, 8))
    totals = [evaluate(Run(network.train(mode), config), data).total for mode in (True, False)]
    assert totals[0] == totals[1]


def test_fewer_steps_and_one_image(run):
    trained = load_run(run.out)
    result = evaluate(trained, load_data(trained, limit=1), steps=3)
    assert result.timesteps.tolist() == [7, 16, 24] and len(result.vb) == 3 and result.total_error is None
    lines = format_evaluation(result, "title").splitlines()
    assert lines[0] == "title" and sum(line.startswith("t = ") for line in lines) == 3 and "+-" not in "".join(lines)


def test_mistakes(run, tmp_path, capsys):
    assert r"steps: expected 1 .. 25" in fails(["eval", str(run.out), "--steps=26"], capsys)
    assert "checkpoint.safetensors" in fails(["eval", str(tmp_path)], capsys)
    assert "no such file" in fails(["eval", str(run.out), "--data=nowhere"], capsys)
    np.save(tmp_path / "wide.npy", np.zeros((2, 8, 10), np.uint8))
    told = fails(["eval", str(run.out), f"--data={tmp_path / 'wide.npy'}"], capsys)
    assert "expected images [1, 8, 8], the run's, got [1, 8, 10]" in told
    with pytest.raises(SystemExit):
        main(["eval", str(run.out), "--limit=0"])


def test_other_data(run, tmp_path, capsys):
    """A folder's images are brought to the run's size and channels."""
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "data.npy", np.zeros((2, 8, 8), np.uint8))
    for data, count in ((tmp_path, 3), (tmp_path / "data.npy", 2)):
        assert main(["eval", str(run.out), "--data", str(data), "--steps=2"]) == 0
        result = json.loads((run.out / "eval.json").read_text())
        assert result["images"] == count and result["data"] == str(data)
    capsys.readouterr()


def test_a_folder_cannot_be_brought_to_an_oblong(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((4, 8, 12), np.uint8))
    train(TrainConfig(data=str(tmp_path / "wide.npy"), timesteps=5, **SETTINGS), tmp_path / "run")
    with pytest.raises(UsageError, match=r"data: expected a \.npy file for images of 8x12"):
        load_data(load_run(tmp_path / "run"), str(tmp_path))


def test_help_says_what_the_figure_is(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "256 levels" in text and "17 levels" in text and "None" not in text
