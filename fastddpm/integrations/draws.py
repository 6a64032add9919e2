"""Keys for noise that is made in the kernels, drawn from the generator that the noise itself would have come from."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

INT64 = torch.iinfo(torch.int64)


def drawn_key(batch: int, device: torch.device, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
    """A key of 128 random bits a sample, int64 `[B, 2]`: two numbers a sample leave the generator, whatever the image's size.

    Args:
        batch: B.
        device: where the key is wanted. A generator on the CPU draws there, as for diffusers' noise.
        generator: one, one a sample, or None for torch's own.
    """
    if isinstance(generator, Sequence) and len(generator) == 1:
        generator = generator[0]
    if isinstance(generator, Sequence):
        return torch.cat([drawn_key(1, device, one) for one in generator[:batch]])
    at = device if generator is None else generator.device
    return torch.randint(INT64.min, INT64.max, (batch, 2), generator=generator, device=at).to(device)
