"""The kernels' own conversions of float16 are torch's: all 2^16 numbers and every rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import INSTRUCTION_SETS, NOT_BUILT, same_bits

from fastddpm import ops

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason=NOT_BUILT)

HALVES = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
STEP = torch.tensor(0)


def roundings():
    """Every finite float16's midpoint to the next, what lies on either side of it by a float's spacing, and beyond them all."""
    below = HALVES[HALVES.isfinite()].float()
    above = torch.nextafter(below.half(), below.half() * torch.inf).float()
    middle = torch.where(above.isfinite(), (below + above) / 2, below.sign() * 65520)
    tiny = torch.tensor([1e-45, -1e-45, 1e-38, torch.inf, -torch.inf, torch.nan, 3e38, -3e38])
    return torch.cat((below, middle, *(torch.nextafter(middle, middle * far) for far in (0, torch.inf)), tiny))


def converted(x, dtype):
    """x in another dtype, as mse's gradient, which has the output's: of an output of 0 and a target of -x."""
    rows = torch.tensor([[0.0, -1.0, 0.0, x.numel() / 2]])
    return ops.mse_loss(torch.zeros_like(x, dtype=dtype), None, x, None, STEP, rows, 1, True)[1]


def every_second(x):
    return torch.stack((x, x), -1)[..., 0]


def check():
    for place in (torch.clone, every_second):
        halves, floats = place(HALVES[None]), place(roundings()[None])
        assert same_bits(converted(halves, torch.float32) + 0.0, halves.float() + 0.0)
        assert same_bits(converted(floats, torch.float16) + 0.0, floats.half() + 0.0)
        assert same_bits(ops.noising(halves, None, STEP, torch.ones(1, 2)), halves), "the sign of a zero too"


@pytest.mark.parametrize("flushed", [False, True], ids=["", "where subnormal floats are taken for 0"])
def test_conversions_are_torchs(flushed):
    torch.set_flush_denormal(flushed)
    try:
        check()
    finally:
        torch.set_flush_denormal(False)


def test_conversions_of_any_cpu_are_torchs():
    code = "import test_float16 as t; t.test_conversions_are_torchs(False); t.test_conversions_are_torchs(True)"
    environment = {**os.environ, "FASTDDPM_ISA": "portable", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
