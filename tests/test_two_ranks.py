"""A batch on one rank and on two (gloo): the same timesteps, x_t, losses and gradients of the output, to the bit; an
optimizer's step under DistributedDataParallel. And the word about a first_sample that is left out there."""

import os
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import fastddpm.noise
from fastddpm import GaussianDiffusion, NoiseSchedule, noise_key, q_sample, timesteps
from fastddpm.optim import AdamW

BATCH, SEED, STEP = 12, 5, 77
SCHEDULE = NoiseSchedule.linear(100)

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def results(first, count):
    """What the samples first .. first + count - 1 of the step come to, with an elementwise model."""
    x_0 = torch.linspace(-1, 1, BATCH * 33).view(BATCH, 33)[first : first + count]
    key = noise_key(SEED, STEP, count, first_sample=first)
    outputs = []

    def model(x_t, t):
        outputs.append((x_t * 0.5).requires_grad_())
        return outputs[0]

    loss = GaussianDiffusion(SCHEDULE).training_loss(model, x_0, key, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), outputs)
    t = timesteps(key, len(SCHEDULE))
    return torch.cat((q_sample(x_0, t, SCHEDULE, key), grad, loss.detach()[:, None], t[:, None].float()), 1)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(33, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def trained(model, part):
    """The weights and their averages after three steps on a part of the batch."""
    optimizer = AdamW(model.parameters(), 1e-2, max_grad_norm=0.1, ema_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, BATCH * 33).view(BATCH, 33)[part]).square().mean().backward()
        optimizer.step()
    return [*(p.detach() for p in model.parameters()), *optimizer.average.tensors, optimizer.grad_norm]


def rank_main(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = results(rank * BATCH // 2, BATCH // 2)
    gathered = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(gathered, mine)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for first in (0, None, None):
            noise_key(SEED, STEP, 2, first)
    assert [str(warning.message)[:60] for warning in caught] == [
        "first_sample: left out, in a process group of 2 ranks: with 0"[:60]
    ]
    assert caught[0].filename == __file__
    model = trained(torch.nn.parallel.DistributedDataParallel(network()), slice(rank * BATCH // 2, (rank + 1) * BATCH // 2))
    if rank == 0:
        torch.save(torch.cat(gathered), f"{folder}/gathered.pt")
        torch.save(model, f"{folder}/trained.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path):
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    assert torch.equal(torch.load(tmp_path / "gathered.pt"), results(0, BATCH))
    torch.testing.assert_close(torch.load(tmp_path / "trained.pt"), trained(network(), slice(None)), rtol=1e-5, atol=1e-6)


@pytest.fixture
def ranks(monkeypatch):
    """A process group of as many ranks as it is told, by what noise.py asks of it."""

    def of(world_size):
        monkeypatch.setattr(dist, "is_initialized", lambda: world_size > 0)
        monkeypatch.setattr(dist, "get_world_size", lambda: world_size)
        monkeypatch.setattr(fastddpm.noise, "_warned", False)

    return of


def test_a_first_sample_left_out_is_warned_of_once(ranks):
    ranks(4)
    with pytest.warns(RuntimeWarning, match="first_sample: left out, in a process group of 4 ranks") as caught:
        assert torch.equal(noise_key(SEED, STEP, 2), noise_key(SEED, STEP, 2))
    assert len(caught) == 1 and torch.equal(noise_key(SEED, STEP, 2), noise_key(SEED, STEP, 2, 0))


@pytest.mark.parametrize(
    ("world_size", "arguments"),
    [(0, (SEED, 0, 2)), (1, (SEED, 0, 2)), (4, (SEED, 0, 2, 0)), (4, (torch.arange(3),))],
    ids=["no group", "one rank", "given", "seeds"],
)
def test_what_is_not_warned_of(world_size, arguments, ranks):
    ranks(world_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noise_key(*arguments)
