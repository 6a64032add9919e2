"""What the lane's modules share: shapes, keys and noise, rows, and the comparison."""

import torch
from helpers import same_bits, values

from fastddpm import NoiseSchedule, noise_key

SCHEDULE = NoiseSchedule.linear(1000)
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((3,), (3, 1), (2, 3), (3, 4), (2, 5), (3, 127), (2, 4097), (0, 5), (3, 0), (2, 3, 4, 5), (2, 2, 3, 4, 5))
IMAGE = (3, 4, 5, 6)
NOISES = ("key", "tensor", "none")


def same(got, wanted):
    assert got.stride() == wanted.stride()
    assert same_bits(got, wanted)


def key(batch, seed=-(2**62) + 12345, step=9):
    return noise_key(seed, step, batch, first_sample=(1 << 32) - 1 - batch)


def noise_of(kind, shape, dtype=torch.float32):
    return {"key": key(shape[0]), "tensor": values(*shape, dtype=dtype, seed=5), "none": None}[kind]


def rows_q():
    return SCHEDULE.q_sample_rows(CPU, torch.float32)
