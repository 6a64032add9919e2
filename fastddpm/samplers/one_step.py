"""Samplers of one step: what they read of earlier steps is nothing, or the stage before (Heun).

x_prev = k_x x + k_0 x_0_hat + k_e eps_hat + k_h1 h_1 + sigma z, from the level x = a x_0 + b eps to a', b'; s = b / a.
"""

import math

import torch
from torch import Tensor

from ..checks import as_finite
from ..edm import EDM
from .levels import CONSISTENCY, Levels
from .sampler import Columns, sampler


def straight(at: Levels) -> Columns:
    """Towards x_0_hat in a straight line: x' / a' = x_0_hat + (s' / s) (x / a - x_0_hat)."""
    return {"k_x": at.b_next / at.b, "k_0": at.a_next * (1 - at.ratio)}


def ancestral(at: Levels) -> Columns:
    """The posterior q(x' | x, x_0_hat) of the chain that has these levels."""
    squared = at.ratio**2
    return {
        "k_x": at.b_next / at.b * at.ratio,
        "k_0": at.a_next * (1 - squared),
        "sigma": at.b_next * (1 - squared).sqrt(),
    }


def keeping(scale: Tensor) -> Columns:
    """x / n - x_0_hat for later steps (of a, s eps_hat): of eps_hat = x / b - x_0_hat a / b the roundings would not cancel."""
    there = scale > 0
    return {"c_x": torch.where(there, 1 / scale, 0.0), "c_0": torch.where(there, -1.0, 0.0).double()}


@sampler(spacing="leading", clip_denoised=True)
def ddim(at: Levels, eta: float = 0.0, use_clipped_model_output: bool = False) -> Columns:
    """Song et al. 2021 (DDIM), equations 12 and 16: x' = a' x_0_hat + sqrt(b'^2 - sigma^2) eps_hat + sigma z.

    Args:
        eta: sigma's share of the chain's own: 0 adds no noise, 1 is ancestral.
        use_clipped_model_output: eps_hat follows from the clipped x_0_hat (OpenAI's), and is not the network's (diffusers').
    """
    if not 0 <= as_finite("eta", eta, "0 .. 1") <= 1:
        raise ValueError(f"eta: expected 0 .. 1, got {eta}")
    noise = 1 - at.ratio**2
    sigma, direction = eta * at.b_next * noise.sqrt(), at.b_next * (1 - eta**2 * noise).sqrt()
    return {"k_0": at.a_next, "k_e" if use_clipped_model_output else "k_net": direction, "sigma": sigma}


@sampler(spacing="leading", clip_denoised=True, inverse=True)
def ddim_inverse(at: Levels) -> Columns:
    """DDIM's map at eta = 0 towards more noise (Song et al. 2021, section 4.3), from an image to the x_T that gives it.

    The network is given the timestep that a step ends at, as by diffusers.
    """
    return {"k_0": at.a_next, "k_net": at.b_next}


@sampler(fractional=True)
def euler(at: Levels) -> Columns:
    """Euler's method in s (Karras et al. 2022, algorithm 2 without churn). It is DDIM of eta = 0, but for clipping."""
    return straight(at)


@sampler(fractional=True)
def euler_ancestral(at: Levels) -> Columns:
    """k-diffusion's sample_euler_ancestral: Euler to s'^2 / s, and noise up to s'. It is DDIM of eta = 1, but for clipping."""
    return ancestral(at)


def _stages(
    at: Levels, of: int, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> Levels:
    """Each step's two levels, the first raised by the churn; but for a first step after a start, where x_t lies already."""
    steps = len(at.timesteps)
    twice = at.visiting([0, *(n for n in range(1, steps) for _ in range(2)), steps])
    if not s_churn:
        return twice
    if not isinstance(at.process, EDM):
        raise ValueError(f"s_churn: expected 0 but for EDM, whose network is given any sigma, got {s_churn}")
    if not s_churn > 0 or not s_noise >= 0:
        raise ValueError(f"s_churn, s_noise: expected 0 or more, got {s_churn} and {s_noise}")
    sigmas, gamma = twice.sigmas.clone(), min(s_churn / of, math.sqrt(2) - 1)
    first = sigmas[0 if steps == of else 2 :: 2]
    first *= 1 + gamma * ((first >= s_tmin) & (first <= s_tmax))
    return Levels(*at.process.at_sigmas(sigmas), at.process)


@sampler(fractional=True, visits=_stages, stream="churn")
def heun(at: Levels, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0) -> Columns:
    """Heun's method in s (Karras et al. 2022, algorithm 2): 2 S - 1 rows, a step's second stage at s' in its own.

    A step ends at y + (s' - s) (e + e') / 2, y = x / a and e, e' the eps_hats of its stages. The first has made y + (s' - s) e
    already, so that the second adds (s' - s) (e' - e) / 2. Of rectified flow y is x, s is b, and e the velocity.

    Args:
        s_churn, s_tmin, s_tmax, s_noise: of `EDM`: before a step from a level between s_tmin and s_tmax it is raised by
            min(s_churn / S, sqrt(2) - 1) of it, by noise of deviation s_noise (the first step's is in x_T). S counts the
            steps that `start` leaves out; the first one walked after it begins at its level as it is, where x_t lies.
    """
    n, time = at.scale, at.b / at.scale
    if bool(time[0].isinf()):
        raise ValueError(
            "schedule: expected a terminal SNR above 0 for heun (its mean of two slopes has no limit there), got 0"
        )
    before, first = torch.cat((time[:1], time[:-1])), straight(at)
    second = torch.arange(len(time), device="cpu") % 2 == 1
    half = torch.where(second, at.a_next / at.a * n * (time - before) / 2, 0.0)
    return {
        "k_x": torch.where(second, at.a_next / at.a, first["k_x"]),
        # the slope is (x / n - x_0_hat) / (b / n) = eps_hat + x_0_hat (a - n) / b
        "k_0": torch.where(second, half * (at.a - n) / at.b, first["k_0"]),
        "k_e": half,
        "k_h1": -half / before,
        "sigma": s_noise * at.a_next * (at.sigmas[1:] ** 2 - at.sigma**2).clamp(min=0).sqrt(),
        **keeping(n),
    }


@sampler(spacing="lcm", spacings=CONSISTENCY, of_chain=True)
def lcm(at: Levels, timestep_scaling: float = 10.0) -> Columns:
    """Luo et al. 2023 (latent consistency models), algorithm 3: x' = a' (c_skip x + c_out x_0_hat) + b' z.

    Args:
        timestep_scaling: c_skip = sigma_d^2 / ((t timestep_scaling)^2 + sigma_d^2), sigma_d = 1/2, and c_out to match.
    """
    t, data = at.timesteps.double() * timestep_scaling, 0.5
    c_skip, c_out = data**2 / (t**2 + data**2), t / (t**2 + data**2).sqrt()
    return {"k_x": at.a_next * c_skip, "k_0": at.a_next * c_out, "sigma": at.b_next}
