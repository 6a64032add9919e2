"""Philox words and the normals made of them (docs/noise.md; twins: kernels/cpu/philox.h, kernels/triton/philox.py).

The float32 results are the contract's to the bit: eager PyTorch has no fused multiply-add, so it is made in float64.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _float(bits: int) -> float:
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32).item()


# -2 ln(1 + f) = -2 f + f^2 P(f) for 1 + f in [sqrt(1/2), sqrt(2)): P's coefficients from the constant up, minimax, as bits
LOG = [_float(b) for b in (0x3F800062, 0xBF2AAD32, 0x3EFF9B03, 0xBECBA7DB, 0x3EB16AB0, 0xBEA7474B, 0x3E4D854D)]
MINUS_2_LN_2 = _float(0xBFB17218)
SQRT_HALF_BITS = 0x3F3504F3
# cos(pi/4 x) = 1 + x^2 C(x^2) and sin(pi/4 x) = x S(x^2) for x in [-1, 1]
COS = [_float(b) for b in (0xBE9DE9D1, 0x3C81D8C7, 0xB9A75889)]
SIN = [_float(b) for b in (0x3F490FDA, 0xBDA55DB4, 0x3B2324B6, 0xB8153B1C)]


# ---- words ----


def philox(block: Tensor, seed: Tensor, subsequence: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words in int64 for each counter (block, subsequence) and key seed."""
    c0, c1, c2, c3 = block & _MASK, (block >> 32) & _MASK, subsequence & _MASK, (subsequence >> 32) & _MASK
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps modulo 2^64: the bits are the unsigned product's
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


# ---- float32 arithmetic with one rounding ----


def fma(a: Tensor | float, b: Tensor, c: Tensor | float) -> Tensor:
    """a b + c with one rounding: exact in float64 (48 bits), summed there with rounding to odd, then rounded to float32.

    Rounding to odd (Boldo & Melquiond 2008) makes the second rounding see that the first was inexact.
    """
    product, c = _on(b, a).double() * b.double(), _on(b, c).double()
    total = product + c
    return (total + _to_odd(product.detach(), c.detach(), total.detach())).float()


def _on(x: Tensor, value: Tensor | float) -> Tensor:
    """A number as a float32 tensor beside x, filled there: one made here and uploaded would wait for the device."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=torch.float32, device=x.device)


def _to_odd(product: Tensor, c: Tensor, total: Tensor) -> Tensor:
    """What makes the sum odd where it is inexact and even: the last bit, which is no function to be differentiated."""
    back = total - product
    error = (product - (total - back)) + (c - back)  # Knuth's two-sum: total + error is the sum exactly
    even = (total.view(torch.int64) & 1) == 0
    inexact = (error != 0) & total.isfinite()
    toward = torch.where(error > 0, math.inf, -math.inf).double()
    return torch.where(inexact & even, torch.nextafter(total, toward) - total, 0.0)


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Horner's rule, each step one float32 fma."""
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = fma(value, x, c)
    return value


# ---- normals ----


def radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln u), u = fma(float32(w), 2^-32, 2^-33): float32 from a 32-bit word in int64."""
    return _sqrt(minus_2_ln(word.float()))


def minus_2_ln(number: Tensor) -> Tensor:
    """-2 ln u of a word as a float32."""
    u = fma(2.0**-32, number, 2.0**-33)
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1
    log = fma(f * f, _polynomial(f, LOG), -2 * f)
    return fma(MINUS_2_LN_2, exponent.float(), log)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded (float64's root, rounded once more, is: 53 >= 2 x 24 + 2)."""
    return x.double().sqrt().float()


def cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi w / 2^32, float32: the nearest quarter turn from the word's top bits, a polynomial in the rest."""
    turned = (word + 0x20000000) & _MASK
    quarter = turned >> 30
    rest = (word << 2) & _MASK  # the signed distance to that quarter turn, times 4
    x = torch.where(rest >= 1 << 31, rest - (1 << 32), rest).float() * 2.0**-31
    x2 = x * x
    cos = fma(_polynomial(x2, COS), x2, 1.0)
    sin = x * _polynomial(x2, SIN)
    odd = (quarter & 1) == 1
    c, s = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    return torch.where((quarter == 1) | (quarter == 2), -c, c), torch.where(quarter >= 2, -s, s)


def normals(key: Tensor, count: int) -> Tensor:
    """float32 `[B, count]`: elements 0 .. count - 1 of each sample."""
    if key.device.type == "mps":  # no float64 there
        return normals(key.cpu(), count).to(key.device)
    block = torch.arange((count + 3) // 4, device=key.device)
    w0, w1, w2, w3 = philox(block[None], key[:, :1], key[:, 1:])
    r01, r23 = radius(w0), radius(w2)
    (c01, s01), (c23, s23) = cos_sin(w1), cos_sin(w3)
    z = torch.stack((r01 * c01, r01 * s01, r23 * c23, r23 * s23), 2)
    return z.reshape(key.shape[0], 4 * len(block))[:, :count]
