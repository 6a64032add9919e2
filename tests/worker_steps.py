"""What test_processes.py has other processes do. Imports little, since each of them does."""

import torch
from torch.utils.data import Dataset

from fastddpm import NoiseSchedule, mse_loss, noise_key, q_sample, reverse_step, samplers

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (3, 128, 128)
"""Of a sample: enough chunks that a call is shared out to threads."""


class Noised(Dataset):
    """Samples that a worker noises itself, each by its own index."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        key = noise_key(0, 0, 1, first_sample=i)
        return q_sample(torch.full((1, *SHAPE), i / 6), 500, SCHEDULE, key)[0]


def steps(count, shape):
    """Training steps and reverse steps, each with all that it allocates."""
    rows = samplers.ddpm(SCHEDULE)
    x, key = torch.rand(shape), noise_key(0, 0, shape[0])
    scale = torch.ones((), requires_grad=True)
    for _ in range(count):
        x_t = q_sample(x, 500, SCHEDULE, key)
        mse_loss(scale * x_t, 500, SCHEDULE, key).backward()
        reverse_step(x, x_t, 500, rows, key)
        scale.grad = None
