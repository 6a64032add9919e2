"""A step of the trainer: what each setting does to it, and in which order its parts come."""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

pytest.importorskip("diffusers")

from fastddpm.train import TrainConfig, train
from fastddpm.train.trainer import Trainer, learning_rate, update

CONFIG = TrainConfig(data="digits", steps=2, batch_size=4, width=8, timesteps=20)


def weights(network):
    return parameters_to_vector(network.parameters()).detach().clone()


def stepped(folder, **settings):
    """A run's first step: the trainer, and its weights before."""
    trainer = Trainer(replace(CONFIG, **settings), folder)
    before = weights(trainer.network)
    trainer.train_step()
    return trainer, before


@pytest.mark.parametrize(
    "step, expected", [(0, 0.01), (49, 0.5 * 0.976490), (99, 0.906347), (250, 0.5), (375, 0.146447), (499, 9.8696e-6)]
)
def test_the_learning_rate_warms_up_and_falls_as_a_cosine(step, expected):
    config = TrainConfig(data="digits", steps=500, lr=3.0)
    assert learning_rate(config, step) == pytest.approx(3.0 * expected, rel=1e-4)


def test_every_step_has_its_own_learning_rate(tmp_path, monkeypatch):
    monkeypatch.setattr("fastddpm.train.trainer.learning_rate", lambda config, step: config.lr * (step + 1))
    run = train(replace(CONFIG, steps=3, lr=0.01), tmp_path)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.03)


@pytest.mark.parametrize("norm, moved", [(10.0, 1.0), (0.5, 0.5)])
def test_an_update_moves_by_the_clipped_gradient(norm, moved):
    """By a norm of 1 at most, whatever the parameters that it is of; and the next step begins without gradients."""
    network = torch.nn.Linear(4, 3)
    optimizer, before = torch.optim.SGD(network.parameters(), lr=7.0), weights(network)
    direction = torch.nn.functional.normalize(torch.arange(1.0, 16.0), dim=0)
    (norm * direction @ parameters_to_vector(network.parameters())).backward()
    update(network, optimizer, 0.25)
    assert torch.allclose(weights(network), before - 0.25 * moved * direction, atol=1e-6)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_weight_decay_shrinks_the_weights(tmp_path):
    """AdamW's is decoupled: it takes lr times itself of the weights, and changes nothing else of a step."""
    (run, before), (decayed, _) = stepped(tmp_path, lr=1.0), stepped(tmp_path, lr=1.0, weight_decay=0.5)
    shrunk = weights(run.network) - weights(decayed.network)
    assert torch.allclose(shrunk, 0.01 * 0.5 * before, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_average_moves_towards_the_stepped_weights(tmp_path, decay):
    trainer = Trainer(replace(CONFIG, lr=0.1, ema_decay=decay), tmp_path)
    expected = weights(trainer.network)
    for trainer.step in range(3):
        trainer.train_step()
        expected = decay * expected + (1 - decay) * weights(trainer.network)
        assert torch.allclose(weights(trainer.average), expected, rtol=0, atol=1e-6)


def test_the_network_drops_out_and_the_average_does_not(tmp_path):
    """In the run as it is: its first loss is another with dropout, and what it leaves draws the same images twice."""
    plain, run = (train(replace(CONFIG, steps=1, dropout=dropout), tmp_path / str(dropout)) for dropout in (0.0, 0.9))
    assert plain.metrics.lines[0]["loss"] != pytest.approx(run.metrics.lines[0]["loss"], rel=1e-3)
    x, t = torch.ones(2, 1, 8, 8), torch.tensor([0, 9])
    assert torch.equal(run.average(x, t).sample, run.average(x, t).sample)
    assert not torch.equal(run.network(x, t).sample, run.network(x, t).sample)
