"""Draws in the place of the noise that a method would have drawn: of keys, and of nothing."""

from collections.abc import Sequence
from functools import cache

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


def skip_randn_like(x: Tensor) -> None:
    """Leaves torch's generator where `torch.randn_like(x)` would, for a method that draws noise and multiplies it by 0. On the
    CPU the generator's words are drawn and no normals made of them."""
    words = _words(x.numel())
    if x.is_cpu and x.dtype is torch.float32 and x.is_contiguous() and words and _draws_a_word_each():
        torch.empty(words, dtype=torch.uint8, device="cpu").random_()
    else:
        torch.randn_like(x)


def _words(n: int) -> int:
    """Of 32 bits, that torch makes n normals of: it draws the last 16 again where they are no 16. 0 where it does otherwise."""
    return 0 if n < 16 else n + 16 * bool(n % 16)


@cache
def _draws_a_word_each() -> bool:
    """Whether this torch does so: promised nowhere."""

    def state(n: int, normals: bool) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(1)
        if normals:
            torch.randn(n, generator=generator, device="cpu")
        else:
            torch.empty(_words(n), dtype=torch.uint8, device="cpu").random_(generator=generator)
        return generator.get_state()

    return all(torch.equal(state(n, True), state(n, False)) for n in (16, 37, 1000, 4096))
