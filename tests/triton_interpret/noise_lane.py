# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""Words, normals, keys and the noise alone."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from fastddpm.kernels import philox
from helpers import LAYOUTS, same_bits
from interpreted import DTYPES, IMAGE, SIZES, key, same

from fastddpm import kernels, noise_key, reference
from fastddpm.reference import philox as specified

WORDS = torch.cat(
    (
        torch.arange(0, 1 << 32, 1_048_573),
        (torch.arange(0, 1 << 32, 1 << 29)[:, None] + torch.arange(-40, 40)).flatten() & 0xFFFFFFFF,
        0xFFFFFFFF - (1 << torch.arange(32)),
        1 << torch.arange(32),
    )
)
"""A dense sample, both ends, round every eighth of a turn, every power of two."""


# ---- words and normals ----


@triton.jit
def words_kernel(out_ptr, counter_ptr, seed_ptr, subsequence_ptr, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    counter = tl.load(counter_ptr + lane)
    seed, subsequence = tl.load(seed_ptr + lane), tl.load(subsequence_ptr + lane)
    w = philox.words(counter.to(tl.uint32), (counter >> 32).to(tl.uint32), seed, subsequence)
    for i in tl.static_range(4):
        tl.store(out_ptr + i * SIZE + lane, w[i].to(tl.int64))


@triton.jit
def normal_parts_kernel(radius_ptr, cos_ptr, sin_ptr, word_ptr, SIZE: tl.constexpr):
    lane = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    word = tl.load(word_ptr + lane).to(tl.uint32)
    cos, sin = philox.cos_sin(word)
    tl.store(radius_ptr + lane, philox.radius(word))
    tl.store(cos_ptr + lane, cos)
    tl.store(sin_ptr + lane, sin)


def test_words_are_those_of_the_reference_and_the_known_answers():
    draw = np.random.default_rng(1).integers(-(2**63), 2**63, (3, 512))
    draw[:, 0], draw[:, 1] = 0, -1
    draw[:, 2] = [0x85A308D3243F6A88 - (1 << 64), 0x299F31D0A4093822, 0x0370734413198A2E]
    counter, seed, subsequence = torch.from_numpy(draw)
    out = torch.empty(4, 512, dtype=torch.int64)
    words_kernel[(1,)](out, counter, seed, subsequence, SIZE=512)
    assert torch.equal(out, torch.stack(specified.philox(counter, seed, subsequence)))
    known = """6627e8d5 e169c58d bc57ac4c 9b00dbd8  408f276d 41c83b0e a20bc7c6 6d5451fd
        d16cfe09 94fdcceb 5001e420 24126ea1"""
    assert [f"{w:08x}" for w in out[:, :3].t().flatten().tolist()] == known.split()


def normal_parts():
    word = torch.nn.functional.pad(WORDS, (0, -len(WORDS) % 1024))
    parts = torch.full((3, len(word)), torch.nan)
    normal_parts_kernel[(len(word) // 1024,)](*parts, word, SIZE=1024)
    return parts, torch.stack((specified.radius(word), *specified.cos_sin(word)))


def test_radius_and_angle_are_the_reference_s_bits(exact):
    parts, wanted = normal_parts()
    assert same_bits(parts, wanted)


def test_radius_and_angle_without_mending_the_interpreter():
    parts, wanted = normal_parts()
    assert (parts - wanted).abs().max() <= 1e-6


def test_coefficients_are_the_reference_s():
    log = [getattr(philox, f"_L{i}").value for i in range(7)]
    cos, sin = ([getattr(philox, f"_{name}{i}").value for i in range(n)] for name, n in (("C", 3), ("S", 4)))
    assert (log, cos, sin) == (specified.LOG, specified.COS, specified.SIN)
    assert all(np.float32(c) == c for c in log + cos + sin)


# ---- keys ----


@pytest.mark.parametrize("batch", [0, 1, 127, 300])
def test_keys(batch):
    seed, subsequence = -(2**63) + 5, (1 << 61) + (7 << 32) + 3
    made, wanted = torch.zeros(batch, 2, dtype=torch.int64), torch.zeros(batch, 2, dtype=torch.int64)
    kernels.fill_key_(made, seed, subsequence)
    reference.fill_key_(wanted, seed, subsequence)
    assert torch.equal(made, wanted)
    for steps in (1, 1 << 27, 0):
        kernels.advance_(made, steps)
        reference.advance_(wanted, steps)
        assert torch.equal(made, wanted)
    assert torch.equal(kernels.timesteps(made, 1000), reference.timesteps(wanted, 1000))
    assert torch.equal(kernels.timesteps(made, 2**31 - 1), reference.timesteps(wanted, 2**31 - 1))


@pytest.mark.parametrize("stream", [0, 5, 15])
def test_advance_keeps_to_its_28_bits_and_goes_back(stream):
    """The carry out of a step's last bit would count up the stream, but for 15, which has every bit set."""
    at_the_end = noise_key(1, (1 << 28) - 1, 3, stream=stream)
    moved = at_the_end.clone()
    kernels.advance_(moved, 1)
    assert torch.equal(moved, noise_key(1, 0, 3, stream=stream))
    kernels.advance_(moved, -1)
    assert torch.equal(moved, at_the_end)


def test_a_strided_key():
    wide = torch.zeros(6, 2, dtype=torch.int64)
    kernels.fill_key_(wide[::2], 3, 4)
    kernels.advance_(wide[::2], 5)
    assert torch.equal(wide[::2], noise_key(3, 5, 3, first_sample=4)) and not wide[1::2].any()
    assert torch.equal(kernels.timesteps(wide[::2], 50), reference.timesteps(wide[::2], 50))


# ---- the noise alone, in every layout ----


@pytest.mark.parametrize("shape", [s for s in SIZES if len(s) > 1], ids=str)
def test_randn(exact, shape):
    out = torch.full(shape, torch.nan)
    kernels.randn_(out, key(shape[0]))
    assert same_bits(out, specified.normals(key(shape[0]), out[0].numel() if len(out) else 0).view(shape))


CHANNELS_LAST = [(2, 3, 8, 8), (2, 3, 5, 7), (1, 4, 40, 40), (1, 2, 3, 3), (1, 5, 31, 29), (1, 17, 9, 2),
                 (1, 64, 3, 5), (1, 65, 3, 2), (2, 130, 3, 5), (2, 3, 2, 3, 5)]  # fmt: skip


@pytest.mark.parametrize("shape", CHANNELS_LAST, ids=str)
def test_randn_channels_last(exact, shape):
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    out = torch.full(shape, torch.nan).contiguous(memory_format=layout)
    kernels.randn_(out, key(shape[0]))
    assert same_bits(out, specified.normals(key(shape[0]), out[0].numel()).view(shape))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_randn_dtypes_and_layouts(exact, dtype, layout):
    out, wanted = (LAYOUTS[layout](torch.full(IMAGE, torch.nan, dtype=dtype)) for _ in range(2))
    kernels.randn_(out, key(3))
    reference.randn_(wanted, key(3))
    same(out, wanted)


def test_randn_without_mending_the_interpreter():
    out = torch.empty(2, 5000)
    kernels.randn_(out, key(2))
    assert (out - specified.normals(key(2), 5000)).abs().max() <= 2e-6
