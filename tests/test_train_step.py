"""A step of the trainer: what each setting does to it, and in which order its parts come."""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

pytest.importorskip("diffusers")

from recorded_graphs import recorded

from fastddpm.train import TrainConfig, UsageError, train
from fastddpm.train.eager import EagerUpdate
from fastddpm.train.trainer import BETAS, CLIP_NORM, Trainer, learning_rate

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
    assert float(run.optimizer.param_groups[0]["lr"]) == pytest.approx(0.03)


def test_a_run_is_a_twin_of_torchs(tmp_path):
    """Losses, weights and averages of 30 steps, all clipped, beside clip_grad_norm_, torch's AdamW and average.
    (A bias before a normalisation has a gradient of nothing but rounding, by which Adam moves it all the same.)"""
    config = replace(CONFIG, steps=30, lr=3e-3, ema_decay=0.9)
    mine, other = (Trainer(config, tmp_path) for _ in range(2))
    eager, norms, before = EagerUpdate(other.network, config, BETAS, CLIP_NORM), [], weights(other.network)
    for step in range(30):
        x_0, _ = other.batch(step)
        loss = other.diffusion.training_loss(other.network, x_0, other.key(step))
        other.network.zero_grad()
        loss.backward()
        eager.take_gradients()
        eager(learning_rate(config, step))
        with torch.no_grad():
            torch._foreach_copy_(list(other.network.parameters()), eager.params)
        assert float(mine.train_step()) == pytest.approx(float(loss.detach()), rel=1e-5)
        mine.step += 1
        norms.append(float(mine.optimizer.grad_norm))
    assert min(norms) > 1
    for network, theirs in ((mine.network, eager.params), (mine.average, eager.average)):
        theirs = parameters_to_vector(theirs)
        assert (weights(network) - theirs).norm() < 0.025 * (theirs - before).norm()  # twice torch's fused from its foreach


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


@pytest.mark.parametrize("dtype, precision", [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
def test_a_precision_is_the_networks_and_not_its_weights(tmp_path, dtype, precision):
    trainer, seen = Trainer(replace(CONFIG, precision=precision), tmp_path), []
    trainer.network.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.train_step()
    assert seen == [dtype] and {x.dtype for x in trainer.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_is_how_weights_and_activations_lie(tmp_path, channels_last):
    trainer, seen = Trainer(replace(CONFIG, data="digits", channels_last=channels_last), tmp_path), []

    def lies(x):
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()

    trainer.network.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(lies(output)))
    trainer.train_step()
    assert seen == [channels_last] and lies(trainer.network.mid_block.resnets[0].conv1.weight) is channels_last


def test_a_compiled_network_is_called_and_its_weights_keep_their_names(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *inputs: (compiled.append(1), call(*inputs))[1])
    run = train(replace(CONFIG, compile=True), tmp_path / "compiled")
    plain = train(CONFIG, tmp_path / "plain")
    assert len(compiled) == run.step == 2
    assert list(run.network.state_dict()) == list(plain.network.state_dict())


@pytest.mark.parametrize("graph, captures", [("auto", True), ("off", False)])
def test_a_step_is_a_graph_where_there_are_graphs(tmp_path, monkeypatch, graph, captures):
    """By a stand-in that records it; the run is the same to the bit."""
    config = replace(CONFIG, graph=graph, steps=4)
    plain = train(config, tmp_path / "plain")
    monkeypatch.setattr("fastddpm.graphs._has_graphs", lambda device: True)
    monkeypatch.setattr("fastddpm.graphs._beside", lambda run, device: run())
    monkeypatch.setattr("fastddpm.graphs._captured", recorded)
    run = train(config, tmp_path / "run")
    assert (run.graphed._graph is not None) is captures
    assert torch.equal(weights(run.network), weights(plain.network))
    assert torch.equal(weights(run.average), weights(plain.average))
    assert run.metrics.lines[0]["loss"] == plain.metrics.lines[0]["loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_graph_is_refused_without_a_gpu(tmp_path):
    with pytest.raises(UsageError, match="graph: expected auto or off without a GPU, and on several ranks, got 'on'"):
        Trainer(replace(CONFIG, graph="on"), tmp_path)
