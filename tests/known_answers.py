"""What an install must give: the kernels are there, and their noise is docs/noise.md's. Needs nothing but the package."""

import re
import sys
from pathlib import Path

import torch

import fastddpm as fd
from fastddpm import _extension

DOCUMENT = Path(__file__).parents[1] / "docs" / "noise.md"


def main():
    assert _extension.module, _extension.reason
    section = DOCUMENT.read_text().split("Known answers, as bits: seed 3, step 7, sample 0")[1]
    words = re.findall(r"\b[0-9A-Fa-f]{8}\b", section)[:8]
    z = fd.randn(fd.noise_key(3, 7, 1), (1, 8))
    got = [f"{n & 0xFFFFFFFF:08X}" for n in z.view(torch.int32)[0].tolist()]
    assert got == [word.upper() for word in words], (got, words)
    x = torch.ones(1, 8, requires_grad=True)
    schedule = fd.NoiseSchedule.linear(1000)
    fd.mse_loss(fd.q_sample(x, 500, schedule, fd.noise_key(3, 7, 1)), 500, schedule, fd.noise_key(3, 7, 1)).backward()
    assert bool(x.grad.isfinite().all())
    print(Path(fd.__file__).parent, _extension.module.isa, "torch", torch.__version__, "Python", sys.version.split()[0])


if __name__ == "__main__":
    main()
