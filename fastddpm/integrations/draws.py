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
    if generator is None:
        return torch.randint(INT64.min, INT64.max, (batch, 2), device=device)
    if isinstance(generator, Generator):
        return torch.randint(INT64.min, INT64.max, (batch, 2), generator=generator, device=generator.device).to(device)
    if len(generator) == 1:
        return drawn_key(batch, device, generator[0])
    return torch.cat([drawn_key(1, device, one) for one in generator[:batch]])
