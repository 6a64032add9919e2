"""Mixed precision: the network under autocast, the loss in float32 whatever the network returns, and a GradScaler round it.

On a GPU this is float16 with a scaler; on a CPU bfloat16, which needs none (`enabled=False`).
"""

import sys

import torch
from digits import Network, images

import fastddpm


def main(steps: int = 200) -> list[float]:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    data, model = images().to(device), Network().to(device)
    schedule = fastddpm.NoiseSchedule.linear(1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    losses = []
    for step in range(steps):
        x_0 = data[torch.randint(len(data), (64,), device=device)]
        key = fastddpm.noise_key(0, step, len(x_0), device=device)
        t = fastddpm.timesteps(key, len(schedule))
        x_t = fastddpm.q_sample(x_0, t, schedule, key)
        with torch.autocast(device.type, half):
            output = model(x_t, t)  # in half precision, and so is its gradient
        loss = fastddpm.mse_loss(output, t, schedule, key)  # float32: summed so, and scaled without loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
