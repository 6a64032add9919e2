"""Keys in the place of the noise that a method would have drawn, and the layout that its noise would have had."""

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


def in_layout_of(output: Tensor, x: Tensor) -> Tensor:
    """x, laid out as a network's output. Where the network predicts an image, the original's next one is laid out so, and
    with it the noise that `torch.randn_like` draws for it."""
    laid_out = torch.empty_like(output[:, : x.shape[1]], dtype=x.dtype)
    return x if x.stride() == laid_out.stride() else laid_out.copy_(x)
