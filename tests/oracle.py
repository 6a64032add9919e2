"""The noise contract (docs/noise.md) once more, in numpy and float64, from its text alone: no fastddpm in it."""

import numpy as np

MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
LARGEST = float(np.nextafter(np.float32(np.sqrt(66 * np.log(2))), np.float32(np.inf)))
"""No normal is larger: the smallest u is 2^-33, and sqrt(66 ln 2) = 6.7637 within the rounding."""


def philox(counter, key):
    """Philox4x32-10: four uint64 arrays of 32-bit words from four counter words and two key words."""
    c0, c1, c2, c3 = (np.asarray(x, np.uint64) for x in counter)
    k0, k1 = (np.asarray(x, np.uint64) for x in key)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & MASK, (p0 >> SHIFT) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & MASK, (k1 + np.uint64(0xBB67AE85)) & MASK
    return c0, c1, c2, c3


def split(value):
    """An integer modulo 2^64 as (low, high) words."""
    value %= 1 << 64
    return np.uint64(value & 0xFFFFFFFF), np.uint64(value >> 32)


def subsequence(step, sample, stream=0):
    return stream << 60 | step << 32 | sample


def words(seed, sub, blocks):
    low, high = split(sub)
    blocks = np.asarray(blocks, np.uint64)
    counter = (blocks & MASK, blocks >> SHIFT, np.full_like(blocks, low), np.full_like(blocks, high))
    return philox(counter, split(seed))


def uniform(word):
    """u = fma(float32(w), 2^-32, 2^-33): the float64 sum is exact, so the cast is the fma's one rounding."""
    exact = np.asarray(word, np.uint64).astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33
    return exact.astype(np.float32).astype(np.float64)


def radius(word):
    return np.sqrt(-2 * np.log(uniform(word)))


def cos_sin(word):
    angle = 2 * np.pi * (np.asarray(word, np.uint64).astype(np.float64) / 2.0**32)
    return np.cos(angle), np.sin(angle)


def normals(seed, sub, count):
    """float64 `[count]`: the normals of one sample."""
    w0, w1, w2, w3 = words(seed, sub, np.arange((count + 3) // 4))
    (c1, s1), (c3, s3) = cos_sin(w1), cos_sin(w3)
    r0, r2 = radius(w0), radius(w2)
    return np.stack([r0 * c1, r0 * s1, r2 * c3, r2 * s3], 1).reshape(-1)[:count]


def timestep(seed, step, sample, num_timesteps):
    word = words(seed, subsequence(step, sample, stream=3), [0])[0][0]
    return (int(word) * num_timesteps) >> 32
