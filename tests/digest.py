"""Runs every function that promises its bits over awkward sizes, dtypes and layouts, and hashes each output.

`python tests/digest.py THREADS` prints them as JSON: so test_noise.py compares instruction sets and thread counts.
"""

import hashlib
import json
import sys

import torch
from helpers import DTYPES, spread, threads, values

from fastddpm import NoiseSchedule, mse_loss, noise_key, q_sample, q_step, randn, reverse_step, samplers, timesteps

SHAPES = ((3, 1), (2, 3), (2, 5), (5, 127), (2, 4097), (2, 33001), (4, 3, 17, 9), (1, 2, 170, 171))
LOSS = "mse_loss"
"""Names that begin so are sums, equal between instruction sets but not to the reference's."""


def outputs():
    """Every output, by name."""
    named = {}
    for shape in SHAPES:
        key, t = noise_key(-5, 77, shape[0], first_sample=9), spread(shape[0])
        named[f"timesteps {shape}"] = timesteps(key, 1000)
        for dtype in DTYPES:
            named |= {f"{name} {shape} {dtype}": x for name, x in _of_one(shape, dtype, key, t).items()}
    return named


def _of_one(shape, dtype, key, t):
    schedule = NoiseSchedule.linear(1000)
    x, out = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    named = {"randn": randn(key, shape, dtype)}
    if len(shape) == 4:
        named["randn channels_last"] = randn(key, shape, dtype, torch.channels_last)
    if dtype == torch.float64:  # its sums may be fused or not: only float32 arithmetic is promised to the bit
        return named
    if len(shape) == 4:
        named["q_sample channels_last"] = q_sample(x.to(memory_format=torch.channels_last), t, schedule, key)
    named["q_sample"] = q_sample(x, t, schedule, key)
    named["q_step"] = q_step(x, t, schedule, key)
    for variance in ("fixed_small", "fixed_large"):
        rows = samplers.ddpm(schedule, "epsilon", variance)
        named[f"x_prev {variance}"], named[f"x_0 {variance}"] = reverse_step(out, x, t, rows, key)
    out.requires_grad_()
    loss = mse_loss(out, t, schedule, key, x, prediction_type="v_prediction", weight="min_snr", reduction="none")
    named["mse_loss"] = loss.detach()
    named["mse_loss gradient"] = torch.autograd.grad(loss.sum(), out)[0]
    return named


def digest(x):
    return hashlib.sha256(x.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def digests(count):
    with threads(count):
        return {name: digest(x) for name, x in outputs().items()}


if __name__ == "__main__":
    json.dump(digests(int(sys.argv[1])), sys.stdout)
