"""Gradient accumulation: a batch in parts, whose noise and t are those of the whole batch.

`first_sample` says where in the batch a part begins. Without it each part would draw the noise *and the t* of the first one.
"""

import sys

import torch
from digits import Network, images

import fastddpm


def main(steps: int = 200, batch_size: int = 64, parts: int = 4) -> list[float]:
    torch.manual_seed(0)
    data, model = images(), Network()
    schedule = fastddpm.NoiseSchedule.linear(1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        batch = data[torch.randint(len(data), (batch_size,))]
        total = 0.0
        for part, x_0 in enumerate(batch.chunk(parts)):
            key = fastddpm.noise_key(0, step, len(x_0), first_sample=part * (batch_size // parts))
            t = fastddpm.timesteps(key, len(schedule))
            x_t = fastddpm.q_sample(x_0, t, schedule, key)
            loss = fastddpm.mse_loss(model(x_t, t), t, schedule, key) / parts
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
