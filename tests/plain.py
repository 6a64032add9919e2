"""The formulas as anyone would write them in eager PyTorch, in one dtype throughout, from the schedule's tables.

Called with float64 they are the truth that the ops are held to; called with the op's dtype they are the error allowed.
"""

import math

import torch

from fastddpm import samplers


def column(table, t, x, dtype):
    return table[t].to(dtype).view(-1, *[1] * (x.dim() - 1))


def q_sample(x_0, t, schedule, z, dtype):
    a, s = (column(c, t, x_0, dtype) for c in (schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()))
    return a * x_0.to(dtype) + s * z.to(dtype)


def q_step(x_prev, t, schedule, z, dtype):
    a, s = (column(c, t, x_prev, dtype) for c in ((1 - schedule.betas).sqrt(), schedule.betas.sqrt()))
    return a * x_prev.to(dtype) + s * z.to(dtype)


def posterior_mean(x_0, x_t, t, schedule, dtype):
    """math.md's mu~, from the betas."""
    abar, beta = schedule.alphas_cumprod, schedule.betas
    before = torch.cat((torch.ones(1, dtype=torch.float64), abar[:-1]))
    of_x_0 = column(before.sqrt() * beta / (1 - abar), t, x_0, dtype)
    of_x_t = column((1 - beta).sqrt() * (1 - before) / (1 - abar), t, x_0, dtype)
    return of_x_0 * x_0.to(dtype) + of_x_t * x_t.to(dtype)


def target(x_0, x_t, t, schedule, z, prediction_type, dtype):
    if prediction_type == "epsilon":
        return z.to(dtype)
    if prediction_type == "sample":
        return x_0.to(dtype)
    if prediction_type == "v_prediction":
        return q_sample(-x_0, t, _swapped(schedule), z, dtype)
    x_t = q_sample(x_0, t, schedule, z, dtype) if x_t is None else x_t
    return posterior_mean(x_0, x_t, t, schedule, dtype)


class _swapped:  # noqa: N801
    """A schedule whose signal and noise have changed places: v = sqrt(abar) z - sqrt(1 - abar) x_0."""

    def __init__(self, schedule):
        self.alphas_cumprod = 1 - schedule.alphas_cumprod


def weights(weight, schedule, prediction_type):
    if weight is None:
        return torch.ones(len(schedule), dtype=torch.float64)
    if weight != "min_snr":
        return weight.double()
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    divisor = {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[prediction_type]
    return snr.clamp(max=5.0) / divisor


def mse_loss(out, t, schedule, z, x_0, x_t, prediction_type, weight, dtype):
    """`[B]`."""
    squares = (out.to(dtype) - target(x_0, x_t, t, schedule, z, prediction_type, dtype)) ** 2
    return weights(weight, schedule, prediction_type)[t].to(dtype) * squares.reshape(len(out), -1).mean(1)


def x_0_hat(out, x_t, t, schedule, prediction_type, dtype):
    abar = schedule.alphas_cumprod
    a, s = column(abar.sqrt(), t, x_t, dtype), column((1 - abar).sqrt(), t, x_t, dtype)
    out, x_t = out.to(dtype), x_t.to(dtype)
    if prediction_type == "epsilon":
        return (x_t - s * out) / a
    if prediction_type == "v_prediction":
        return a * x_t - s * out
    if prediction_type == "sample":
        return out
    zero = torch.zeros_like(x_t)
    of_x_t = posterior_mean(zero, torch.ones_like(x_t), t, schedule, dtype)
    return (out - of_x_t * x_t) / posterior_mean(torch.ones_like(x_t), zero, t, schedule, dtype)


def reverse_step(out, x_t, t, schedule, z, prediction_type, variance_type, clip, dtype):
    """Ancestral sampling's (x_prev, x_0_hat)."""
    if variance_type.startswith("learned"):
        sigma = (log_variance(out, t, schedule, variance_type, dtype) / 2).exp()
        out = out[:, : x_t.shape[1]]
    else:
        sigma = column(schedule.variance(variance_type).sqrt(), t, x_t, dtype)
    x_0 = x_0_hat(out, x_t, t, schedule, prediction_type, dtype)
    x_0 = x_0 if clip is None else x_0.clamp(-clip, clip)
    mean = out.to(dtype) if prediction_type == "previous" else posterior_mean(x_0, x_t, t, schedule, dtype)
    noise = torch.where(t.view(-1, *[1] * (x_t.dim() - 1)) > 0, sigma * z.to(dtype), 0)
    return mean + noise, x_0


def ddpm_rows(schedule, prediction_type, variance_type, clip):
    return samplers.ddpm(schedule, prediction_type, variance_type, clip is not None, clip or 1.0)


def log_variance(out, t, schedule, variance_type, dtype):
    """Of the reverse step; index 0 has index 1's beta~."""
    lower, upper = torch.cat((schedule.posterior_variance[1:2], schedule.posterior_variance[1:])).log(), schedule.betas.log()
    lower, upper = column(lower, t, out, dtype), column(upper, t, out, dtype)
    v = out[:, out.shape[1] // 2 :].to(dtype)
    if variance_type == "learned":
        return v
    if variance_type == "learned_range":
        return (v + 1) / 2 * upper + (1 - v) / 2 * lower
    large = torch.where(t.view(upper.shape) == 0, lower, upper)
    return lower if variance_type == "fixed_small" else large


def kl(lv_q, lv_p, difference):
    """Of two normals, in nats, as it stands in every paper."""
    return (lv_p - lv_q + (lv_q - lv_p).exp() - 1 + difference**2 * (-lv_p).exp()) / 2


def nll(x, mu, lv):
    """Of x's bin, in nats, as a difference of CDFs."""
    below, above = (torch.special.ndtr((x + side / 255 - mu) * (-lv / 2).exp()) for side in (-1, 1))
    below = torch.where(x < -0.999, torch.zeros_like(below), below)
    return -(torch.where(x > 0.999, torch.ones_like(above), above) - below).log()


def vlb_loss(out, x_0, x_t, t, schedule, prediction_type, variance_type, dtype):
    """`[B]`; the first sample has index 0, the others have not."""
    lv_p, lv_q = (log_variance(out, t, schedule, kind, dtype) for kind in (variance_type, "fixed_small"))
    mean = out[:, : x_0.shape[1]]
    predicted = x_0_hat(mean, x_t, t, schedule, prediction_type, dtype)
    mu = mean.to(dtype) if prediction_type == "previous" else posterior_mean(predicted, x_t, t, schedule, dtype)
    difference = posterior_mean(x_0, x_t, t, schedule, dtype) - mu
    first, later = nll(x_0.to(dtype)[:1], mu[:1], lv_p[:1]), kl(lv_q[1:], lv_p[1:], difference[1:])
    return torch.cat((first, later)).reshape(len(x_0), -1).mean(1) / math.log(2)
