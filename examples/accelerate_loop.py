"""Hugging Face accelerate: accelerate launch examples/accelerate_loop.py

The scheduler is patched as anywhere; or, as here, the loop takes keys, and each process those of its own samples.
"""

import sys

import torch
from accelerate import Accelerator
from digits import Network, images
from torch.utils.data import DataLoader, TensorDataset

import fastddpm


def main(epochs: int = 5, batch_size: int = 64) -> list[float]:
    torch.manual_seed(0)
    accelerator = Accelerator()
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(images()), batch_size, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule, step, losses = fastddpm.NoiseSchedule.linear(1000), 0, []
    for _ in range(epochs):
        for (x_0,) in loader:
            first = accelerator.process_index * len(x_0)
            key = fastddpm.noise_key(0, step, len(x_0), first_sample=first, device=accelerator.device)
            t = fastddpm.timesteps(key, len(schedule))
            x_t = fastddpm.q_sample(x_0, t, schedule, key)
            loss = fastddpm.mse_loss(model(x_t, t), t, schedule, key)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            losses.append(loss.item())
    accelerator.print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
