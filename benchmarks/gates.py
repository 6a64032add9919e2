"""Is a call's result what the op claims? Asked of every provider before it is timed: no figure without a passing check.

The truth is the eager formula in float64. Where a call draws noise of its own, the noise is what its x_t says it was, and
must look like a normal's. Large batches are checked on their first samples, the loss on all of them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

import fastddpm as fd

from . import eager, solvers
from .inputs import STEP, Batch

ELEMENTS = 1 << 20
"""So many elements of a batch are looked at together."""


def check(op: str, result, b: Batch, known_noise: bool) -> None:
    """Raises AssertionError where the result is not right. `known_noise`: it was made of the batch's key."""
    for part in result if isinstance(result, tuple) else (result,):
        if not part.isfinite().all():
            raise AssertionError(f"{op} gives values that are not finite")
    GATES[op](Part(b, known_noise), result)


def _largest(x: Tensor) -> Tensor:
    """Of each sample; of a scalar, itself."""
    return x.abs().reshape(*x.shape[:1], -1).amax(-1)


class Part:
    """Some samples of a batch, in float64: the first, if nothing else is said."""

    def __init__(self, b: Batch, known_noise: bool, first: int = 0):
        self.b, self.known_noise = b, known_noise
        self.samples = slice(first, first + max(1, ELEMENTS * len(b) // b.elements))
        self.t = b.t[self.samples]
        self.k = eager.Tables.of(b.schedule, b.device, torch.float64)
        self.dtype = torch.finfo(b.how["dtype"])
        self.tolerance = 2e-4 if self.dtype.bits == 32 else 2e-2

    def whole(self) -> list["Part"]:
        """The batch in parts of this size."""
        return [Part(self.b, self.known_noise, first) for first in range(0, len(self.b), len(self.t))]

    def of(self, x: Tensor) -> Tensor:
        return x.detach()[self.samples].double()

    def close(self, what: str, actual: Tensor, expected: Tensor, to: Tensor | None = None, step: Tensor | float = 0.0) -> None:
        """Each sample to the tolerance of its largest value of `to` (what is expected), or to the dtype's step if wider."""
        error, size = _largest(actual - expected), _largest(expected if to is None else to)
        if not (error <= (self.tolerance * size).clamp(min=step)).all():  # so that a NaN fails
            worst = int((error / size).argmax())
            off, up_to = error.view(-1)[worst], size.view(-1)[worst]
            raise AssertionError(f"{what} is off by {off:.3g} where values go up to {up_to:.3g}")

    def noise_of(self, x_t: Tensor, mean: Tensor | float, deviation: Tensor | float, noise: Tensor) -> None:
        """What x_t was made of: that noise where it is known, otherwise a draw that looks normal."""
        if self.known_noise:
            added, x = self.of(noise) * deviation, self.of(x_t)
            self.close("the noise", x, mean + added, added, self.dtype.eps / 2 * _largest(x))
        else:
            self.normal(self.drawn(x_t, mean, deviation))

    def drawn(self, x_t: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
        return (self.of(x_t) - mean) / deviation

    def normal(self, z: Tensor) -> None:
        """Mean and variance within five standard errors, and what the dtype's rounding adds."""
        error = 5 / math.sqrt(z.numel())
        mean, variance = float(z.mean()), float(z.var())
        if not (abs(mean) < error + self.tolerance and abs(variance - 1) < 1.5 * error + 5 * self.tolerance):
            raise AssertionError(f"the noise has mean {mean:.3g} and variance {variance:.3g}")

    def loss(self, result: tuple[Tensor, Tensor], output: Tensor, loss_of: Callable[["Part", Tensor], Tensor]) -> None:
        """The mean over the whole batch, and its gradient. `loss_of`: a part's mean of what the network answered."""
        loss, grad = result
        leaf = self.of(output).requires_grad_()
        loss_of(self, leaf).backward()
        expected, step = leaf.grad * len(self.t) / len(self.b), self.dtype.smallest_normal * self.dtype.eps
        self.close("the gradient", self.of(grad), expected, step=step)
        self.close("the loss", loss, sum(loss_of(p, p.of(output)) * len(p.t) for p in self.whole()) / len(self.b))


def _noise(p: Part, z) -> None:
    p.noise_of(z, 0.0, 1.0, p.b.noise)


def _noised(p: Part) -> tuple[Tensor, Tensor]:
    """x_t's mean and deviation."""
    x_0 = p.of(p.b.x_0)
    return eager.at(p.k.a, p.t, x_0) * x_0, eager.at(p.k.s, p.t, x_0)


def _noising(p: Part, x_t) -> None:
    p.noise_of(x_t, *_noised(p), p.b.noise)


def _mse(p: Part, result, noise_in: Callable[[Part], Tensor] = lambda p: p.of(p.b.noise)) -> None:
    p.loss(result, p.b.output, lambda p, output: ((output - noise_in(p)) ** 2).mean())


def _chain(p: Part, result) -> None:
    x_t, *both = result
    _noising(p, x_t)
    _mse(p, both) if p.known_noise else _mse(p, both, lambda p: p.drawn(x_t, *_noised(p)))


def _flow(p: Part, result) -> None:
    def s(p: Part) -> Tensor:
        return ((p.t + 1) / p.k.a.new_tensor(1000))[:, None, None, None]

    _of_process(p, result, lambda p: (1 - s(p), s(p)), lambda p, output, x_0, z: eager.flow_loss(output, x_0, z))


def _edm(p: Part, result) -> None:
    def sigma(p: Part) -> Tensor:
        return p.of(p.b.sigma)[:, None, None, None]

    def loss_of(p: Part, output: Tensor, x_0: Tensor, z: Tensor) -> Tensor:
        return eager.edm_loss(output, x_0, eager.edm_sample(x_0, sigma(p), z)[0], sigma(p))

    _of_process(p, result, lambda p: (c := (sigma(p) ** 2 + 0.25).rsqrt(), c * sigma(p)), loss_of)


def _of_process(p: Part, result, levels: Callable[[Part], tuple], loss_of: Callable[..., Tensor]) -> None:
    x_t, *both = result

    def noised(p: Part) -> tuple[Tensor, Tensor]:
        a, s = levels(p)
        return a * p.of(p.b.x_0), s

    def z_in(p: Part) -> Tensor:
        return p.of(p.b.noise) if p.known_noise else p.drawn(x_t, *noised(p))

    p.noise_of(x_t, *noised(p), p.b.noise)
    p.loss(both, p.b.output, lambda p, output: loss_of(p, output, p.of(p.b.x_0), z_in(p)))


def _reverse(p: Part, result, output: Tensor | None = None) -> None:
    x_prev, x_0_hat = result
    k = eager.numbers(p.b.schedule, STEP)
    mean, expected = eager.step(p.of(p.b.output) if output is None else output, p.of(p.b.x_0), k, 0.0)
    p.close("x_0_hat", p.of(x_0_hat), expected)
    p.noise_of(x_prev, mean, k[-1], p.b.noise)


def _guided(p: Part, result) -> None:
    _reverse(p, result, eager.guide(p.of(p.b.output), p.of(p.b.uncond_output)))


def _sampler(op: str) -> Callable[[Part, tuple[Tensor, Tensor]], None]:
    def gate(p: Part, result) -> None:
        step = solvers.Step.of(op, p.b, p.of)
        expected, x_0_hat = solvers.FORMULAS[op](step)
        # of Euler's x / a fastddpm has x
        p.close("x_prev", p.of(result[0]) / (step.k.a_next if op == "euler" and p.known_noise else 1.0), expected)
        p.close("x_0_hat", p.of(result[1]), x_0_hat)

    return gate


def _inputs(p: Part) -> tuple[Tensor, Tensor, Tensor, eager.Tables]:
    return p.of(p.b.x_0), p.of(p.b.x_t), p.t, p.k


def _hybrid(p: Part, result) -> None:
    p.loss(result, p.b.wide_output, lambda p, wide: eager.hybrid_loss(wide, *_inputs(p), p.of(p.b.noise)))


def _kl(p: Part, result) -> None:
    p.loss(result, p.b.wide_output, lambda p, wide: eager.kl_loss(wide, *_inputs(p)))


def _bits_per_dim(p: Part, result) -> None:
    vb, mse, x_t = result
    at = torch.full_like(p.t, STEP)
    expected = eager.bits(p.of(p.b.wide_output), p.of(p.b.x_0), p.of(p.b.x_t), at, p.k)
    p.close("the bound's term", p.of(vb), expected[0])
    p.close("x_0's error", p.of(mse), expected[1])
    z = fd.randn(p.b.next_key, p.b.shape, p.b.how["dtype"])
    p.noise_of(x_t, p.k.a[STEP - 1] * p.of(p.b.x_0), p.k.s[STEP - 1], z)


GATES = {
    "noise": _noise,
    "noising": _noising,
    "mse": _mse,
    "chain": _chain,
    "reverse": _reverse,
    "hybrid": _hybrid,
    "kl": _kl,
    "bits_per_dim": _bits_per_dim,
    "flow": _flow,
    "edm": _edm,
    "guided": _guided,
    **{op: _sampler(op) for op in solvers.FORMULAS},
}
