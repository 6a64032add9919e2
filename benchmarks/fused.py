"""The ops by fastddpm. Each function takes a batch and returns the call to time; what a call returns, gates.py checks."""

import torch

import fastddpm as fd
from fastddpm.coefficients import vlb_rows

from . import solvers
from .inputs import GUIDANCE, ROW, STEP, Batch

BOUND = {"variance_type": "learned_range", "cdf": "tanh"}
"""tanh, so that the result is that of the eager formula, which every peer has."""


def noise(b: Batch):
    out = torch.empty_like(b.x_0)

    def call():
        fd.ops.randn_(out, b.key)
        return out

    return call


def noising(b: Batch):
    return lambda: fd.q_sample(b.x_0, b.t, b.schedule, b.key)


def gradient_of(loss_of, output):
    """A call that makes a loss and its gradient by the network's output."""

    def call():
        output.grad = None
        loss = loss_of(output)
        loss.backward()
        return loss.detach(), output.grad

    return call


def mse(b: Batch):
    return gradient_of(lambda out: fd.mse_loss(out, b.t, b.schedule, b.key), b.output)


def chain(b: Batch):
    loss, x_t = mse(b), noising(b)
    return lambda: (x_t(), *loss())


def flow(b: Batch):
    return _trained(b, b.flow, b.t)


def edm(b: Batch):
    return _trained(b, b.edm, b.sigma)


def _trained(b: Batch, process: fd.EDM | fd.FlowMatching, t: torch.Tensor):
    loss = gradient_of(lambda out: fd.mse_loss(out, t, process, b.key, b.x_0), b.output)
    return lambda: (fd.q_sample(b.x_0, t, process, b.key), *loss())


def reverse(b: Batch):
    rows, output = fd.samplers.ddpm(b.schedule), b.output.detach()
    return lambda: fd.reverse_step(output, b.x_0, STEP, rows, b.key)


def guided(b: Batch):
    scale = torch.full((), GUIDANCE, device=b.device)
    return _in_a_loop(b, fd.samplers.ddpm(b.schedule), STEP, b.key, b.uncond_output, scale)


def _in_a_loop(b: Batch, rows: fd.samplers.StepRows, row: int, *given):
    """A step of `GaussianDiffusion.sample`: the op that it calls."""
    output, i, table = b.output.detach(), rows.indices_on(b.device)[row], rows.on(b.device, torch.float32)
    noise, uncond, scale = given or (None, None, None)
    history = b.earlier[: rows.history]
    return lambda: fd.ops.reverse_step(output, b.x_0, noise, i, table, True, uncond, scale, None, history, False)[:2]


def _sampler(op: str):
    return lambda b: _in_a_loop(b, solvers.rows_of(b, op), ROW)


ddim, euler, dpmpp_2m, unipc = map(_sampler, solvers.FORMULAS)


def hybrid(b: Batch):
    inputs = (b.x_0, b.x_t, b.t, b.schedule, b.key)
    return gradient_of(lambda out: fd.hybrid_loss(out, *inputs, vlb_weight=1.0, **BOUND)["loss"], b.wide_output)


def kl(b: Batch):
    return gradient_of(lambda out: fd.vlb_loss(out, b.x_0, b.x_t, b.t, b.schedule, **BOUND), b.wide_output)


def bits_per_dim(b: Batch):
    """A step of `GaussianDiffusion.bits_per_dim`: the op that it calls."""
    rows = vlb_rows(b.schedule, "epsilon", "learned_range", True, "posterior", None, b.device, torch.float32)
    i = b.schedule.indices_on(b.device)
    output = b.wide_output.detach()

    def call():
        terms, x_t = fd.ops.vlb_terms(output, b.x_0, b.x_t, None, i[STEP], rows, True, b.next_key, i[STEP - 1])
        return terms[0], terms[1], x_t

    return call
