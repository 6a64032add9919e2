"""A step of other samplers than DDPM's, in plain PyTorch, its coefficients worked out as numbers before it."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

import fastddpm as fd

from .inputs import ROW, STEPS, Batch

NAMES = {"ddim": "ddim", "euler": "euler", "dpmpp_2m": "dpmpp_2m", "unipc": "unipc_2"}
"""Of the ops, in `fd.samplers.SAMPLERS`."""


def rows_of(b: Batch, op: str) -> fd.samplers.StepRows:
    """As its users walk it: STEPS steps, every option its default."""
    return fd.samplers.SAMPLERS[NAMES[op]](b.schedule, steps=STEPS)


class Numbers(NamedTuple):
    """Of one step, from x = a x_0 + b eps to a_next, b_next; h is the step in log(a / b), r h the step back to the one before.

    x' = ratio x + gain x_0_hat is the step of first order. rho_0, rho_1: the weights of UniPC's corrector of order 2 (Zhao et
    al. 2023, B(h) = e^h - 1).
    """

    a: float
    b: float
    a_next: float
    b_next: float
    r: float
    ratio: float
    gain: float
    rho_0: float
    rho_1: float


def numbers(rows: fd.samplers.StepRows, i: int) -> Numbers:
    """Of row i, between the levels of i + 1, which the step before began at, and of i - 1."""
    (_, _, before), (a, b, here), (a_next, b_next, after) = (_level(float(rows.alphas_cumprod[j])) for j in (i + 1, i, i - 1))
    h = after - here
    r, phi_1 = (before - here) / h, math.expm1(-h)
    phi_2 = -phi_1 / h - 1
    first, second = phi_2 / phi_1, -2 * (phi_2 / h + 0.5) / phi_1  # rho_0 + rho_1, and r rho_0 + rho_1
    rho_0 = (second - first) / (r - 1)
    return Numbers(a, b, a_next, b_next, r, b_next / b, -a_next * phi_1, rho_0, first - rho_0)


def _level(abar: float) -> tuple[float, float, float]:
    a, b = math.sqrt(abar), math.sqrt(1 - abar)
    return a, b, math.log(a / b)


class Step(NamedTuple):
    """What a step reads: the output, x, the x_0_hats of the two steps before, and the sample that x was predicted from."""

    output: Tensor
    x: Tensor
    h_1: Tensor
    h_2: Tensor
    last: Tensor
    k: Numbers
    before: Numbers

    @classmethod
    def of(cls, op: str, b: Batch, form: Callable[[Tensor], Tensor] = Tensor.detach) -> "Step":
        rows = rows_of(b, op)
        k, before = numbers(rows, ROW), numbers(rows, ROW + 1)
        output, x, h_1, h_2 = map(form, (b.output, b.x_0, *b.earlier))
        last = (x - before.gain * (h_1 + 0.5 * (h_2 - h_1) / before.r)) / before.ratio
        return cls(output, x / k.a if op == "euler" else x, h_1, h_2, last, k, before)

    def x_0_hat(self) -> Tensor:
        return (self.x - self.k.b * self.output) / self.k.a


# ---- (x', x_0_hat) ----


def ddim(s: Step) -> tuple[Tensor, Tensor]:
    x_0 = s.x_0_hat().clamp(-1, 1)
    return s.k.a_next * x_0 + s.k.b_next * s.output, x_0


def euler(s: Step) -> tuple[Tensor, Tensor]:
    """Of x / a, as k-diffusion and diffusers have it."""
    sigma, sigma_next = s.k.b / s.k.a, s.k.b_next / s.k.a_next
    x_0 = s.x - sigma * s.output
    return s.x + (s.x - x_0) / sigma * (sigma_next - sigma), x_0


def dpmpp_2m(s: Step) -> tuple[Tensor, Tensor]:
    """Lu et al. 2022b, algorithm 2."""
    x_0 = s.x_0_hat()
    return s.k.ratio * s.x + s.k.gain * (x_0 + 0.5 * (s.h_1 - x_0) / s.k.r), x_0


def unipc(s: Step) -> tuple[Tensor, Tensor]:
    """Corrects the step that led to x by the x_0_hat seen there, and predicts from what is corrected."""
    x_0, before = s.x_0_hat(), s.before
    change = before.rho_0 * (s.h_2 - s.h_1) / before.r + before.rho_1 * (x_0 - s.h_1)
    x = before.ratio * s.last + before.gain * (s.h_1 + change)
    return s.k.ratio * x + s.k.gain * (x_0 + 0.5 * (s.h_1 - x_0) / s.k.r), x_0


FORMULAS = {"ddim": ddim, "euler": euler, "dpmpp_2m": dpmpp_2m, "unipc": unipc}
