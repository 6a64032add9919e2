"""Bits/dim: OpenAI's figures, an exactly solvable model, the noise of every step, and one launch a step."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import same_bits, values
from test_no_host_reads import NoHostReads

from fastddpm import GaussianDiffusion, NoiseSchedule, noise_key, prior_kl, q_sample, randn, vlb_loss

GOLDEN = np.load(Path(__file__).with_name("data") / "openai_gaussian_diffusion.npz")
NAMES = {"total": "total_bpd", "prior": "prior_bpd", "vb": "vb", "x_0_mse": "xstart_mse", "eps_mse": "mse"}
LINEAR = NoiseSchedule.linear(20, 1e-3, 0.3)


def toy(variance_type="fixed_small", scale=20):
    """The model of OpenAI's figures; elementwise, so its bits do not depend on the batch."""

    def model(x, t):
        out = x * (t.view(-1, *[1] * (x.dim() - 1)) / scale).to(x.dtype)
        return torch.cat((out, 0.1 * x), 1) if variance_type.startswith("learned") else out

    return model


def diffusion_of(variance_type="fixed_small", schedule=LINEAR, prediction_type="epsilon"):
    return GaussianDiffusion(schedule, prediction_type, variance_type, loss="kl")


def data(count=3, dtype=torch.float32):
    return (values(count, 2, 4, 6).clamp(-1, 1) * 127.5).round().div(127.5).to(dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_openais_figures(variance_type, dtype, tolerance):
    """Their columns run t = T-1 .. 0."""
    schedule = NoiseSchedule.from_betas(torch.from_numpy(GOLDEN["bpd/linear50/betas"]))
    x_0, noise = (torch.from_numpy(GOLDEN[name]).to(dtype) for name in ("x0", "noise"))
    model = toy(variance_type, 50)
    got = diffusion_of(variance_type, schedule).bits_per_dim(model, x_0, noise=noise, cdf="tanh", progress=False)
    assert set(got) == set(NAMES)
    for name, theirs in NAMES.items():
        expected = GOLDEN[f"bpd/linear50/{variance_type}/{theirs}"]
        expected = expected[:, ::-1] if expected.ndim == 2 else expected
        assert got[name].dtype == dtype and got[name].shape == expected.shape
        error = np.abs(got[name].double().numpy() - expected).max() / np.abs(expected).max()
        assert error <= tolerance, f"{name}: {error:.1e} of the largest figure"


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "previous"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned"])
@pytest.mark.parametrize("steps", [None, 6])
def test_every_term_is_vlb_loss_at_its_own_noise(prediction_type, variance_type, steps):
    """The noise is (seed, timestep of the original chain, sample)'s; the model is given that timestep."""
    diffusion = diffusion_of(variance_type, prediction_type=prediction_type)
    chain = LINEAR if steps is None else LINEAR.respace(steps)
    seen, x_0, model = [], data(), toy(variance_type)

    def watched(x_t, t):
        seen.append((x_t, t))
        return model(x_t, t)

    got = diffusion.bits_per_dim(watched, x_0, seed=9, steps=steps, clip_denoised=False, first_sample=4, progress=False)
    assert [int(t[0]) for _, t in seen] == chain.timesteps.flip(0).tolist()
    for i, (x_t, t) in enumerate(reversed(seen)):
        key = noise_key(9, int(chain.timesteps[i]), len(x_0), first_sample=4, stream="evaluation")
        assert same_bits(x_t, q_sample(x_0, i, chain, key)) and t.shape == (3,)
        types = {"prediction_type": prediction_type, "variance_type": variance_type}
        expected = vlb_loss(model(x_t, t), x_0, x_t, i, chain, **types, reduction="none")
        assert torch.allclose(got["vb"][:, i], expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(got["prior"], prior_kl(x_0, chain))
    assert torch.allclose(got["total"], got["prior"] + got["vb"].sum(1))
    assert got["vb"].shape == got["x_0_mse"].shape == got["eps_mse"].shape == (3, len(chain))


def test_squared_errors_are_those_of_the_models_output():
    x_0, model = data(dtype=torch.float64), toy()
    got = diffusion_of().bits_per_dim(model, x_0, seed=2, clip_denoised=False, progress=False)
    for t in range(len(LINEAR)):
        key = noise_key(2, t, len(x_0), stream="evaluation")
        x_t, noise = q_sample(x_0, t, LINEAR, key), randn(key, x_0.shape, torch.float64)
        missed = (model(x_t, torch.full((3,), t)) - noise).square().flatten(1).mean(1)
        assert torch.allclose(got["eps_mse"][:, t], missed, rtol=1e-10)
    assert torch.equal(got["eps_mse"], LINEAR.snr * got["x_0_mse"])


def test_a_respaced_chain_sees_the_same_x_t():
    seen = {None: {}, 5: {}}
    for steps, inputs in seen.items():
        model = toy()

        def watched(x_t, t, model=model, inputs=inputs):
            inputs[int(t[0])] = x_t
            return model(x_t, t)

        diffusion_of().bits_per_dim(watched, data(), steps=steps, progress=False)
    assert len(seen[5]) == 5 and all(torch.allclose(x_t, seen[None][t], atol=1e-6) for t, x_t in seen[5].items())


@pytest.mark.parametrize("variance_type", ["fixed_large", "learned_range"])
def test_any_batches_see_the_same_noise(variance_type):
    x_0, diffusion, model = data(7), diffusion_of(variance_type), toy(variance_type)
    whole = diffusion.bits_per_dim(model, x_0, seed=3, progress=False)
    chunked = diffusion.bits_per_dim(model, x_0, seed=3, batch_size=3, progress=False)
    tail = diffusion.bits_per_dim(model, x_0[5:], seed=3, first_sample=5, progress=False)
    for name, figures in whole.items():  # the toy model is elementwise, so the figures too are the same bits
        assert same_bits(figures, chunked[name]) and same_bits(figures[5:], tail[name]), name


def test_a_seed_for_each_sample():
    x_0, diffusion, model = data(4), diffusion_of(), toy()
    seeds = torch.tensor([5, 6, 7, 8])
    whole = diffusion.bits_per_dim(model, x_0, seed=seeds, batch_size=3, progress=False)
    alone = diffusion.bits_per_dim(model, x_0[2:3], seed=seeds[2:3], progress=False)
    assert same_bits(whole["vb"][2:3], alone["vb"])


@pytest.mark.parametrize("form", ["key", "tensor"])
def test_given_noise_serves_every_step(form):
    x_0, key, inputs = data(), noise_key(11, 3, 3), []

    def model(x_t, t):
        inputs.append(x_t)
        return x_t

    noise = key if form == "key" else randn(key, x_0.shape)
    diffusion_of().bits_per_dim(model, x_0, noise=noise, batch_size=2, progress=False)
    for i in range(len(LINEAR)):
        expected = q_sample(x_0, i, LINEAR, noise)
        assert same_bits(torch.cat((inputs[19 - i], inputs[39 - i])), expected)


def test_model_kwargs_come_in_parts():
    x_0, seen = data(5), []

    def model(x_t, t, labels, scale, table, name):
        seen.append((labels.tolist(), table.shape))
        return x_t * scale + 0 * labels.view(-1, 1, 1, 1)

    kwargs = {"labels": torch.arange(5), "scale": torch.tensor(0.5), "table": torch.ones(2, 5), "name": "n"}
    diffusion_of().bits_per_dim(model, x_0, model_kwargs=kwargs, batch_size=2, steps=1, progress=False)
    assert seen == [([0, 1], (2, 5)), ([2, 3], (2, 5)), ([4], (2, 5))]


def test_exactly_solvable():
    """Of data N(0, s^2) the exact reverse conditionals are known: with them the bound is -log p(x_0), but for Monte Carlo
    noise, the bins and p(x_T)."""
    s, schedule = 0.2, NoiseSchedule.linear(1000)
    abar, before, beta = (x.float() for x in (schedule.alphas_cumprod, schedule.alphas_cumprod_prev, schedule.betas))
    log_variance = (beta * (before * s**2 + 1 - before) / (abar * s**2 + 1 - abar)).log()
    slope = (1 - abar).sqrt() / (abar * s**2 + 1 - abar)

    def model(x, t):
        column = (-1, 1, 1, 1)
        return torch.cat((slope[t].view(column) * x, log_variance[t].view(column).expand(x.shape)), 1)

    x_0 = s * torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    total = diffusion_of("learned", schedule).bits_per_dim(model, x_0, clip_denoised=False, progress=False)["total"]
    nats = 0.5 * (x_0 / s) ** 2 + math.log(s * math.sqrt(2 * math.pi)) - math.log(2 / 255)
    exact = nats.flatten(1).mean(1) / math.log(2)
    assert abs(float((total - exact).mean())) < 0.04 and float((total - exact).abs().max()) < 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_data(dtype):
    got = diffusion_of("learned_range").bits_per_dim(toy("learned_range"), data(dtype=dtype), progress=False)
    expected = diffusion_of("learned_range").bits_per_dim(toy("learned_range"), data(), progress=False)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in got.values())
    assert torch.allclose(got["total"], expected["total"], rtol=0.05)


def test_nothing_is_kept_for_a_gradient():
    net = torch.nn.Conv2d(2, 2, 1)
    got = diffusion_of().bits_per_dim(lambda x, t: net(x), data().requires_grad_(), progress=False)
    assert not any(x.requires_grad for x in got.values())


def test_an_empty_batch():
    got = diffusion_of().bits_per_dim(toy(), data()[:0], batch_size=4, progress=False)
    assert got["total"].shape == (0,) and got["vb"].shape == (0, 20)


VIEWS = {"select", "expand", "slice", "unbind", "view", "detach"}


@pytest.mark.parametrize("steps", [None, 7])
def test_a_step_is_one_launch_and_reads_nothing(steps):
    diffusion = diffusion_of("learned_range")
    out, modes = torch.cat((data(), data()), 1), []
    for uploads in (True, False):
        mode = NoHostReads(uploads, armed=False)

        def model(x, t, mode=mode):
            mode.armed = True
            return out

        with mode:
            diffusion.bits_per_dim(model, data(), steps=steps, batch_size=3, progress=False)
        modes.append(mode)
    for mode in modes:
        count, names = steps or len(LINEAR), mode.seen
        first = names.index("vlb_terms")
        last = len(names) - 1 - names[::-1].index("vlb_terms")
        launches = [name for name in names[first : last + 1] if name not in VIEWS]
        assert launches == ["vlb_terms"] * count


def test_bad_input():
    diffusion, x_0 = diffusion_of(), data()
    bad = [
        ({"x_0": x_0.long()}, TypeError, "x_0"),
        ({"noise": x_0[:2]}, ValueError, "noise"),
        ({"noise": noise_key(0, 0, 2)}, ValueError, "noise: expected a key of 3 rows"),
        ({"cdf": "erf"}, ValueError, "cdf: expected one of"),
        ({"steps": 21}, ValueError, r"steps: expected 1 \.\. 20"),
        ({"batch_size": 0}, ValueError, "batch_size: expected 1 or more"),
        ({"batch_size": 2.0}, TypeError, "batch_size"),
        ({"first_sample": -1}, ValueError, "first_sample"),
        ({"model": lambda x, t: x[:, :1]}, ValueError, "model: expected x_t's shape"),
        ({"model": lambda x, t: None}, TypeError, "model"),
    ]
    for changed, error, named in bad:
        with pytest.raises(error, match=named):
            diffusion.bits_per_dim(**{"model": toy(), "x_0": x_0, "progress": False, **changed})
    with pytest.raises(ValueError, match="2C"):
        diffusion_of("learned").bits_per_dim(toy(), x_0, progress=False)
