"""The noise contract (docs/noise.md): known answers, the float64 oracle, the reference's bits on any instruction set,
number of threads, batch split and memory format; limits, independence and distribution on samples."""

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import digest
import numpy as np
import oracle
import pytest
import torch
from helpers import INSTRUCTION_SETS, LAYOUTS, NOT_BUILT, on_reference, same_bits, values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastddpm import STREAMS, NoiseSchedule, advance, noise_key, q_sample, randn, timesteps
from fastddpm.noise import with_stream
from fastddpm.reference import philox

ROOT = Path(__file__).parents[1]
TOLERANCE = 2e-6
"""Absolute, of float32 normals against float64 Box-Muller of the same words."""


def row(seed, sub):
    """A key of one row, from integers modulo 2^64."""
    return torch.from_numpy(np.array([[seed % 2**64, sub % 2**64]], np.uint64).view(np.int64))


def bits(z):
    return [f"{b & 0xFFFFFFFF:08x}" for b in z.contiguous().view(torch.int32).flatten().tolist()]


# ---- known answers ----


@pytest.mark.parametrize(
    ("block", "sub", "seed", "expected"),
    [
        (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, 2**64 - 1, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0x85A308D3243F6A88, 0x0370734413198A2E, 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_words_are_the_published_ones(block, sub, seed, expected):
    key = row(seed, sub)
    counter = row(block, 0)[:, 0]
    assert " ".join(f"{int(w):08x}" for w in philox.philox(counter, key[:, 0], key[:, 1])) == expected
    assert " ".join(f"{int(w[0]):08x}" for w in oracle.words(seed, sub, [block])) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ({"seed": 3, "step": 7}, "3fed596d bf45a229 3f6d023c bf805664 bee35fc6 3eb39538 3f966f17 bf062d85"),
        (
            {"seed": -1, "step": 2**28 - 1, "first_sample": 2**32 - 1, "stream": 15},
            "bfcac635 3f17be11 3e93eb5e 3fa05848 befcb0f2",
        ),
    ],
)
def test_known_normals_as_bits(key, expected):
    key, expected = noise_key(**key), expected.split()
    assert bits(randn(key, (1, len(expected)))) == expected
    assert bits(philox.normals(key, len(expected))) == expected


OF_STREAMS = re.findall(r'^\| "(\w+)" \| `([ \da-f]+)` \|$', (ROOT / "docs" / "noise.md").read_text(), re.M)


@pytest.mark.parametrize(("stream", "expected"), OF_STREAMS)
def test_known_normals_of_streams(stream, expected):
    key = noise_key(3, 7, 1, stream=stream)
    assert bits(randn(key, (1, 4))) == expected.split()
    assert torch.equal(with_stream(noise_key(3, 7, 1, stream="user_2"), stream), key)


# ---- accuracy ----


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=st.integers(-(2**70), 2**70),
    step=st.integers(0, 2**28 - 1),
    sample=st.integers(0, 2**32 - 3),
    stream=st.integers(0, 15),
    count=st.integers(1, 70),
)
def test_normals_and_timesteps_are_the_oracles(seed, step, sample, stream, count):
    key = noise_key(seed, step, 3, first_sample=sample, stream=stream)
    z, t = randn(key, (3, count)), timesteps(key, 1000)
    for b in range(3):
        exact = oracle.normals(seed, oracle.subsequence(step, sample + b, stream), count)
        assert np.abs(z[b].double().numpy() - exact).max() <= TOLERANCE
        assert int(t[b]) == oracle.timestep(seed, step, sample + b, 1000)


def test_a_long_sample_is_the_oracles():
    z = randn(noise_key(12, 34, 1, first_sample=56), (1, 400003))[0]
    assert np.abs(z.double().numpy() - oracle.normals(12, oracle.subsequence(34, 56), 400003)).max() <= TOLERANCE
    assert float(z.abs().max()) <= oracle.LARGEST


ROUNDED_TWICE = 369030640
"""A word whose sine differs in the last bit where a float64 sum stands for the fma: found by going through all 2^32."""


def _sample_of_words():
    """Every edge of the integer, of its conversion to float32 and of a quadrant, and 2^20 words between."""
    edges = [edge + near for edge in range(0, 2**32 + 1, 2**29) for near in range(-3, 4)]
    edges += [2**e + near for e in range(33) for near in (-129, -128, -127, -1, 0, 1, 127, 128, 129)]
    even = np.linspace(0, 2**32 - 1, 2**19).astype(np.int64)
    random = np.random.default_rng(0).integers(0, 2**32, 2**19)
    words = np.concatenate((np.array([*edges, ROUNDED_TWICE]), even, random))
    return torch.from_numpy(words[(words >= 0) & (words < 2**32)])


def test_radius_and_angle_are_accurate():
    words = _sample_of_words()
    radius, angle = philox.radius(words), philox.cos_sin(words)
    assert np.abs(radius.double().numpy() - oracle.radius(words.numpy())).max() <= TOLERANCE / 2
    for got, exact in zip(angle, oracle.cos_sin(words.numpy()), strict=True):
        assert np.abs(got.double().numpy() - exact).max() <= TOLERANCE / 16
        assert float(got.abs().max()) <= 1
    assert float(radius.min()) == 0 and float(radius.max()) <= oracle.LARGEST


def _random_floats(generator, count):
    """Of every exponent, subnormals and infinities among them, with many trailing zeros in some."""
    raw = torch.randint(-(2**31), 2**31, (count,), generator=generator).int()
    mask = -1 << torch.randint(0, 24, (count,), generator=generator)
    return (raw & mask.int()).view(torch.float32)


def test_the_reference_fma_rounds_once():
    """Against integer arithmetic without rounding: numpy's long double would be too short."""
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    a, b, c = (_random_floats(generator, 3000) for _ in range(3))
    ulps = torch.randint(-2, 3, (3000,), generator=generator)
    near = (-(a.double() * b.double()).float() * (1 + 2.0**-23 * ulps)).float()
    c = torch.where(torch.rand(3000, generator=generator) < 0.5, near, c)
    keep = a.isfinite() & b.isfinite() & c.isfinite() & ((a.double() * b.double()).abs() < 1e38) & (c.abs() < 1e38)
    a, b, c = a[keep], b[keep], c[keep]
    got = philox.fma(a, b, c)
    for x, y, z, value in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        lower, upper = (np.nextafter(np.float32(value), np.float32(s), dtype=np.float32) for s in (-np.inf, np.inf))
        error = abs(Fraction(value) - exact)
        assert all(error <= abs(Fraction(float(other)) - exact) for other in (lower, upper) if np.isfinite(other))


def test_fma_breaks_a_tie_that_float64_makes():
    """1 + 2^-24 + 2^-60: float64 rounds the tail away, and what is left is a tie of float32 that would go down."""
    a = torch.tensor([2.0**-30])
    assert philox.fma(a, a, torch.tensor([1 + 2.0**-24], dtype=torch.float64)).item() == 1 + 2.0**-23
    assert (a.double() * a.double() + (1 + 2.0**-24)).float().item() == 1


# ---- the same bits everywhere ----


def _digests_elsewhere(isa, *arguments):
    command = [sys.executable, str(Path(__file__).with_name("digest.py")), *arguments]
    run = subprocess.run(command, env={**os.environ, "FASTDDPM_ISA": isa}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def reference_digests():
    with on_reference():
        return digest.digests(torch.get_num_threads(), near=False)


@pytest.fixture(scope="module")
def digests_here():
    return digest.digests(torch.get_num_threads())


def differing(a, b):
    assert a.keys() == b.keys()
    return [name for name in a if a[name] != b[name]]


def test_bits_are_the_references(digests_here, reference_digests):
    assert not differing({name: digests_here[name] for name in reference_digests}, reference_digests)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_bits_on_any_number_of_threads(count, digests_here):
    if not INSTRUCTION_SETS:
        pytest.skip(NOT_BUILT)
    assert not differing(digest.digests(count), digests_here)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_bits_on_every_instruction_set(isa, size, digests_here):
    """Of small results, and of large ones, which lie in other memory and are written past the caches."""
    if isa not in INSTRUCTION_SETS:
        pytest.skip(f"this CPU cannot run it: {INSTRUCTION_SETS}" if INSTRUCTION_SETS else NOT_BUILT)
    assert not differing(_digests_elsewhere(isa, "2", size), digests_here)


@pytest.mark.parametrize("count", [1, 4, 5, 127, 4097])
def test_a_batch_split_in_two_draws_the_same(count):
    whole = noise_key(5, 6, 12, first_sample=100)
    parts = (noise_key(5, 6, 5, first_sample=100), noise_key(5, 6, 7, first_sample=105))
    assert torch.equal(torch.cat(parts), whole)
    assert same_bits(torch.cat([randn(k, (len(k), count)) for k in parts]), randn(whole, (12, count)))
    assert torch.equal(torch.cat([timesteps(k, 1000) for k in parts]), timesteps(whole, 1000))


def test_a_sample_begins_as_its_longer_self():
    """The block is the element's: the normals of D elements are the first D of any more."""
    key = noise_key(1, 2, 3)
    longest = randn(key, (3, 300))
    for count in range(1, 70):
        assert same_bits(randn(key, (3, count)), longest[:, :count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_the_float32_normal_cast(dtype):
    key = noise_key(1, 2, 3)
    assert same_bits(randn(key, (3, 1001), dtype), randn(key, (3, 1001)).to(dtype))


@pytest.mark.parametrize("size", [(3, 4, 5, 7), (2, 3, 32, 32), (5, 1, 3, 3), (2, 130, 2, 1)])
def test_memory_format_moves_no_normal(size):
    key = noise_key(9, 1, size[0])
    plain = randn(key, size)
    last = randn(key, size, memory_format=torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last) and same_bits(last, plain)
    assert same_bits(plain.flatten(1), randn(key, (size[0], plain[0].numel())))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_in_memory_move_no_normal(layout):
    x, key, schedule = values(3, 5, 6, 7), noise_key(9, 1, 3), NoiseSchedule.linear(1000)
    assert same_bits(q_sample(LAYOUTS[layout](x), 500, schedule, key), q_sample(x, 500, schedule, key))


def test_3d_channels_last_moves_no_normal():
    key = noise_key(9, 1, 2)
    last = randn(key, (2, 3, 4, 5, 6), memory_format=torch.channels_last_3d)
    assert same_bits(last, randn(key, (2, 3, 4, 5, 6)))


# ---- keys ----


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    seed=st.integers(-(2**70), 2**70),
    step=st.integers(0, 2**28 - 1),
    first=st.integers(0, 2**32 - 4),
    stream=st.integers(0, 15),
)
def test_a_key_lays_out_seed_stream_step_and_sample(seed, step, first, stream):
    key = noise_key(seed, step, 4, first_sample=first, stream=stream).numpy().view(np.uint64)
    assert key[:, 0].tolist() == [seed % 2**64] * 4
    assert key[:, 1].tolist() == [oracle.subsequence(step, first + b, stream) for b in range(4)]


def test_seeds_are_taken_modulo_2_to_the_64():
    z = randn(noise_key(-1), (1, 8))
    assert torch.equal(z, randn(noise_key(2**64 - 1), (1, 8))) and torch.equal(z, randn(noise_key(2**65 - 1), (1, 8)))
    assert not torch.equal(z, randn(noise_key(2**32 - 1), (1, 8)))


def test_streams_are_numbered_as_published():
    """By the table of docs/noise.md; no name means training."""
    rows = re.findall(r'^\| (\d+) \| "(\w+)" \|', (ROOT / "docs" / "noise.md").read_text(), re.M)
    assert {name: int(number) for number, name in rows} == STREAMS
    assert sorted(STREAMS.values()) == list(range(16))
    for name, number in STREAMS.items():
        assert torch.equal(noise_key(4, 5, 3, stream=name), noise_key(4, 5, 3, stream=number))
    assert torch.equal(noise_key(4, 5, 3), noise_key(4, 5, 3, stream="training"))


def test_an_image_depends_on_its_seed_not_on_its_place():
    seeds = torch.tensor([7, -3, 2**62, 7])
    key = noise_key(seeds, 4, stream=2)
    z = randn(key, (4, 33))
    for b, seed in enumerate(seeds.tolist()):
        assert torch.equal(key[b], noise_key(seed, 4, stream=2)[0])
        assert same_bits(z[b], randn(noise_key(seed, 4, stream=2), (1, 33))[0])
    assert torch.equal(noise_key(seeds.int()[:2], 4, 2, stream=2), key[:2])
    assert noise_key(seeds, first_sample=3)[:, 1].tolist() == [3] * 4


def test_an_empty_batch_has_an_empty_key():
    key = noise_key(0, 0, 0)
    assert key.shape == (0, 2) and advance(key).shape == (0, 2)
    assert randn(key, (0, 3, 8, 8)).shape == (0, 3, 8, 8) and timesteps(key, 10).shape == (0,)
    assert noise_key(torch.empty(0, dtype=torch.int64)).shape == (0, 2)


def test_one_sample_without_a_batch_size():
    assert noise_key(8).shape == (1, 2) and randn(noise_key(8), (1,)).shape == (1,)


# ---- advance ----


def test_advance_is_the_key_of_a_later_step():
    key = noise_key(-9, 10, 3, first_sample=2**32 - 3, stream=15)
    same = advance(key, 5)
    assert same is key and torch.equal(key, noise_key(-9, 15, 3, first_sample=2**32 - 3, stream=15))
    assert torch.equal(advance(key, -15), noise_key(-9, 0, 3, first_sample=2**32 - 3, stream=15))
    assert torch.equal(advance(key), noise_key(-9, 1, 3, first_sample=2**32 - 3, stream=15))
    assert torch.equal(advance(key, 2**28 - 2), noise_key(-9, 2**28 - 1, 3, first_sample=2**32 - 3, stream=15))


def test_advance_works_on_a_part_of_a_key():
    key = noise_key(1, 2, 6)
    advance(key[::2], 3)
    assert torch.equal(key[::2], noise_key(1, 5, 6)[::2]) and torch.equal(key[1::2], noise_key(1, 2, 6)[1::2])


@pytest.mark.parametrize(("step", "steps"), [(2**28 - 1, 1), (5, -6), (0, 2**28), (3, 2**40), (3, -(2**60))])
def test_advance_past_either_end_changes_nothing(step, steps):
    key = torch.cat((noise_key(1, step, 2), noise_key(1, 100, 2)))
    before = key.clone()
    with pytest.raises(OverflowError, match=rf"steps: expected .*2\^28.*, got {steps}"):
        advance(key, steps)
    assert torch.equal(key, before)


# ---- timesteps ----


def test_timesteps_name_stream_3_whatever_the_key_names():
    expected = timesteps(noise_key(4, 5, 50, stream=3), 1000)
    for stream in range(16):
        assert torch.equal(timesteps(noise_key(4, 5, 50, stream=stream), 1000), expected)
    assert expected.dtype == torch.int64


@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 50, 1000, 2**31 - 1])
def test_timesteps_stay_in_range(num_timesteps):
    t = timesteps(noise_key(1, 2, 5000), num_timesteps)
    assert int(t.min()) >= 0 and int(t.max()) < num_timesteps
    assert int(t[77]) == oracle.timestep(1, 2, 77, num_timesteps)


def test_timesteps_are_uniform():
    counts = torch.bincount(timesteps(noise_key(1, 2, 10**6), 1000), minlength=1000).numpy()
    assert 1e-6 < stats.chisquare(counts).pvalue < 1 - 1e-6


# ---- distribution and independence, on samples small enough for every run ----


@pytest.fixture(scope="module")
def draws():
    return randn(noise_key(2024, 0, 64), (64, 2**16)).double().numpy()


def test_moments(draws):
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((draws**power).mean() - expected) < 5 * np.sqrt(variance / draws.size)


@pytest.mark.parametrize("element", range(4))
def test_each_of_a_blocks_four_normals_is_normal(draws, element):
    """Kolmogorov-Smirnov at a level of 1e-6."""
    z = draws[:, element::4].ravel()[: 2**20]
    assert stats.kstest(z, "norm").statistic < np.sqrt(-np.log(1e-6 / 2) / 2 / z.size)


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0, 4.0])
def test_tails(draws, bound):
    rate = 2 * stats.norm.sf(bound)
    assert abs((np.abs(draws) > bound).sum() - draws.size * rate) < 5 * np.sqrt(draws.size * rate)


def assert_independent(a, b):
    """No correlation of the values, of their squares (scaled to mean 0 and variance 1) or of their signs."""
    for f in (lambda x: x, lambda x: (x**2 - 1) / np.sqrt(2), np.sign):
        assert abs((f(a) * f(b)).mean()) < 5 / np.sqrt(a.size)


NEIGHBOURS = [{"seed": 1}, {"step": 1}, {"stream": 1}, {"seed": 2**32}, {"first_sample": 2**31}]


@pytest.mark.parametrize("change", NEIGHBOURS, ids=str)
def test_neighbouring_keys_are_independent(change):
    shape = (16, 2**14)
    a = randn(noise_key(0, 0, 16), shape).double().numpy()
    moved = {"seed": 0, "step": 0, **change}
    b = randn(noise_key(**moved, batch_size=16), shape).double().numpy()
    assert_independent(a, b)


def test_neighbouring_samples_are_independent(draws):
    assert_independent(draws[:-1], draws[1:])


def test_neighbouring_elements_are_independent(draws):
    for lag in (1, 2, 3, 4, 5, 8, 64, 4096):
        assert_independent(draws[:16, :-lag], draws[:16, lag:])


def test_the_noise_is_independent_of_its_timestep():
    key = noise_key(5, 5, 10**5)
    z, t = randn(key, (10**5, 4)).double(), timesteps(key, 1000).double()
    t = (t - t.mean()) / t.std()
    assert all(abs(float((z[:, e] * t).mean())) < 5 / np.sqrt(10**5) for e in range(4))


def test_all_keys_of_a_run_are_different():
    batches = product((0, 1, 2), (0, 7), (0, 1))
    keys = torch.cat([noise_key(1, step, 7, first_sample=first, stream=stream) for step, first, stream in batches])
    assert len(keys.unique(dim=0)) == len(keys) == 84
