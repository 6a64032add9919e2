"""diffusers' training loop as it stands, and one line for each object that does the step's work.

Losses, random numbers and checkpoints stay what they were (docs/integrations.md).
"""

import sys

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from digits import Network, images

import fastddpm


def main(steps: int = 200) -> list[float]:
    torch.manual_seed(0)
    data, model = images(), Network()
    scheduler, ema = DDPMScheduler(1000), EMAModel(model.parameters())
    fastddpm.patch(scheduler)  # add_noise, get_velocity, step
    fastddpm.patch(ema)  # step
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        clean = data[torch.randint(len(data), (64,))]
        noise = torch.randn_like(clean)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),))
        loss = F.mse_loss(model(scheduler.add_noise(clean, noise, t), t), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        losses.append(loss.item())
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
