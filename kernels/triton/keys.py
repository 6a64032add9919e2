# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The ops on keys, and the noise alone (twin: kernels/cpu/keys.h).

    key[b] = (seed, subsequence + b);  advance: step += steps modulo 2^28, the step being bits 32..59 of the subsequence
    t[b] = mulhi(w[0], T) of block 0 of sample b's key in stream 3;  randn: z[b, e], cast

Moves: 16 bytes a sample; randn writes its output.
"""

import torch
from torch import Tensor

import triton
import triton.language as tl

from ..reference.keys import STEP_MASK, TIMESTEP_STREAM
from .launcher import launch
from .philox import words
from .tile import tile, tile_normals, tiles_of, write

_STEP_MASK = tl.constexpr(STEP_MASK)
_TIMESTEP_STREAM = tl.constexpr(TIMESTEP_STREAM << 28)
_BLOCK = 128  # samples a program


@triton.jit(do_not_specialize=["seed", "subsequence", "batch"])
def fill_key_kernel(key_ptr, seed: tl.int64, subsequence: tl.int64, batch, BLOCK: tl.constexpr):
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < batch
    tl.store(key_ptr + sample * 2, tl.full((BLOCK,), seed, tl.int64), mask=mask)
    tl.store(key_ptr + sample * 2 + 1, subsequence + sample, mask=mask)


@triton.jit(do_not_specialize=["steps", "batch"])
def advance_kernel(key_ptr, steps, batch, BLOCK: tl.constexpr):
    """`steps` comes reduced modulo 2^28, so that its type never changes."""
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < batch
    subsequence = tl.load(key_ptr + sample * 2 + 1, mask=mask)
    step = ((subsequence >> 32) + steps) & _STEP_MASK
    field = tl.full((BLOCK,), _STEP_MASK, tl.int64) << 32
    tl.store(key_ptr + sample * 2 + 1, (subsequence & ~field) | (step << 32), mask=mask)


@triton.jit
def uniform_timestep(seed, subsequence, zero, num_timesteps):
    """Of a key, or of a block of keys, with a zero of that shape."""
    upper = ((subsequence >> 32) & _STEP_MASK) | _TIMESTEP_STREAM
    w0, _, _, _ = words(zero, zero, seed, (upper << 32) | (subsequence & 0xFFFFFFFF))
    return tl.umulhi(w0, num_timesteps.to(tl.uint32)).to(tl.int64)


@triton.jit(do_not_specialize=["num_timesteps", "batch"])
def timesteps_kernel(t_ptr, key_ptr, num_timesteps, batch, BLOCK: tl.constexpr):
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < batch
    seed, subsequence = tl.load(key_ptr + sample * 2, mask=mask), tl.load(key_ptr + sample * 2 + 1, mask=mask)
    zero = tl.zeros((BLOCK,), tl.uint32)
    tl.store(t_ptr + sample, uniform_timestep(seed, subsequence, zero, num_timesteps), mask=mask)


@triton.jit
def randn_kernel(out_ptr, key_ptr, elements, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    _, place = tile(elements, CHANNELS, BLOCK)
    write(out_ptr, place, tile_normals(key_ptr, elements, CHANNELS, BLOCK))


def fill_key_(key: Tensor, seed: int, subsequence: int) -> None:
    _in_place(fill_key_kernel, key, seed, subsequence)


def advance_(key: Tensor, steps: int) -> None:
    _in_place(advance_kernel, key, steps & STEP_MASK)


def timesteps(key: Tensor, num_timesteps: int) -> Tensor:
    t = key.new_empty(key.shape[0])
    _over_samples(timesteps_kernel, key.shape[0], t, key.contiguous(), num_timesteps)
    return t


def _in_place(kernel, key: Tensor, *arguments) -> None:
    rows = key.contiguous()  # the key itself, but for a strided view of one
    _over_samples(kernel, len(key), rows, *arguments)
    if rows is not key:
        key.copy_(rows)


def _over_samples(kernel, batch: int, first: Tensor, *arguments) -> None:
    if batch:
        launch(first, kernel, triton.cdiv(batch, _BLOCK), _BLOCK // 32, (first, *arguments, batch), (_BLOCK,))


def randn_(out: Tensor, key: Tensor) -> None:
    if out.numel() == 0:
        return
    layout, channels, elements, (programs, block, num_warps) = tiles_of(out, key)
    target = out if out.is_contiguous(memory_format=layout) else torch.empty_like(out, memory_format=layout)
    launch(out, randn_kernel, programs, num_warps, (target, key.contiguous(), elements), (channels, block))
    if target is not out:
        out.copy_(target)
