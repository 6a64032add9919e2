"""The ops in plain PyTorch, as an experienced user writes them: float32 tables on the device, nothing uploaded, nothing read by
the host, numbers in place of tables where t is one for the batch. `torch.compile` gets the same functions.

The bound is written as it is everywhere (Gaussian KL, tanh likelihood, both evaluated, one chosen by t).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastddpm as fd

from . import solvers
from .fused import gradient_of
from .inputs import GUIDANCE, STEP, Batch


class Tables(NamedTuple):
    """[T] tables of a schedule in one dtype on a device."""

    a: Tensor
    s: Tensor
    inverse: Tensor
    ratio: Tensor
    of_x_0: Tensor
    of_x_t: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, schedule: fd.NoiseSchedule, device: torch.device, dtype: torch.dtype = torch.float32) -> "Tables":
        abar = schedule.alphas_cumprod
        beta_tilde = torch.cat((schedule.posterior_variance[1:2], schedule.posterior_variance[1:]))
        a, s, inverse, ratio = abar.sqrt(), (1 - abar).sqrt(), (1 / abar).sqrt(), (1 / abar - 1).sqrt()
        mean = (schedule.posterior_mean_x_0, schedule.posterior_mean_x_t)
        tables = (a, s, inverse, ratio, *mean, beta_tilde.log(), schedule.betas.log())
        return cls(*(table.to(device, dtype) for table in tables))


def at(table, t, x):
    return table[t].reshape(-1, *[1] * (x.dim() - 1))


# ---- formulas: torch.compile gets these ----


def add_noise(x_0, t, k, z):
    return (at(k.a, t, x_0) * x_0 + at(k.s, t, x_0) * z).to(x_0.dtype)


def draw(x_0, t, k):
    z = torch.randn_like(x_0)
    return add_noise(x_0, t, k, z), z


def mse_loss(output, z):
    return F.mse_loss(output.float(), z.float())


def draw_and_loss(x_0, t, k, output):
    x_t, z = draw(x_0, t, k)
    return x_t, mse_loss(output, z)


def flow_sample(x_0, s, z):
    return ((1 - s) * x_0 + s * z).to(x_0.dtype)


def flow_loss(output, x_0, z):
    """As diffusers' scripts for SD3 and Flux have it."""
    return ((output.float() - (z - x_0).float()) ** 2).reshape(len(x_0), -1).mean(1).mean()


def draw_flow_and_loss(x_0, s, output):
    z = torch.randn_like(x_0)
    return flow_sample(x_0, s, z), flow_loss(output, x_0, z)


def edm_sample(x_0, sigma, z, data=0.5):
    """y, and what F is given (Karras et al. 2022, table 1)."""
    y = x_0 + sigma * z
    return y, (y / (sigma**2 + data**2).sqrt()).to(x_0.dtype)


def edm_loss(output, x_0, y, sigma, data=0.5):
    """lambda (D - x_0)^2 (equation 8)."""
    both = sigma**2 + data**2
    denoised = data**2 / both * y + sigma * data / both.sqrt() * output
    return (both / (sigma * data) ** 2 * (denoised - x_0) ** 2).mean()


def draw_edm_and_loss(x_0, sigma, output):
    y, x_t = edm_sample(x_0, sigma, torch.randn_like(x_0))
    return x_t, edm_loss(output, x_0, y, sigma)


def step(output, x, k, z):
    """k: inverse, ratio, of_x_0, of_x_t, sigma of one t."""
    x_0 = (k[0] * x - k[1] * output).clamp(-1, 1)
    return (k[2] * x_0 + k[3] * x + k[4] * z).to(x.dtype), x_0.to(x.dtype)


def draw_step(output, x, k):
    return step(output, x, k, torch.randn_like(x))


def guide(output, uncond):
    return uncond + GUIDANCE * (output - uncond)


def draw_guided_step(output, uncond, x, k):
    return draw_step(guide(output, uncond), x, k)


def bound(output, v, x_0, x_t, t, k, clip=False):
    """[B] of the bound's term, bits a dimension; and x_0_hat."""
    x_0_hat = at(k.inverse, t, x_t) * x_t - at(k.ratio, t, x_t) * output
    x_0_hat = x_0_hat.clamp(-1, 1) if clip else x_0_hat
    lower, upper = at(k.lower, t, x_t), at(k.upper, t, x_t)
    log_variance = (v + 1) / 2 * upper + (1 - v) / 2 * lower
    of_x_0, of_x_t = at(k.of_x_0, t, x_t), at(k.of_x_t, t, x_t)
    mean = of_x_0 * x_0_hat + of_x_t * x_t
    difference = of_x_0 * x_0 + of_x_t * x_t - mean
    kl = 0.5 * (log_variance - lower + torch.exp(lower - log_variance) - 1 + difference**2 * torch.exp(-log_variance))
    nats = torch.where(t == 0, likelihood(x_0, mean, log_variance).flatten(1).mean(1), kl.flatten(1).mean(1))
    return nats / math.log(2), x_0_hat


def likelihood(x, mean, log_variance):
    inverse = torch.exp(-0.5 * log_variance)
    above, below = (_cdf(inverse * (x - mean + edge)) for edge in (1 / 255, -1 / 255))
    p = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -p.clamp(min=1e-12).log()


def _cdf(x):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def kl_loss(wide, x_0, x_t, t, k):
    output, v = (part.to(k.a.dtype) for part in wide.chunk(2, 1))
    return bound(output, v, x_0, x_t, t, k)[0].mean()


def hybrid_loss(wide, x_0, x_t, t, k, z):
    output, v = (part.to(k.a.dtype) for part in wide.chunk(2, 1))
    return F.mse_loss(output, z.to(output.dtype)) + bound(output.detach(), v, x_0, x_t, t, k)[0].mean()


def bits(wide, x_0, x_t, t, k):
    output, v = wide.chunk(2, 1)
    value, x_0_hat = bound(output, v, x_0, x_t, t, k, clip=True)
    return value, ((x_0 - x_0_hat) ** 2).flatten(1).mean(1)


def draw_bits(wide, x_0, x_t, t, before, k):
    return *bits(wide, x_0, x_t, t, k), draw(x_0, before, k)[0]


def numbers(schedule: fd.NoiseSchedule, i: int) -> tuple[float, ...]:
    """What `step` takes for index i > 0."""
    k = Tables.of(schedule, torch.device("cpu"), torch.float64)
    sigma = schedule.posterior_variance[i].sqrt()
    return tuple(float(c) for c in (k.inverse[i], k.ratio[i], k.of_x_0[i], k.of_x_t[i], sigma))


# ---- the calls to time ----


def calls(wrap=lambda function: function) -> dict:
    """{op: batch -> call}, the formulas wrapped."""

    def noising(b: Batch):
        k, f = Tables.of(b.schedule, b.device), wrap(draw)
        return lambda: f(b.x_0, b.t, k)[0]

    def mse(b: Batch):
        f = wrap(mse_loss)
        return gradient_of(lambda output: f(output, b.noise), b.output)

    def trained(b: Batch, f, *given):
        def call():
            b.output.grad = None
            x_t, loss = f(b.x_0, *given, b.output)
            loss.backward()
            return x_t, loss.detach(), b.output.grad

        return call

    def chain(b: Batch):
        return trained(b, wrap(draw_and_loss), b.t, Tables.of(b.schedule, b.device))

    def flow(b: Batch):
        levels, f = b.flow.levels[1].float().to(b.device), wrap(draw_flow_and_loss)
        return trained(b, lambda x_0, output: f(x_0, levels[b.t][:, None, None, None], output))

    def edm(b: Batch):
        return trained(b, wrap(draw_edm_and_loss), b.sigma[:, None, None, None])

    def reverse(b: Batch):
        k, f, output = numbers(b.schedule, STEP), wrap(draw_step), b.output.detach()
        return lambda: f(output, b.x_0, k)

    def guided(b: Batch):
        k, f, output = numbers(b.schedule, STEP), wrap(draw_guided_step), b.output.detach()
        return lambda: f(output, b.uncond_output, b.x_0, k)

    def sampler(op: str):
        f = wrap(solvers.FORMULAS[op])

        def made(b: Batch):
            step = solvers.Step.of(op, b)
            return lambda: f(step)

        return made

    def hybrid(b: Batch):
        k, f = Tables.of(b.schedule, b.device), wrap(hybrid_loss)
        return gradient_of(lambda output: f(output, b.x_0, b.x_t, b.t, k, b.noise), b.wide_output)

    def kl(b: Batch):
        k, f = Tables.of(b.schedule, b.device), wrap(kl_loss)
        return gradient_of(lambda output: f(output, b.x_0, b.x_t, b.t, k), b.wide_output)

    def bits_per_dim(b: Batch):
        k, f, output = Tables.of(b.schedule, b.device), wrap(draw_bits), b.wide_output.detach()
        t, before = (torch.full((len(b),), i, device=b.device) for i in (STEP, STEP - 1))
        return lambda: f(output, b.x_0, b.x_t, t, before, k)

    return {
        "noise": lambda b: lambda: torch.randn_like(b.x_0),
        "noising": noising,
        "mse": mse,
        "chain": chain,
        "reverse": reverse,
        "hybrid": hybrid,
        "kl": kl,
        "bits_per_dim": bits_per_dim,
        "flow": flow,
        "edm": edm,
        "guided": guided,
        **{op: sampler(op) for op in solvers.FORMULAS},
    }
