"""A batch on one rank and on two (gloo): the same timesteps, x_t, losses and gradients of the output, to the bit."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastddpm import GaussianDiffusion, NoiseSchedule, noise_key, q_sample, timesteps

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


def rank_main(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = results(rank * BATCH // 2, BATCH // 2)
    gathered = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(gathered, mine)
    if rank == 0:
        torch.save(torch.cat(gathered), f"{folder}/gathered.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path):
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    assert torch.equal(torch.load(tmp_path / "gathered.pt"), results(0, BATCH))
