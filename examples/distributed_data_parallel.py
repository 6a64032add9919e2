"""DistributedDataParallel: torchrun --nproc-per-node 2 examples/distributed_data_parallel.py

Each rank makes the noise and t of its own samples, by their place in the whole batch (`first_sample`): the run is that of one
process with the whole batch, whatever the number of ranks.
"""

import sys

import torch
import torch.distributed as dist
from digits import Network, images
from torch.nn.parallel import DistributedDataParallel

import fastddpm


def main(steps: int = 200, batch_size: int = 64) -> list[float]:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    data = images().to(device)
    model = DistributedDataParallel(Network().to(device))
    schedule = fastddpm.NoiseSchedule.linear(1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    share, losses = batch_size // ranks, []
    for step in range(steps):
        chosen = torch.randint(len(data), (batch_size,))  # the same on every rank: their generators are in step
        x_0 = data[chosen[rank * share : (rank + 1) * share].to(device)]
        key = fastddpm.noise_key(0, step, share, first_sample=rank * share, device=device)
        t = fastddpm.timesteps(key, len(schedule))
        x_t = fastddpm.q_sample(x_0, t, schedule, key)
        loss = fastddpm.mse_loss(model(x_t, t), t, schedule, key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach()
        dist.all_reduce(mean)
        losses.append(mean.item() / ranks)
    if rank == 0:
        print("\n".join(f"{loss:.6f}" for loss in losses))
    del model, optimizer, loss  # before the group that they reduce by: at exit gloo may wait for ever
    dist.barrier()
    dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
