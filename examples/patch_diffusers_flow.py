"""A rectified flow as Stable Diffusion 3 is trained and sampled with diffusers, and one line for the scheduler of both.

The network is small and the data are digits; losses, random numbers and images stay what they were (docs/integrations.md).
"""

import sys

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from digits import Network, images
from torch import Tensor

import fastddpm


def train(model: torch.nn.Module, scheduler: FlowMatchEulerDiscreteScheduler, steps: int) -> list[float]:
    data, optimizer = images(), torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        clean = data[torch.randint(len(data), (64,))]
        noise = torch.randn_like(clean)
        u = compute_density_for_timestep_sampling("logit_normal", len(clean), logit_mean=0.0, logit_std=1.0)
        t = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()]
        loss = F.mse_loss(model(scheduler.scale_noise(clean, t, noise), t), noise - clean)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def sample(model: torch.nn.Module, scheduler: FlowMatchEulerDiscreteScheduler, steps: int = 28) -> Tensor:
    x = torch.randn(4, 1, 8, 8)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(len(x))), t, x, return_dict=False)[0]
    return x


def main(steps: int = 1000) -> tuple[list[float], Tensor]:
    torch.manual_seed(0)
    model, scheduler = Network(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    fastddpm.patch(scheduler)  # scale_noise, step
    losses = train(model, scheduler, steps)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    drawn = sample(model, scheduler)
    for row in drawn[:, 0].transpose(0, 1):  # the four beside each other, one text line a row of pixels
        print("   ".join("".join(" .:*#"[int(value.clamp(-1, 0.99) * 2.5 + 2.5)] * 2 for value in image) for image in row))
    return losses, drawn


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
