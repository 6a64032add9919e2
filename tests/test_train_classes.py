"""Class-conditional runs: labels from the data to the network, dropped by the key, and back from `fastddpm sample --label`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import fails
from PIL import Image

pytest.importorskip("diffusers")

from crash import CrashError, crash_at
from recorded_graphs import recorded

from fastddpm import graphs, noise_key, timesteps
from fastddpm.train import TrainConfig, UsageError, checkpoint, resume, train
from fastddpm.train.cli import main
from fastddpm.train.data import drop_labels, load, load_images
from fastddpm.train.drawing import draw
from fastddpm.train.evaluate import evaluate, load_data
from fastddpm.train.results import write_results
from fastddpm.train.runs import load_run
from fastddpm.train.trainer import Trainer

CONFIG = TrainConfig(
    data="digits", class_conditional=True, label_dropping=0.5, steps=6, batch_size=8, width=16, timesteps=20, log_every=3
)
CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("run")).out


# ---- labels of data ----


def save_classes(folder, names):
    """An image a name, as grey as its place is high."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(path)
    return str(folder)


def test_the_labels_of_digits_are_theirs():
    digits = load("digits", labelled=True)
    assert digits.classes == CLASSES and digits.labels.shape == (1797,) and digits.labels.dtype == torch.int64
    assert digits.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert torch.equal(digits.images, load_images("digits")) and load("digits").labels is None


def test_the_classes_of_a_folder_are_its_sub_folders_by_name(tmp_path):
    data = save_classes(tmp_path, ["dog/a.png", "cat/z.png", "cat/deeper/b.png", "ant/1/2/c.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not looked at")
    images, labels, classes = load(data, 8, "grey", labelled=True)
    assert classes == ("ant", "cat", "dog")
    greys = images[:, 0, 0, 0].tolist()
    assert dict(zip(greys, labels.tolist(), strict=True)) == {0: 2, 10: 1, 20: 1, 30: 0}
    assert torch.equal(images, load_images(data, 8, "grey"))


def test_a_broken_image_takes_its_label_with_it(tmp_path):
    data = save_classes(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    (tmp_path / "a" / "1.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"1\.png|1 of 3 files"):
        images, labels, _ = load(data, 8, "grey", labelled=True)
    assert images[:, 0, 0, 0].tolist() == [10, 20] and labels.tolist() == [0, 1]


def test_data_without_labels_is_refused(tmp_path):
    mixed = save_classes(tmp_path / "mixed", ["a/1.png", "2.png"])
    with pytest.raises(UsageError, match=r"sub-folders alone.* got '2\.png' in '.*mixed' itself"):
        load(mixed, labelled=True)
    np.save(tmp_path / "data.npy", np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"'digits' or a folder with one sub-folder a class.*data\.npy"):
        load(str(tmp_path / "data.npy"), labelled=True)
    with pytest.raises(UsageError, match="no such file"):
        load("nowhere", labelled=True)


# ---- dropping ----


def test_a_label_is_dropped_by_its_key_alone():
    labels = torch.arange(64) % 10

    def dropped(first, count, step=5, seed=1):
        key = noise_key(seed, step, count, first, "label_dropping")
        return drop_labels(labels[first : first + count], key, 0.3, 10)

    whole = dropped(0, 64)
    assert torch.equal(whole, torch.cat((dropped(0, 24), dropped(24, 40))))  # two ranks
    assert not torch.equal(whole, dropped(0, 64, step=6)) and not torch.equal(whole, dropped(0, 64, seed=2))
    kept = whole != 10
    assert 0 < kept.sum() < 64 and torch.equal(whole[kept], labels[kept])


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.99])
def test_labels_are_dropped_as_often_as_asked_and_whatever_t_is(probability):
    n = 40_000
    key = noise_key(3, 7, n, stream="label_dropping")
    dropped = drop_labels(torch.zeros(n, dtype=torch.int64), key, probability, 1).double()
    deviation = (probability * (1 - probability) / n) ** 0.5
    assert abs(float(dropped.mean()) - probability) <= 4 * deviation
    early = timesteps(noise_key(3, 7, n), 1000) < 500
    assert abs(float(dropped[early].mean()) - probability) <= 4 * 2**0.5 * deviation


@pytest.mark.parametrize("settings, expected", [({}, 0.1), ({"label_dropping": 0.0}, 0.0), ({"label_dropping": 0.25}, 0.25)])
def test_the_probability(settings, expected):
    assert TrainConfig(data="digits", class_conditional=True, **settings).drops_labels == expected
    assert TrainConfig(data="digits").drops_labels == 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"label_dropping": 0.1}, "label_dropping: expected only with class_conditional"),
        ({"label_dropping": 1.0, "class_conditional": True}, "label_dropping: expected 0 <= label_dropping < 1"),
        ({"label_dropping": float("nan"), "class_conditional": True}, "label_dropping: expected 0 <="),
        ({"width": 8, "class_conditional": True}, "width: expected 16 or more with class_conditional, got 8"),
        ({"class_conditional": 1}, "class_conditional: expected True or False"),
    ],
)
def test_settings_that_can_not_be(settings, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(data="digits", **settings)


# ---- training ----


def test_labels_go_with_their_images(tmp_path):
    trainer = Trainer(replace(CONFIG, label_dropping=0.3), tmp_path)
    digits, seen = load("digits", labelled=True), set()
    of = {image.numpy().tobytes(): int(label) for image, label in zip(digits.images, digits.labels, strict=True)}
    for step in range(8):
        x_0, kwargs = trainer.batch(step)
        labels = torch.tensor([of[image.numpy().tobytes()] for image in x_0])
        key = noise_key(CONFIG.seed, step, 8, stream="label_dropping")
        assert torch.equal(kwargs["class_labels"], drop_labels(labels, key, 0.3, 10))
        seen.update(kwargs["class_labels"].tolist())
    assert 10 in seen and len(seen) > 5


@pytest.mark.parametrize("step", [1, 4])
def test_a_crashed_run_resumes_to_the_same_bits(tmp_path, monkeypatch, step):
    config = replace(CONFIG, checkpoint_every=2)
    whole = train(config, tmp_path / "whole")
    crash_at(monkeypatch, step)
    with pytest.raises(CrashError):
        train(config, tmp_path / "crashed")
    monkeypatch.undo()
    resumed = resume(tmp_path / "crashed")
    weights = whole.network.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in resumed.network.state_dict().items())


def test_a_captured_step_reads_each_batchs_labels(tmp_path, monkeypatch):
    eager = Trainer(CONFIG, tmp_path)
    losses = [eager.train_step() for eager.step in range(4)]
    monkeypatch.setattr(graphs, "_has_graphs", lambda device: True)
    monkeypatch.setattr(graphs, "_beside", lambda run, device: run())
    monkeypatch.setattr(graphs, "_captured", recorded)
    captured = Trainer(CONFIG, tmp_path)
    assert captured.graphed.captures
    assert torch.equal(torch.stack([captured.train_step() for captured.step in range(4)]), torch.stack(losses))


def test_a_checkpoint_from_before_there_were_classes_loads(tmp_path):
    train(TrainConfig(data="digits", steps=2, batch_size=4, width=8, timesteps=5), tmp_path)
    state = checkpoint.load(tmp_path, "cpu")
    del state["classes"], state["config"]["class_conditional"], state["config"]["label_dropping"]
    checkpoint.save(tmp_path, state)
    assert load_run(tmp_path).classes == () and resume(tmp_path, steps=3).step == 3


def test_there_is_no_pipeline_and_that_is_said(tmp_path):
    (tmp_path / "model_index.json").write_text("of a run that was here before")
    text = write_results(train(CONFIG, tmp_path))
    assert "no pipeline for diffusers: its DDPMPipeline gives the network no labels" in text
    assert not (tmp_path / "model_index.json").exists() and (tmp_path / "samples.png").exists()


# ---- sampling ----


def drawn(run, *arguments):
    """The pixels of `fastddpm sample`."""
    out = run / "drawn.png"
    assert main(["sample", str(run), "--steps=3", *arguments, "--out", str(out)]) == 0
    return np.asarray(Image.open(out)).astype(int)


def test_a_label_and_guidance_are_what_the_network_is_given(run):
    trained, labels = load_run(run), torch.full((3,), 7)
    seen = []

    def look(network, args, kwargs):
        seen.append(kwargs["class_labels"].tolist())

    trained.network.register_forward_pre_hook(look, with_kwargs=True)
    options = {"steps": 3, "seed": 4, "progress": False}
    plain = draw(trained, 3, labels=labels, **options)
    assert seen == [[7, 7, 7]] * 3
    seen.clear()
    guided = draw(trained, 3, labels=labels, guidance=4.0, **options)
    assert seen == [[7, 7, 7, 10, 10, 10]] * 3 and not torch.allclose(plain, guided, atol=0.05)
    assert torch.allclose(plain, draw(trained, 3, labels=labels, guidance=1.0, **options), atol=1e-4)
    seen.clear()
    draw(trained, 12, **options)
    assert seen == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]] * 3


def test_the_command_draws_that_class(run):
    three, seven = drawn(run, "--label=3", "-n2"), drawn(run, "--label=7", "-n2")
    assert (three != seven).any() and (three != drawn(run, "--label=3", "-n2", "--guidance=6")).any()


def test_evaluation_is_given_the_labels(run, tmp_path, capsys):
    assert main(["eval", str(run), "--limit=11", "--batch-size=4"]) == 0
    result = json.loads((run / "eval.json").read_text())
    trained, digits = load_run(run), load("digits", labelled=True)
    options = {"seed": 0, "progress": False, "model_kwargs": {"class_labels": digits.labels[:11]}}
    terms = trained.config.diffusion().bits_per_dim(trained.network, digits.images[:11], **options)
    assert result["total"] == pytest.approx(float(terms["total"].mean()), rel=1e-5)
    options["model_kwargs"] = {"class_labels": digits.labels[:11].flip(0)}
    others = trained.config.diffusion().bits_per_dim(trained.network, digits.images[:11], **options)
    assert others["total"].mean() != pytest.approx(result["total"], rel=1e-3)

    some = save_classes(tmp_path / "some", ["9/a.png", "2/b.png"])
    assert load_data(trained, some).labels.tolist() == [2, 9]  # the run's places of these names
    assert evaluate(trained, load_data(trained, some), steps=2).images == 2
    capsys.readouterr()
    assert "the run's classes" in fails(["eval", str(run), "--data", save_classes(tmp_path / "odd", ["x/a.png"])], capsys)


def test_mistakes_of_label_and_guidance(run, tmp_path, capsys):
    command = ["sample", str(run), "-n2", "--steps=2"]
    assert "label: expected one of the run's classes (0, 1, 2" in fails([*command, "--label=10"], capsys)
    for name, settings in (("plain", {"class_conditional": False, "label_dropping": None}), ("kept", {"label_dropping": 0.0})):
        train(replace(CONFIG, steps=1, **settings), tmp_path / name)
    capsys.readouterr()
    for name in ("plain", "kept"):
        told = fails(["sample", str(tmp_path / name), "-n2", "--steps=2", "--guidance=4"], capsys)
        assert "guidance: expected a run trained with --class-conditional and a --label-dropping above 0, got 4.0" in told
    told = fails(["sample", str(tmp_path / "plain"), "--label=3"], capsys)
    assert "label: expected none (the run was not trained with --class-conditional), got '3'" in told


@pytest.mark.slow
def test_threes_are_threes(tmp_path):
    """Of an SVM of the real digits (97 % right in cross-validation)."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    digits = load_digits()
    classifier = SVC(C=10).fit(digits.data / 8 - 1, digits.target)
    out = tmp_path / "run"
    assert main(["train", "--data=digits", "--class-conditional", "--out", str(out)]) == 0
    trained, count = load_run(out), 200

    def right(labels, **options):
        images = draw(trained, count, labels=labels, progress=False, **options)
        return float((classifier.predict(images.flatten(1).numpy()) == labels.numpy()).mean())

    assert right(torch.full((count,), 3), guidance=4.0) >= 0.99
    every = torch.arange(count) % 10
    assert right(every) >= 0.95 and right(every, sampler="dpmpp_2m", steps=20, guidance=4.0) >= 0.99
    assert right(every, sampler="ddim", steps=20, guidance=4.0) >= 0.99
