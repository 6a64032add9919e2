"""Every op in plain eager PyTorch: the specification in code, the oracle of the tests, and the fallback.

It imports none of the kernels and checks nothing but what they check (indices in range on the CPU). The float32 results are
those of docs/noise.md to the bit: eager PyTorch has no fused multiply-add, so it is made in float64 with one rounding.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_STREAM_SHIFT, _STEP_SHIFT = 60, 32
_STEP_MASK = (1 << 28) - 1
_TIMESTEP_STREAM = 3


def _float(bits: int) -> float:
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32).item()


# -2 ln(1 + f) = -2 f + f^2 P(f) for 1 + f in [sqrt(1/2), sqrt(2)): P's coefficients from the constant up, minimax, as bits
_LOG = [_float(b) for b in (0x3F800062, 0xBF2AAD32, 0x3EFF9B03, 0xBECBA7DB, 0x3EB16AB0, 0xBEA7474B, 0x3E4D854D)]
_MINUS_2_LN_2 = _float(0xBFB17218)
_SQRT_HALF_BITS = 0x3F3504F3
# cos(pi/4 x) = 1 + x^2 C(x^2) and sin(pi/4 x) = x S(x^2) for x in [-1, 1]
_COS = [_float(b) for b in (0xBE9DE9D1, 0x3C81D8C7, 0xB9A75889)]
_SIN = [_float(b) for b in (0x3F490FDA, 0xBDA55DB4, 0x3B2324B6, 0xB8153B1C)]


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
    product = torch.as_tensor(a, device=b.device).double() * b.double()
    c = torch.as_tensor(c, device=b.device).double()
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)  # Knuth's two-sum: total + error is the sum exactly
    even = (total.view(torch.int64) & 1) == 0
    inexact = (error != 0) & total.isfinite()
    toward = torch.where(error > 0, math.inf, -math.inf).double()
    return torch.where(inexact & even, torch.nextafter(total, toward), total).float()


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Horner's rule, each step one float32 fma."""
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = fma(value, x, c)
    return value


# ---- normals ----


def radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln u), u = fma(float32(w), 2^-32, 2^-33): float32 from a 32-bit word in int64."""
    u = fma(2.0**-32, word.float(), 2.0**-33)
    bits = u.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1
    log = fma(f * f, _polynomial(f, _LOG), -2 * f)
    return _sqrt(fma(_MINUS_2_LN_2, exponent.float(), log))


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
    cos = fma(_polynomial(x2, _COS), x2, 1.0)
    sin = x * _polynomial(x2, _SIN)
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


def fill_key_(key: Tensor, seed: int, subsequence: int) -> None:
    key[:, 0] = seed
    key[:, 1] = subsequence + torch.arange(key.shape[0], device=key.device)


def advance_(key: Tensor, steps: int) -> None:
    moved = ((key[:, 1] >> _STEP_SHIFT) & _STEP_MASK) + steps
    if key.device.type == "cpu" and bool(((moved < 0) | (moved > _STEP_MASK)).any()):
        raise OverflowError(f"steps: expected every step to stay in 0 .. 2^28 - 1, got {steps} more than the key's")
    key[:, 1] = (key[:, 1] & ~(_STEP_MASK << _STEP_SHIFT)) | ((moved & _STEP_MASK) << _STEP_SHIFT)


def copy_key(key: Tensor) -> Tensor:
    """A copy that no compiler removes, as it does a clone whose original it does not see change."""
    return key.clone()


def randn_(out: Tensor, key: Tensor) -> None:
    out.copy_(normals(key, _elements(out)).view(out.shape))


def timesteps(key: Tensor, num_timesteps: int) -> Tensor:
    sub = (key[:, 1] & ((1 << _STREAM_SHIFT) - 1)) | (_TIMESTEP_STREAM << _STREAM_SHIFT)
    return (philox(torch.zeros_like(sub), key[:, 0], sub)[0] * num_timesteps) >> 32


# ---- rows and noise, as the ops take them ----


def _elements(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def _row(rows: Tensor, index: Tensor, x: Tensor, name: str = "t") -> tuple[Tensor, ...]:
    """The columns of each sample's row, each shaped to broadcast over x. On the CPU an index out of range is an IndexError;
    elsewhere, where reading it would wait for the device, it makes that sample's row NaN."""
    index = index.long().reshape(-1).expand(x.shape[0])
    outside = (index < 0) | (index >= len(rows))
    if x.device.type == "cpu":
        if bool(outside.any()):
            raise IndexError(f"{name}: expected 0 .. {len(rows) - 1}, got {int(index[outside][0])}")
        chosen = rows[index]
    else:
        chosen = rows[index.clamp(0, len(rows) - 1)].masked_fill(outside[:, None], math.nan)
    return chosen.view(-1, rows.shape[1], *[1] * (x.dim() - 1)).unbind(1)


def _noise(noise: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    if noise.dtype == torch.int64:
        noise = normals(noise, _elements(x)).view(x.shape)
    return noise.to(dtype)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return fma(a, b, c) if b.dtype == torch.float32 and b.device.type != "mps" else a * b + c


def _like(values: Tensor, x: Tensor) -> Tensor:
    """x's dtype and its layout in memory."""
    return torch.empty_like(x).copy_(values)


# ---- noising: out = a x + s z ----


def noising(x: Tensor, noise: Tensor | None, t: Tensor, rows: Tensor) -> Tensor:
    a, s = _row(rows, t, x)
    data = x.to(rows.dtype)
    return _like(a * data if noise is None else _fma(a, data, s * _noise(noise, x, rows.dtype)), x)


# ---- mse: loss_b = w mean (out - target)^2, target = p z + q x_0 + r x_t ----


def _difference(model_output, noise, x_0, x_t, t, rows) -> tuple[Tensor, Tensor]:
    p, q, r, w = _row(rows, t, model_output)
    dtype = rows.dtype
    target = torch.zeros(model_output.shape, dtype=dtype, device=model_output.device)
    if noise is not None:
        target = p * _noise(noise, model_output, dtype)
    if x_0 is not None:
        target = _fma(q, x_0.to(dtype), target)
    if x_t is not None:
        target = _fma(r, x_t.to(dtype), target)
    return model_output.to(dtype) - target, w


def _reduce(loss: Tensor, reduction: int) -> Tensor:
    return (loss, loss.mean(), loss.sum())[reduction]


def mse_loss(model_output, noise, x_0, x_t, t, rows, reduction) -> Tensor:
    difference, w = _difference(model_output, noise, x_0, x_t, t, rows)
    rows_of_squares = difference.square().reshape(difference.shape[0], _elements(difference))
    per_sample = w.reshape(-1) * rows_of_squares.mean(1)
    return _reduce(per_sample, reduction)


def mse_loss_with_grad(model_output, noise, x_0, x_t, t, rows, reduction) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient for an upstream gradient of one."""
    loss = mse_loss(model_output, noise, x_0, x_t, t, rows, reduction)
    return loss, mse_loss_backward(torch.ones_like(loss), model_output, noise, x_0, x_t, t, rows, reduction)


def mse_loss_backward(grad_loss, model_output, noise, x_0, x_t, t, rows, reduction) -> Tensor:
    """2 w g_b (out - target) / D, over B too for the mean."""
    difference, w = _difference(model_output, noise, x_0, x_t, t, rows)
    count = _elements(model_output) * (model_output.shape[0] if reduction == 1 else 1)
    upstream = grad_loss.reshape(-1, *[1] * (model_output.dim() - 1)).to(rows.dtype)
    return _like(2 * w / max(count, 1) * difference * upstream, model_output)


def scale_grad_(grad: Tensor, grad_loss: Tensor) -> None:
    grad.mul_(grad_loss.reshape(-1, *[1] * (grad.dim() - 1)))


# ---- reverse: x_0_hat = clamp(p_x x + p_o out, bound); x_prev = k_x x + k_0 x_0_hat + k_o out + sigma exp(k_v v) z ----


def _channels(model_output: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The network's mean channels and, where it has twice x's, its variance channels v."""
    values = model_output.to(dtype)
    if model_output.shape == x.shape:
        return values, None
    return values[:, : x.shape[1]], values[:, x.shape[1] :]


def _deviation(sigma: Tensor, k_v: Tensor, v: Tensor | None) -> Tensor:
    return sigma if v is None else sigma * (k_v * v).exp()


def reverse_step(model_output, x_t, noise, index, rows, return_x_0) -> tuple[Tensor, Tensor]:
    p_x, p_o, bound, k_x, k_0, k_o, sigma, k_v = _row(rows, index, x_t, "i")
    (out, v), x = _channels(model_output, x_t, rows.dtype), x_t.to(rows.dtype)
    x_0 = _fma(p_o, out, p_x * x)
    x_0 = torch.where(x_0 < -bound, -bound, torch.where(x_0 > bound, bound, x_0))
    x_prev = _fma(k_o, out, _fma(k_0, x_0, k_x * x))
    if noise is not None:
        noisy = _fma(_deviation(sigma, k_v, v), _noise(noise, x_t, rows.dtype), x_prev)
        x_prev = torch.where(sigma != 0, noisy, x_prev)
    return _like(x_prev, x_t), _like(x_0, x_t) if return_x_0 else x_t.new_empty(0)


def reverse_step_backward(grad_x_prev, grad_x_0, model_output, x_t, noise, index, rows) -> tuple[Tensor, Tensor]:
    p_x, p_o, bound, k_x, k_0, k_o, sigma, k_v = _row(rows, index, x_t, "i")
    (out, v), x = _channels(model_output, x_t, rows.dtype), x_t.to(rows.dtype)
    zero = torch.zeros(x_t.shape, dtype=rows.dtype, device=x_t.device)
    g = zero if grad_x_prev is None else grad_x_prev.to(rows.dtype)
    through = k_0 * g if grad_x_0 is None else k_0 * g + grad_x_0.to(rows.dtype)
    through = torch.where(_fma(p_o, out, p_x * x).abs() > bound, zero, through)
    grad_output = _fma(p_o, through, k_o * g)
    if v is not None:
        grad_v = zero
        if noise is not None:
            by_v = k_v * _deviation(sigma, k_v, v) * _noise(noise, x_t, rows.dtype)
            grad_v = torch.where(sigma != 0, g * by_v, zero)
        grad_output = torch.cat((grad_output, grad_v), 1)
    return _like(grad_output, model_output), _like(_fma(p_x, through, k_x * g), x_t)


# ---- the variational bound: a file of its own, which stands on what is above ----

from .reference_vlb import (  # noqa: E402, F401
    hybrid_loss,
    hybrid_loss_backward,
    hybrid_loss_with_grad,
    vlb_loss,
    vlb_loss_backward,
    vlb_loss_with_grad,
    vlb_terms,
)
