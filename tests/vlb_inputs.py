"""What the tests of the bound feed it: pixels, and a network's output."""

import torch
from helpers import values, wide

from fastddpm import NoiseSchedule
from fastddpm.schedule import LEARNED_VARIANCE_TYPES

SCHEDULE = NoiseSchedule.linear(1000)
T = torch.tensor([0, 1, 400, 999])
SHAPE = (4, 3, 2, 3)
SMALL = (4, 2, 2)
ARITHMETIC = (torch.float32, torch.float64)


def data(*shape, dtype=torch.float32, seed=1):
    """On the 8-bit grid of [-1, 1], with pixels at both ends."""
    x = ((values(*shape, seed=seed, **wide).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    x.view(-1)[::7], x.view(-1)[3::7] = -1, 1
    return x.to(dtype)


def output(variance_type, shape=SHAPE, dtype=torch.float64, seed=0):
    """A network's, its variance channels near those of the schedule."""
    if variance_type not in LEARNED_VARIANCE_TYPES:
        return values(*shape, seed=seed, dtype=dtype)
    out = values(shape[0], 2 * shape[1], *shape[2:], seed=seed, **wide)
    out[:, shape[1] :] -= 6 if variance_type == "learned" else 0
    return out.to(dtype)
