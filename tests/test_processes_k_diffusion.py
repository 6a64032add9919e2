"""EDM beside k-diffusion's Denoiser and its samplers: theirs in float64 is the truth."""

import k_diffusion_peer
import pytest
import torch
from helpers import far, leaf, values, wide

from fastddpm import EDM, GaussianDiffusion, mse_loss, q_sample, samplers

layers, sampling = (k_diffusion_peer.module(name) for name in ("layers", "sampling"))

SHAPE = (4, 3, 5, 5)
SIGMAS = torch.tensor([0.002, 0.3, 5.0, 80.0], **wide)


def network(x, t):
    return torch.sin(2 * x) + 0.1 * t.to(x.dtype).reshape(-1, 1, 1, 1)


def inner(x, sigma):
    """Their inner model is given sigma where ours is given ln(sigma) / 4, in float32."""
    return network(x, (sigma.double().log() / 4).float())


def of_samples(x, truth):
    """The largest relative error of a sample's."""
    return max(map(far, x, truth))


# ---- training ----


@pytest.mark.parametrize("data", [0.5, 1.0])
def test_the_loss_and_its_gradient_are_those_of_the_denoiser(data):
    denoiser, edm, found = layers.Denoiser(None, sigma_data=data), EDM(data), {}
    x_0, z = values(*SHAPE, **wide), values(*SHAPE, **wide, seed=1)
    for dtype in (torch.float64, torch.float32):
        out, given = leaf(*SHAPE, dtype=dtype, seed=2), []
        denoiser.inner_model = lambda x, sigma, out=out, given=given: given.append(x) or out
        theirs = denoiser.loss(x_0.to(dtype), z.to(dtype), SIGMAS.to(dtype))
        ours = mse_loss(out, SIGMAS.to(dtype), edm, z.to(dtype), x_0.to(dtype), reduction="none")
        noised = q_sample(x_0.to(dtype), SIGMAS.to(dtype), edm, z.to(dtype))
        for name, loss in (("theirs", theirs), ("ours", ours)):
            found[name, dtype] = (
                loss.detach(),
                torch.autograd.grad(loss.sum(), out)[0],
                given[0] if name == "theirs" else noised,
            )
    of_each = (found[name, dtype] for name in ("theirs", "ours") for dtype in (torch.float64, torch.float32))
    for truth, theirs, double, ours in zip(*of_each, strict=True):
        assert of_samples(double, truth) < 1e-12
        assert of_samples(ours, truth) <= 2 * of_samples(theirs, truth) + 1e-7


def test_the_denoised_image_is_theirs():
    edm, x = EDM(), values(*SHAPE, **wide)
    for sigma in SIGMAS:
        x_t, seen = x * edm.levels_at(sigma)[0], []
        truth = layers.Denoiser(inner, sigma_data=0.5)(x, sigma.expand(4))
        given = {"callback": lambda i, t, x_t, x_0, seen=seen: seen.append(x_0), "progress": False, "dtype": torch.float64}
        GaussianDiffusion(edm).sample(network, SHAPE, "euler", [float(sigma)], x_T=x_t, **given)
        assert far(seen[0], truth) < 1e-6


# ---- sampling ----


def test_the_levels_are_theirs():
    for edm in (EDM(), EDM(sigma_min=0.01, sigma_max=20.0, rho=5.0)):
        theirs = sampling.get_sigmas_karras(18, edm.sigma_min, edm.sigma_max, edm.rho)
        torch.testing.assert_close(theirs.double(), edm.walk(18)[1], rtol=1e-5, atol=0)


CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 1.003}
CASES = {  # their function and what it is called with; the sampler and its options
    "euler": ("sample_euler", {}, "euler", {}),
    "heun": ("sample_heun", {}, "heun", {}),
    "heun, churn": ("sample_heun", CHURN, "heun", CHURN),
    "dpmpp_2m": ("sample_dpmpp_2m", {}, "dpmpp_2m", {}),
    "lms": ("sample_lms", {}, "lms", {}),
    "euler_ancestral": ("sample_euler_ancestral", {"noise_sampler": None}, "euler_ancestral", {}),
    "dpmpp_2m_sde": ("sample_dpmpp_2m_sde", {"noise_sampler": None}, "dpmpp_2m_sde", {}),
}


def their_loop(name, options, x, sigmas, noise, monkeypatch):
    """Their i-th draw is noise[i]."""
    draws = iter(noise.to(x.dtype))
    given = {**options, "noise_sampler": lambda *sigmas: next(draws)} if "noise_sampler" in options else options
    monkeypatch.setattr(sampling.torch, "randn_like", lambda x: next(draws))
    denoiser = layers.Denoiser(inner, sigma_data=0.5)
    return getattr(sampling, name)(denoiser, x, sigmas.to(x.dtype), disable=True, **given)


@pytest.mark.parametrize("steps", [5, 18])
@pytest.mark.parametrize("case", CASES)
def test_a_whole_loop_is_theirs(case, steps, monkeypatch):
    name, their_options, sampler, options = CASES[case]
    edm, z, ends = EDM(), values(steps, *SHAPE, **wide, seed=1), {}
    _, sigmas, a = edm.walk(steps)
    first = 80 * values(*SHAPE, **wide)
    noise = z
    if sampler == "heun":  # theirs is raised before its i-th step; ours at the end of the one before, its second stage
        noise = torch.zeros(len(samplers.heun(edm, steps=steps)), *SHAPE, **wide)
        noise[1::2] = z[1:]
    for dtype in (torch.float64, torch.float32):
        with monkeypatch.context() as patch:
            ends["theirs", dtype] = their_loop(name, their_options, first.to(dtype), sigmas, z, patch)
        about = {"x_T": (first * a[0]).to(dtype), "dtype": dtype, "noise": noise.to(dtype), "progress": False}
        ends["ours", dtype] = GaussianDiffusion(edm).sample(network, SHAPE, sampler, steps, **about, **options)
    truth = ends["theirs", torch.float64]
    assert truth.dtype is torch.float64 and far(ends["ours", torch.float64], truth) < 1e-6
    assert far(ends["ours", torch.float32], truth) <= 2 * far(ends["theirs", torch.float32], truth) + 1e-7
