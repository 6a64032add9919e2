"""The noise contract at full size: radius and angle over all 2^32 words (bits and accuracy, C++ and reference),
Kolmogorov-Smirnov at 10^8 draws, moments and tails at 10^9. `make test-slow`: minutes on two cores."""

import numpy as np
import oracle
import pytest
import torch
from helpers import INSTRUCTION_SETS, NOT_BUILT
from scipy.special import ndtr
from scipy.stats import norm

from fastddpm import noise_key, randn
from fastddpm.reference import philox

pytestmark = pytest.mark.slow

CHUNK = 1 << 22
CHUNKS = range(0, 1 << 32, CHUNK)
built = pytest.mark.skipif(not INSTRUCTION_SETS, reason=NOT_BUILT)


def distinct(words, number):
    """The chunk's words without those whose float32 `number` is their neighbour's, and how many each stands for.

    Radius and angle depend on a word through one conversion to float32, which rounds runs of neighbours to one number:
    84 million of the 2^32 are left.
    """
    _, counts = torch.unique_consecutive(number(words), return_counts=True)
    return words[counts.cumsum(0) - counts], counts


def radius_number(words):
    return words.float()


def angle_number(words):
    """The signed distance to the nearest quarter turn, times 4."""
    rest = (words << 2) & 0xFFFFFFFF
    return torch.where(rest >= 1 << 31, rest - (1 << 32), rest).float()


def chunks(number):
    for begin in CHUNKS:
        words = torch.arange(begin, begin + CHUNK)
        yield words, *distinct(words, number)


def kernel_normals(words):
    """float32 `[N, 4]` from the C++ kernels."""
    out = torch.empty(words.shape, dtype=torch.float32)
    torch.ops.fastddpm.box_muller_(out, words)
    return out


def equal(a, b):
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


# ---- exhaustive ----


def test_a_chunk_is_the_sum_of_its_distinct_words():
    """The shortcut itself, on chunks of every kind: what it leaves out has the bits of what it keeps."""
    for begin in (0, 1 << 24, (1 << 29) - CHUNK // 2, (1 << 30) - CHUNK // 2, 1 << 31, (1 << 32) - CHUNK):
        words = torch.arange(begin, begin + CHUNK)
        kept, counts = distinct(words, radius_number)
        assert equal(philox.radius(words), philox.radius(kept).repeat_interleave(counts))
        kept, counts = distinct(words, angle_number)
        for all_words, some in zip(philox.cos_sin(words), philox.cos_sin(kept), strict=True):
            assert equal(all_words, some.repeat_interleave(counts))


def test_radius_of_every_word_is_accurate():
    worst = 0.0
    for _, words, _ in chunks(radius_number):
        worst = max(worst, np.abs(philox.radius(words).double().numpy() - oracle.radius(words.numpy())).max())
    assert worst <= 1e-6


def test_cosine_and_sine_of_every_word_are_accurate():
    """At both ends of each run of words that share a number: between them the truth is between."""
    worst = 0.0
    for all_words, words, counts in chunks(angle_number):
        last, both = words + counts - 1, philox.cos_sin(words)
        for ends in (words, last):
            for got, exact in zip(both, oracle.cos_sin(ends.numpy()), strict=True):
                worst = max(worst, np.abs(got.double().numpy() - exact).max())
        assert int(last[-1]) == int(all_words[-1])
    assert worst <= 2e-7


@built
def test_radius_of_every_word_has_the_references_bits():
    """At angle 0 the cosine is 1 and the sine 0: two words' radii from each block."""
    for words, kept, counts in chunks(radius_number):
        pairs = torch.zeros(CHUNK // 2, 4, dtype=torch.int64)
        pairs[:, 0], pairs[:, 2] = words[::2], words[1::2]
        assert equal(kernel_normals(pairs)[:, ::2].reshape(-1), philox.radius(kept).repeat_interleave(counts))


def _word_of_radius_one():
    near = round(np.exp(-0.5) * 2**32) + 32 * torch.arange(-500, 500)
    return int(near[philox.radius(near) == 1][0])


@built
def test_angle_of_every_word_has_the_references_bits():
    """At radius 1 the normals are the cosine and the sine."""
    one = _word_of_radius_one()
    for words, kept, counts in chunks(angle_number):
        pairs = torch.full((CHUNK // 2, 4), one)
        pairs[:, 1], pairs[:, 3] = words[::2], words[1::2]
        z = kernel_normals(pairs).view(-1, 2)
        cos, sin = philox.cos_sin(kept)
        assert equal(z[:, 0], cos.repeat_interleave(counts)) and equal(z[:, 1], sin.repeat_interleave(counts))


# ---- the Triton kernels' root without a branch ----


def roots_arguments(size=1 << 18):
    """Every -2 ln u, by the float32 numbers that words round to: 0 .. 2^24, and the floats from there to 2^32."""
    first, last = (int(torch.tensor(2.0**n).view(torch.int32)) for n in (24, 32))
    before = None
    for begin in range(0, (1 << 24) + last - first + 1, size):
        i = torch.arange(begin, min(begin + size, (1 << 24) + last - first + 1), dtype=torch.int32)
        number = torch.where(i < 1 << 24, i.float(), (i - (1 << 24) + first).view(torch.float32))
        x = torch.unique_consecutive(philox.minus_2_ln(number))
        yield x[1:] if before is not None and x[0] == before else x
        before = x[-1]


def root(x, r):
    """kernels/triton/philox.py's, of any r."""
    h, y = 0.5 * r, x * r
    d = philox.fma(-y, h, 0.5)
    h = philox.fma(h, d, h)
    y = philox.fma(y, d, y)
    return philox.fma(philox.fma(-y, y, x), h, y)


def test_the_root_without_a_branch_is_sqrt_rn_for_every_rsqrt_within_3_ulp():
    count = 0
    for x in roots_arguments():
        count += len(x)
        nearest = x.clamp(min=1e-30).double().rsqrt().float().view(torch.int32)
        for ulps in range(-3, 4):
            assert equal(root(x, (nearest + ulps).view(torch.float32)), x.double().sqrt().float())
    assert count == 39_104_402


# ---- distribution ----


def draws(seed, total, piece=1 << 24):
    """`total` draws in pieces: step by step, four samples each."""
    for step in range(-(-total // piece)):
        yield randn(noise_key(seed, step, 4), (4, piece // 4)).flatten()[: total - step * piece]


def test_kolmogorov_smirnov_at_1e8():
    """At a level of 1e-6; exact: every draw is compared."""
    total = 10**8
    z = np.sort(torch.cat(list(draws(7, total))).numpy())
    distance = 0.0
    for begin in range(0, total, 1 << 24):
        cdf = ndtr(z[begin : begin + (1 << 24)].astype(np.float64))
        rank = np.arange(begin, begin + len(cdf))
        distance = max(distance, (cdf - rank / total).max(), ((rank + 1) / total - cdf).max())
    assert distance < np.sqrt(-np.log(1e-6 / 2) / 2 / total)


def test_moments_and_tails_at_1e9():
    total, bounds = 10**9, (3.0, 4.0, 5.0, 5.5, 6.0)
    sums, beyond = np.zeros(4), np.zeros(len(bounds))
    for z in draws(11, total):
        wide, size = z.double(), z.abs()
        sums += [float(x) for x in (wide.sum(), (wide**2).sum(), (wide**3).sum(), (wide**4).sum())]
        beyond += [int((size > bound).sum()) for bound in bounds]
    for moment, expected, variance in zip(sums / total, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) < 5 * np.sqrt(variance / total)
    for count, bound in zip(beyond, bounds, strict=True):
        expected = 2 * norm.sf(bound) * total
        assert abs(count - expected) < 5 * np.sqrt(expected)
