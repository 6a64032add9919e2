"""The examples, run: each trains, and those that cut a batch in parts draw the noise and t of the whole."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def main(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.parametrize(
    ("name", "wants", "steps"),
    [
        ("patch_diffusers_training", "diffusers", 25),
        ("autocast_and_grad_scaler", None, 15),  # bfloat16 without instructions for it is 2 s a step
        ("gradient_accumulation", None, 25),
        ("lightning_module", "pytorch_lightning", 25),
        ("accelerate_loop", "accelerate", 25),
    ],
)
def test_a_loop_trains(name, wants, steps):
    if wants:
        pytest.importorskip(wants)
    losses = main(name)(1 if name == "accelerate_loop" else steps)  # an epoch, that one
    assert len(losses) >= steps and sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_parts_of_a_batch_are_the_whole():
    accumulated = main("gradient_accumulation")
    for one, other in zip(accumulated(3, parts=1), accumulated(3, parts=4), strict=True):
        assert abs(one - other) < 1e-5


def test_the_pipeline_draws():
    pytest.importorskip("diffusers")
    assert main("patch_diffusers_pipeline")(3).shape == (4, 8, 8, 1)


def test_a_flow_trains_and_draws_as_without_the_patch(monkeypatch):
    pytest.importorskip("diffusers")
    losses, drawn = main("patch_diffusers_flow")(25)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    monkeypatch.setattr("fastddpm.patch", lambda scheduler: None)
    other_losses, other = main("patch_diffusers_flow")(25)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(other_losses), rtol=1e-5, atol=0)
    torch.testing.assert_close(drawn, other, rtol=0, atol=1e-4)


def test_openai_s_sampling_script_draws():
    checkout = Path(os.environ.get("FASTDDPM_PEERS", "nowhere")) / "guided"
    if not checkout.exists():
        pytest.skip("FASTDDPM_PEERS names no folder with a checkout of guided-diffusion")
    sample = main("patch_openai_sampling")(str(checkout), "2")
    assert sample.shape == (2, 3, 64, 64) and sample.abs().max() <= 1


def test_the_plain_loop_trains_and_draws():
    pytest.importorskip("diffusers")
    run = subprocess.run([sys.executable, EXAMPLES / "train_plain_loop.py", "2"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and "step     1  loss" in run.stdout and len(run.stdout.splitlines()) == 10, run.stderr


def losses_of(ranks):
    """The losses that rank 0 prints, of so many real processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, EXAMPLES / "distributed_data_parallel.py", "4"]
    runs = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    ended = [run.communicate(timeout=300) for run in runs]
    assert all(run.returncode == 0 for run in runs), ended
    return [float(line) for line in ended[0][0].splitlines()]


def test_two_ranks_train_as_one():
    for one, other in zip(losses_of(1), losses_of(2), strict=True):
        assert abs(one - other) < 1e-5
