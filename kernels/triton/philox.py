"""Philox words and the normals made of them, in registers (docs/noise.md; twin: kernels/cpu/philox.h).

    w[0..3] = Philox4x32-10(key = seed, counter = (block, subsequence)),  block = element // 4
    u(w) = fma(float32(w), 2^-32, 2^-33);  r(w) = sqrt(-2 ln u(w));  phi(w) = 2 pi w / 2^32
    z[4 block + 0, 1] = r(w0) cos phi(w1), r(w0) sin phi(w1);  z[4 block + 2, 3] = r(w2) cos phi(w3), r(w2) sin phi(w3)

The operations and their order are those of fastddpm/reference/philox.py, whose coefficients these are: add, mul, explicit fma
and sqrt, each rounded once, so the bits are the same on every backend. Launches pass `enable_fp_fusion=False` to keep it so.
"""

import torch

import triton
import triton.language as tl

from ..reference import philox

_L0, _L1, _L2, _L3, _L4, _L5, _L6 = map(tl.constexpr, philox.LOG)
_C0, _C1, _C2 = map(tl.constexpr, philox.COS)
_S0, _S1, _S2, _S3 = map(tl.constexpr, philox.SIN)
_MINUS_2_LN_2 = tl.constexpr(philox.MINUS_2_LN_2)
_SQRT_HALF_BITS = tl.constexpr(philox.SQRT_HALF_BITS)
_TWO_M31, _TWO_M32, _TWO_M33 = (tl.constexpr(2.0**-n) for n in (31, 32, 33))

BRANCHLESS_ROOT = False
"""Whether the radius is `root` or, until that has run on a GPU, sqrt_rn. AMD's is always sqrt_rn."""

_BRANCHLESS_ROOT = tl.constexpr(BRANCHLESS_ROOT and torch.version.hip is None)


# ---- words ----


@triton.jit
def _mul_hi_lo(a, b: tl.constexpr):
    """The product's upper and lower 32 bits, by one 64-bit multiplication where umulhi and mul would be two."""
    product = a.to(tl.uint64) * b
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def words(c0, c1, seed, subsequence):
    """Philox4x32-10 (Salmon et al. 2011): four uint32 for the counter (c0, c1, subsequence) and the key seed."""
    c2, c3 = subsequence.to(tl.uint32), (subsequence >> 32).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        hi0, lo0 = _mul_hi_lo(c0, 0xD2511F53)
        hi1, lo1 = _mul_hi_lo(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


# ---- normals ----


@triton.jit
def minus_2_ln(x):
    """-2 ln x of a normal x > 0: the exponent times ln 2, and a polynomial in f = mantissa - 1 for the mantissa in
    [sqrt(1/2), sqrt(2))."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(tl.fma(tl.fma(f, _L6, _L5), f, _L4), f, _L3)
    p = tl.fma(tl.fma(tl.fma(p, f, _L2), f, _L1), f, _L0)
    return tl.fma(exponent.to(tl.float32), _MINUS_2_LN_2, tl.fma(f * f, p, -2.0 * f))


@triton.jit
def root(x):
    """sqrt_rn's bits without its branch, for every -2 ln u that a word gives and any rsqrt within 3 ulp."""
    r = tl.rsqrt(tl.maximum(x, 1e-30, propagate_nan=tl.PropagateNan.ALL))
    h = 0.5 * r
    y = x * r
    d = tl.fma(-y, h, 0.5)
    h = tl.fma(h, d, h)
    y = tl.fma(y, d, y)
    return tl.fma(tl.fma(-y, y, x), h, y)


@triton.jit
def radius(word):
    """sqrt(-2 ln u)."""
    return radius_by(word, _BRANCHLESS_ROOT)


@triton.jit
def radius_by(word, BRANCHLESS: tl.constexpr):  # noqa: N803
    """The same by a root of one's choice."""
    x = minus_2_ln(tl.fma(word.to(tl.float32), _TWO_M32, _TWO_M33))
    return root(x) if BRANCHLESS else tl.sqrt_rn(x)


@triton.jit
def cos_sin(word):
    """cos and sin of 2 pi w / 2^32: the nearest quarter turn from the word's top bits, a polynomial in the rest."""
    turned = word + 0x20000000
    x = (word << 2).to(tl.int32, bitcast=True).to(tl.float32) * _TWO_M31
    x2 = x * x
    cos = tl.fma(tl.fma(tl.fma(x2, _C2, _C1), x2, _C0), x2, 1.0)
    sin = x * tl.fma(tl.fma(tl.fma(x2, _S3, _S2), x2, _S1), x2, _S0)
    odd = (turned & 0x40000000) != 0
    c, s = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return flip(c, turned + 0x40000000), flip(s, turned)  # quarters 1, 2 and quarters 2, 3


@triton.jit
def flip(x, word):
    """x, negated where the word's top bit is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def four_normals(c0, c1, seed, subsequence):
    w0, w1, w2, w3 = words(c0, c1, seed, subsequence)
    r01, r23 = radius(w0), radius(w2)
    c01, s01 = cos_sin(w1)
    c23, s23 = cos_sin(w3)
    return r01 * c01, r01 * s01, r23 * c23, r23 * s23
