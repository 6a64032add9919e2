"""Is a call's result what the op claims? Asked of every provider before it is timed: no figure without a passing check.

The truth is the eager formula in float64. Where a call draws noise of its own, the noise is what its x_t says it was, and
must look like a normal's. Large batches are checked on their first samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

import fastddpm as fd

from . import eager
from .inputs import STEP, Batch

ELEMENTS = 1 << 20
"""Of a batch, at most this many are checked."""


def check(op: str, result, b: Batch, known_noise: bool) -> None:
    """Raises AssertionError where the result is not right. `known_noise`: it was made of the batch's key."""
    GATES[op](Part(b, known_noise), result)


class Part:
    """The first samples of a batch, in float64."""

    def __init__(self, b: Batch, known_noise: bool):
        self.b, self.known_noise = b, known_noise
        self.count = min(len(b), max(1, ELEMENTS * len(b) // b.elements))
        self.t = b.t[: self.count]
        self.k = eager.Tables.of(b.schedule, b.device, torch.float64)
        dtype = torch.finfo(b.how["dtype"])
        self.tolerance, self.quantum = (2e-4 if dtype.bits == 32 else 2e-2), dtype.smallest_normal * dtype.eps

    def of(self, x: Tensor) -> Tensor:
        return x.detach()[: self.count].double()

    def close(self, what: str, actual: Tensor, expected: Tensor, scaled: float = 1.0) -> None:
        """To the tolerance of the largest value expected, and the dtype's smallest step (`scaled`, as `actual` was)."""
        worst, scale = (actual.double() - expected).abs().max(), expected.abs().max()
        if not worst <= self.tolerance * scale + scaled * self.quantum:  # so that a NaN fails
            raise AssertionError(f"{what} is off by {float(worst):.3g} where values go up to {float(scale):.3g}")

    def noise_of(self, x_t: Tensor, mean: Tensor, deviation: Tensor | float) -> Tensor:
        """What x_t was made of; the key's, or a draw that looks normal."""
        drawn = (self.of(x_t) - mean) / deviation
        if self.known_noise:
            self.close("the noise", drawn * deviation, self.of(self.b.noise) * deviation)
        else:
            self.normal(drawn)
        return drawn

    def normal(self, z: Tensor) -> None:
        """Mean and variance within five standard errors, and what the dtype's rounding adds."""
        error = 5 / math.sqrt(z.numel())
        mean, variance = float(z.mean()), float(z.var())
        if not (abs(mean) < error + self.tolerance and abs(variance - 1) < 1.5 * error + 5 * self.tolerance):
            raise AssertionError(f"the noise has mean {mean:.3g} and variance {variance:.3g}")

    def gradient(self, grad: Tensor, loss_of: Callable[[Tensor], Tensor], output: Tensor) -> None:
        """Of the mean over the whole batch."""
        leaf = self.of(output).requires_grad_()
        loss_of(leaf).backward()
        times = len(self.b) / self.count
        self.close("the gradient", times * self.of(grad), leaf.grad, times)

    def loss(self, loss: Tensor, expected: Tensor) -> None:
        """Only where the whole batch was looked at."""
        if self.count == len(self.b):
            self.close("the loss", loss, expected)


def _noise(p: Part, z) -> None:
    p.noise_of(z, torch.zeros(()), 1.0)


def _noising(p: Part, x_t) -> Tensor:
    x_0 = p.of(p.b.x_0)
    return p.noise_of(x_t, eager.at(p.k.a, p.t, x_0) * x_0, eager.at(p.k.s, p.t, x_0))


def _mse(p: Part, result, noise: Tensor | None = None) -> None:
    loss, grad = result
    z = p.of(p.b.noise) if noise is None else noise
    p.gradient(grad, lambda output: ((output - z) ** 2).mean(), p.b.output)
    p.loss(loss, ((p.of(p.b.output) - z) ** 2).mean())


def _chain(p: Part, result) -> None:
    x_t, loss, grad = result
    drawn = _noising(p, x_t)
    _mse(p, (loss, grad), p.of(p.b.noise) if p.known_noise else drawn)


def _reverse(p: Part, result) -> None:
    x_prev, x_0_hat = result
    k = eager.numbers(p.b.schedule, STEP)
    mean, expected = eager.step(p.of(p.b.output), p.of(p.b.x_0), k, 0.0)
    p.close("x_0_hat", p.of(x_0_hat), expected)
    p.noise_of(x_prev, mean, k[-1])


def _inputs(p: Part) -> tuple[Tensor, Tensor, Tensor, eager.Tables]:
    return p.of(p.b.x_0), p.of(p.b.x_t), p.t, p.k


def _hybrid(p: Part, result) -> None:
    loss, grad = result
    z = p.of(p.b.noise)
    p.gradient(grad, lambda wide: eager.hybrid_loss(wide, *_inputs(p), z), p.b.wide_output)
    p.loss(loss, eager.hybrid_loss(p.of(p.b.wide_output), *_inputs(p), z))


def _kl(p: Part, result) -> None:
    loss, grad = result
    p.gradient(grad, lambda wide: eager.kl_loss(wide, *_inputs(p)), p.b.wide_output)
    p.loss(loss, eager.kl_loss(p.of(p.b.wide_output), *_inputs(p)))


def _bits_per_dim(p: Part, result) -> None:
    vb, mse, x_t = result
    at = torch.full_like(p.t, STEP)
    expected = eager.bits(p.of(p.b.wide_output), p.of(p.b.x_0), p.of(p.b.x_t), at, p.k)
    p.close("the bound's term", vb[: p.count], expected[0])
    p.close("x_0's error", mse[: p.count], expected[1])
    a, s, x_0 = p.k.a[STEP - 1], p.k.s[STEP - 1], p.of(p.b.x_0)
    p.normal((p.of(x_t) - a * x_0) / s)
    if p.known_noise:
        z = fd.randn(p.b.next_key, p.b.shape, p.b.how["dtype"])
        p.close("the next x_t", p.of(x_t), a * x_0 + s * p.of(z))


GATES = {
    "noise": _noise,
    "noising": _noising,
    "mse": _mse,
    "chain": _chain,
    "reverse": _reverse,
    "hybrid": _hybrid,
    "kl": _kl,
    "bits_per_dim": _bits_per_dim,
}
