"""Runs every op over awkward sizes, dtypes and layouts, and hashes each result.

`python tests/digest.py THREADS [large]` prints them as JSON: so test_noise.py compares instruction sets and thread counts, and
results small and large.
"""

import hashlib
import json
import sys
from contextlib import nullcontext

import torch
from every_op import NEAR, results
from helpers import DTYPES, LAYOUTS, all_large, spread, threads, values

from fastddpm import noise_key, ops, timesteps

SHAPES = ((3, 1), (2, 3), (2, 5), (5, 127), (2, 4097), (2, 33001), (4, 3, 17, 9), (1, 2, 170, 171))


def outputs(near):
    """Every output, with its name."""
    for shape in SHAPES:
        key, t = noise_key(-5, 77, shape[0], first_sample=9), spread(shape[0])
        yield f"timesteps {shape}", timesteps(key, 1000)
        for dtype in DTYPES:
            for layout in ("contiguous", "channels_last", "pixels_first") if len(shape) == 4 else ("contiguous",):
                for name, x in results(key, t, shape, dtype, LAYOUTS[layout], near):
                    yield f"{name} {shape} {dtype} {layout}", x
    for dtype in DTYPES if near else ():
        for name, x in optimizers_step(dtype):
            yield f"{NEAR}{name} {dtype}", x


def optimizers_step(dtype):
    """All of SHAPES as weights; of the second half only the averages move."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    params, grads = ([values(*shape, dtype=dtype, seed=seed) for shape in SHAPES] for seed in (0, 1))
    moments, squares, averages = ([values(*shape, seed=seed).to(wide).abs() for shape in SHAPES] for seed in (2, 3, 4))
    grads[4:] = [g[:0, ..., :0].flatten() for g in grads[4:]]
    rows = torch.tensor([[1e-3, 0.9, 0.999, 1e-8, 0.01, 1, 0, 0], [0] * 8], dtype=torch.float64)
    given = (params, grads, moments, squares, averages, [4, 4], rows, torch.tensor([3.0, 2.0, 0.0]))
    yield "norm", ops.adamw_(*given, torch.tensor(3.0), None, 1.0, 0.99, 0, False, False)
    for name, tensors in zip(("param", "moment", "square", "average"), (params, moments, squares, averages), strict=True):
        yield from ((f"{name} {i}", x) for i, x in enumerate(tensors))


def digest(x):
    """Without the sign of a zero, which the reference's fma drops."""
    return hashlib.sha256((x + 0).flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def digests(count, large=False, near=True):
    with threads(count), all_large() if large else nullcontext():
        return {name: digest(x) for name, x in outputs(near)}


if __name__ == "__main__":
    json.dump(digests(int(sys.argv[1]), "large" in sys.argv[2:]), sys.stdout)
