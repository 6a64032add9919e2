"""A plain PyTorch training loop with fastddpm dropped in: what it replaces stands in the comments.

Run it with `pip install '.[train]'` and `python examples/train_plain_loop.py [steps]`. It trains on scikit-learn's
handwritten digits and prints the loss, then draws a few digits as text. Model, optimizer and data are whatever you have.
"""

import sys

import torch
from diffusers import UNet2DModel
from sklearn.datasets import load_digits

from fastddpm import GaussianDiffusion, NoiseSchedule, mse_loss, noise_key, q_sample, timesteps

steps, batch_size, seed = int(sys.argv[1]) if len(sys.argv) > 1 else 500, 64, 0

data = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1  # [1797, 1, 8, 8] in [-1, 1]
torch.manual_seed(seed)
blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
model = UNet2DModel(8, 1, 1, **blocks, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

schedule = NoiseSchedule.linear(1000)  # was: scheduler = DDPMScheduler(num_train_timesteps=1000)

for step in range(steps):
    x_0 = data[torch.randint(len(data), (batch_size,))]

    # was: noise = torch.randn_like(x_0); on several ranks first_sample=rank * batch_size, or all draw the same noise and t
    key = noise_key(seed, step, batch_size, first_sample=0)
    t = timesteps(key, 1000)  # was: t = torch.randint(1000, (batch_size,))
    x_t = q_sample(x_0, t, schedule, key)  # was: x_t = scheduler.add_noise(x_0, noise, t)
    loss = mse_loss(model(x_t, t).sample, t, schedule, key)  # was: F.mse_loss(model(x_t, t).sample, noise)

    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0 or step == steps - 1:
        print(f"step {step:5d}  loss {loss.item():.4f}")

images = GaussianDiffusion(schedule).sample(model.eval(), (4, 1, 8, 8), steps=min(250, steps), seed=seed, progress=False)
for row in images[:, 0].transpose(0, 1):  # the four beside each other, one text line a row of pixels
    print("   ".join("".join(" .:*#"[int(value.clamp(-1, 0.99) * 2.5 + 2.5)] * 2 for value in image) for image in row))
