"""EDM against the formulas of Karras et al. 2022 written out in float64, and diffusers' EDM scheduler beside it."""

import copy
import itertools
import math

import pytest
import torch
from helpers import leaf, values, wide
from test_no_host_reads import UPLOADS, NoHostReads

from fastddpm import (
    EDM,
    GaussianDiffusion,
    LossSecondMoment,
    NoiseSchedule,
    graphs,
    mse_loss,
    noise_key,
    q_sample,
    q_sample_uniform,
    randn,
    samplers,
)
from fastddpm.densities import Discrete, LogitNormal, LogNormal
from fastddpm.noise import levels

SHAPE = (4, 3, 5, 5)
SIGMAS = torch.tensor([0.002, 0.3, 5.0, 80.0], **wide)
GIVEN = {"seed": 0, "progress": False}


def each(sigma):
    return sigma[:, None, None, None]


def preconditioning(sigma, data):
    """Table 1: c_skip, c_out, c_in, c_noise, lambda."""
    both = sigma**2 + data**2
    return data**2 / both, sigma * data / both.sqrt(), 1 / both.sqrt(), sigma.log() / 4, both / (sigma * data) ** 2


def network(x, t):
    """No denoiser, but smooth."""
    return torch.sin(2 * x) + 0.1 * t.to(x.dtype).reshape(-1, 1, 1, 1)


# ---- training ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_noising_gives_what_the_network_is_given(dtype):
    edm, x_0, z = EDM(), values(*SHAPE, dtype=dtype), values(*SHAPE, dtype=dtype, seed=1)
    _, _, c_in, _, _ = preconditioning(each(SIGMAS), 0.5)
    expected = c_in * (x_0.double() + each(SIGMAS) * z.double())
    got = q_sample(x_0, SIGMAS.to(dtype), edm, z)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-12 if dtype is torch.float64 else 1e-6)
    torch.testing.assert_close(q_sample(x_0, 5.0, edm, z)[2].double(), expected[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("data", [0.5, 1.3])
def test_the_loss_is_the_paper_s(data):
    """Equation 8: lambda (D - x_0)^2, D = c_skip y + c_out F(c_in y; c_noise); its gradient by F's output."""
    edm, x_0, z, out = EDM(data), values(*SHAPE, **wide), values(*SHAPE, **wide, seed=1), leaf(*SHAPE, **wide, seed=2)
    c_skip, c_out, _, _, weight = preconditioning(each(SIGMAS), data)
    expected = (weight * (c_skip * (x_0 + each(SIGMAS) * z) + c_out * out - x_0).square()).mean()
    got = mse_loss(out, SIGMAS, edm, z, x_0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, out)[0], torch.autograd.grad(expected, out)[0])


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_other_predictions(prediction_type):
    edm, x_0, z, out = EDM(), values(*SHAPE, **wide), values(*SHAPE, **wide, seed=1), values(*SHAPE, **wide, seed=2)
    target = {"sample": x_0, "epsilon": z}[prediction_type]
    got = mse_loss(out, SIGMAS, edm, z, x_0, prediction_type=prediction_type)
    torch.testing.assert_close(got, (out - target).square().mean())


def test_min_snr_is_of_x_0_s_error():
    edm, x_0, z, out = EDM(), values(*SHAPE, **wide), values(*SHAPE, **wide, seed=1), values(*SHAPE, **wide, seed=2)
    c_skip, c_out, *_ = preconditioning(each(SIGMAS), 0.5)
    error = (c_skip * (x_0 + each(SIGMAS) * z) + c_out * out - x_0).square()
    got = mse_loss(out, SIGMAS, edm, z, x_0, weight="min_snr")
    torch.testing.assert_close(got, (each(SIGMAS**-2).clamp(max=5) * error).mean())


def test_a_training_step_draws_sigma_of_the_key():
    edm, x_0, key, seen = EDM(P_mean=-0.4, P_std=0.8), values(*SHAPE), noise_key(3, 1, 4), []

    def model(x_t, t):
        seen.append((x_t, t))
        return x_t / 2

    got = GaussianDiffusion(edm).training_loss(model, x_0, key)
    sigma = levels(key, LogNormal(-0.4, 0.8))
    x_t = q_sample(x_0, sigma, edm, key)
    assert torch.equal(seen[0][0], x_t) and torch.equal(x_t, q_sample(x_0, sigma, edm, randn(key, SHAPE)))
    torch.testing.assert_close(seen[0][1], sigma.log() / 4)
    assert torch.equal(got, mse_loss(x_t / 2, sigma, edm, key, x_0))


def test_sigma_is_lognormal_and_no_part_of_the_noise():
    key = noise_key(0, 0, 20000)
    sigma, z = levels(key, EDM().density).double(), randn(key, (20000, 1))[:, 0].double()
    assert abs(float(sigma.log().mean()) + 1.2) < 0.03 and abs(float(sigma.log().std()) - 1.2) < 0.03
    assert abs(float(torch.corrcoef(torch.stack((sigma.log(), z)))[0, 1])) < 0.03


# ---- sampling ----


def sigmas_of(steps):
    """Equation 5."""
    i = torch.arange(steps, **wide) / max(steps - 1, 1)
    sigmas = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    return torch.cat((sigmas, torch.zeros(1, **wide)))


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_a_sampler_walks_where_the_paper_does(steps):
    timesteps, sigmas, a = EDM().walk(steps)
    torch.testing.assert_close(sigmas, sigmas_of(steps))
    torch.testing.assert_close(timesteps.double(), sigmas[:-1].log() / 4, rtol=1e-6, atol=0)
    assert a[-1] == 1


def algorithm_2(y, noise, steps, churn=0.0, low=0.0, high=math.inf, size=1.0, data=0.5):
    """Karras et al. 2022, algorithm 2, the noise of its step i being noise[i]; y is at the first level, raised already."""
    sigmas = sigmas_of(steps)

    def denoised(y, sigma):
        c_skip, c_out, c_in, c_noise, _ = preconditioning(sigma, data)
        return c_skip * y + c_out * network(c_in * y, c_noise.float())

    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        gamma = min(churn / steps, math.sqrt(2) - 1) if low <= sigma <= high else 0.0
        raised = sigma * (1 + gamma)
        if i > 0:
            y = y + (raised**2 - sigma**2).sqrt() * size * noise[i]
        slope = (y - denoised(y, raised)) / raised
        end = y + (after - raised) * slope
        if after > 0:
            end = y + (after - raised) * (slope + (end - denoised(end, after)) / after) / 2
        y = end
    return y


CHURNS = {
    "none": {},
    "churn": {"s_churn": 4.0},
    "much": {"s_churn": 100.0},
    "some": {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 1.003},
}


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("churn", CHURNS)
def test_a_loop_is_algorithm_2(churn, steps):
    options, x_T, z = CHURNS[churn], values(2, 3, 4, 4, **wide), values(steps, 2, 3, 4, 4, **wide, seed=1)  # noqa: N806
    rows = samplers.heun(EDM(), steps=steps, **options)
    assert len(rows) == 2 * steps - 1 and rows.adds_noise == (steps > (2 if churn == "some" else 1) and churn != "none")
    noise = torch.zeros(len(rows), *x_T.shape, **wide)
    noise[1::2] = z[1:]
    first = sigmas_of(steps)[0] * (1 + (min(4 / steps, math.sqrt(2) - 1) if churn == "churn" else 0.0))
    first = sigmas_of(steps)[0] * math.sqrt(2) if churn == "much" else first
    y = x_T * (first**2 + 0.25).sqrt()
    expected = algorithm_2(y, z, steps, *options.values())
    got = GaussianDiffusion(EDM()).sample(
        network, x_T.shape, "heun", steps, x_T=x_T, noise=noise, dtype=torch.float64, progress=False, **options
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)  # c_noise is float32


def test_churn_is_drawn_from_a_stream_of_its_own():
    diffusion = GaussianDiffusion(EDM())
    key = noise_key(0, 0, 4, stream="churn")
    keys = torch.stack([key + torch.tensor([0, n << 32]) for n in range(7)])
    noise = torch.stack([randn(k, SHAPE) for k in keys])
    given = {"sampler": "heun", "steps": 4, "s_churn": 2.0, **GIVEN}
    assert torch.equal(diffusion.sample(network, SHAPE, **given), diffusion.sample(network, SHAPE, noise=noise, **given))


@pytest.mark.parametrize("steps", [1, 18])
def test_a_loop_is_that_of_diffusers(steps):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EDMEulerScheduler()
    theirs.set_timesteps(steps)
    timesteps, sigmas, _ = EDM().walk(steps)
    torch.testing.assert_close(sigmas, theirs.sigmas.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(timesteps, theirs.timesteps, rtol=2e-6, atol=0)
    x_T = values(2, 3, 4, 4)  # noqa: N806
    y = x_T * (theirs.sigmas[0] ** 2 + 0.25).sqrt()
    for t in theirs.timesteps:
        y = theirs.step(network(theirs.scale_model_input(y, t), t), t, y).prev_sample
    got = GaussianDiffusion(EDM()).sample(network, x_T.shape, "euler", steps, x_T=x_T, progress=False)
    torch.testing.assert_close(got, y, rtol=0, atol=2e-4 * float(y.abs().max()))


def distance(sampler, steps):
    """Of x_0 ~ N(0, 1/4), from what the exact flow makes of y at sigma 80 at 0.01: y (0.25 + s^2)^1/2 falls with s."""
    edm, x_T = EDM(rho=1.0), values(2, 1, 2, 2, **wide)  # noqa: N806

    def best(x, t):
        return torch.zeros_like(x)  # D is c_skip y: of data of deviation sigma_data F has nothing to add

    sigmas = torch.logspace(math.log10(80.0), math.log10(0.01), steps + 1, **wide)
    at = samplers.Levels(*edm.at_sigmas(sigmas), edm)
    rows = samplers.SAMPLERS[sampler](at, **({"lower_order_final": False} if sampler[:3] in ("dpm", "uni") else {}))
    got = GaussianDiffusion(edm).sample(best, x_T.shape, rows, x_T=x_T, dtype=torch.float64, progress=False)
    return float((got - x_T).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(sampler, order):
    errors = [distance(sampler, steps) for steps in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_3m", "dpmpp_2m_sde", "unipc_2", "unipc_3", "lms", "heun"])
def test_every_sampler_draws_the_data_s_deviation(sampler):
    def best(x, t):
        return torch.zeros_like(x)

    steps = 400 if sampler == "euler_ancestral" else 40
    got = GaussianDiffusion(EDM()).sample(best, (64, 3, 8, 8), sampler, steps, **GIVEN)
    assert float(got.std()) == pytest.approx(0.5, rel=0.05)


def test_the_default_is_heun_in_18_steps_and_x_0_is_clipped_where_asked_only():
    diffusion, calls = GaussianDiffusion(EDM()), []

    def model(x, t):
        calls.append(t)
        return torch.full_like(x, 40.0)

    free = diffusion.sample(model, SHAPE, **GIVEN)
    assert len(calls) == 35 and float(free.abs().max()) > 2
    assert float(diffusion.sample(model, SHAPE, clip_denoised=True, **GIVEN).abs().max()) <= 1.001


def test_a_loop_begins_with_an_image_noised_to_a_level():
    edm, x_0 = EDM(), values(*SHAPE)
    sigmas = edm.walk(10)[1]
    x_t = q_sample(x_0, float(sigmas[6]), edm, noise_key(0, 0, 4))
    got = GaussianDiffusion(edm).sample(network, SHAPE, steps=10, start=6, x_t=x_t, **GIVEN)
    again = GaussianDiffusion(edm).sample(network, SHAPE, steps=sigmas[6:-1].tolist(), x_T=x_t, **GIVEN)
    assert torch.equal(got, again)


def test_after_a_start_the_churn_is_that_of_the_whole_walk():
    """But for the first step, which begins at the level of x_t."""
    edm = EDM()
    whole, late = samplers.heun(edm, steps=18, s_churn=4), samplers.heun(edm, steps=18, s_churn=4, start=9)
    assert torch.equal(late.timesteps[:-1], whole.timesteps[:16])
    assert torch.equal(late.columns.sigma[:-1], whole.columns.sigma[:16])
    assert float(late.timesteps[-1]) == float(edm.walk(18)[0][9])


def test_a_process_without_a_table_is_true():
    assert EDM()


def test_inpainting_noises_what_is_known_to_each_step_s_level():
    edm, known, seen = EDM(), values(*SHAPE), []
    given = {"inpaint": (known, torch.ones(1)), "callback": lambda i, t, x, x_0: seen.append(x.clone()), **GIVEN}
    got = GaussianDiffusion(edm).sample(network, SHAPE, "euler", [50.0, 2.0], **given)
    assert torch.equal(got, known)
    z = randn(noise_key(0, 0, 4, stream="inpainting"), SHAPE)
    torch.testing.assert_close(seen[0], (known + 2 * z) / math.sqrt(4.25), rtol=0, atol=1e-6)


# ---- capture, compile ----


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.net(x) + t[:, None, None, None]


def test_a_training_step_reads_nothing_and_uploads_nothing():
    diffusion, model, x_0, key = GaussianDiffusion(EDM()), Net(), values(*SHAPE), noise_key(1, 0, 4)
    for _ in range(2):
        with NoHostReads() as mode:
            diffusion.training_loss(model, x_0, key).backward()
    assert not set(UPLOADS) & set(mode.seen)


def test_a_second_loop_uploads_nothing():
    diffusion = GaussianDiffusion(EDM())
    given = {"steps": 5, "s_churn": 2.0, **GIVEN}
    diffusion.sample(network, SHAPE, **given)
    with NoHostReads(uploads=False):
        diffusion.sample(lambda x, t: x / 2, SHAPE, **given)


def test_a_step_compiles_without_a_break():
    diffusion, x_0, key = GaussianDiffusion(EDM()), values(*SHAPE), noise_key(1, 0, 4)

    def step(x_0, key):
        return diffusion.training_loss(lambda x, t: x / 2, x_0, key)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_0, key), step(x_0, key))


def test_graphed_objects_take_it():
    diffusion, model = GaussianDiffusion(EDM()), Net()
    twin = copy.deepcopy(model)
    step = graphs.GraphedTrainingStep(diffusion, model, torch.optim.AdamW(model.parameters(), 1e-3), noise_key(0, 0, 4))
    expected = diffusion.training_loss(twin, values(*SHAPE), noise_key(0, 0, 4)).detach()
    torch.testing.assert_close(step(values(*SHAPE)), expected)
    for whole in (True, False):
        sampler = graphs.GraphedSampler(diffusion, model, SHAPE, steps=4, whole=whole, s_churn=2.0)
        assert torch.equal(sampler(5), diffusion.sample(model, SHAPE, steps=4, seed=5, progress=False, s_churn=2.0))


# ---- errors ----

X, KEY = values(*SHAPE), noise_key(0, 0, 4)
BAD = {
    "sigma_data": (lambda: EDM(0), ValueError, "sigma_data: expected a number above 0, got 0"),
    "P_std": (lambda: EDM(P_std=-1), ValueError, "P_std: expected a number above 0, got -1"),
    "sigma_min": (lambda: EDM(sigma_min=90.0), ValueError, "sigma_min: expected one below sigma_max 80.0, got 90.0"),
    "prediction": (
        lambda: GaussianDiffusion(EDM(), "velocity"),
        ValueError,
        "prediction_type: expected one of 'edm'.*'velocity'",
    ),
    "an index": (lambda: q_sample(X, 3, EDM(), KEY), TypeError, "t: expected floating t, since EDM has no table.*got indices"),
    "indices": (lambda: mse_loss(X, torch.zeros(4).long(), EDM(), KEY, X), TypeError, "t: expected floating t, since EDM"),
    "drawn evenly": (lambda: q_sample_uniform(X, EDM(), KEY), TypeError, "schedule: expected a NoiseSchedule or .*got EDM"),
    "bound": (lambda: GaussianDiffusion(EDM(), loss="kl"), ValueError, "loss, variance_type: expected 'mse' .* EDM"),
    "ddpm": (lambda: GaussianDiffusion(EDM()).sample(network, SHAPE, "ddpm"), TypeError, "schedule: .*NoiseSchedule, got EDM"),
    "inverse": (lambda: samplers.ddim_inverse(EDM()), TypeError, "schedule: expected .* for ddim_inverse, got EDM"),
    "spacing": (lambda: samplers.heun(EDM(), spacing="linspace"), ValueError, "spacing: expected 'karras' or None for EDM"),
    "no steps": (lambda: samplers.heun(EDM(), steps=0), ValueError, "steps: expected 1 or more, got 0"),
    "sigmas that rise": (lambda: samplers.heun(EDM(), steps=[1.0, 2.0]), ValueError, "steps: expected numbers that fall"),
    "infinite sigma": (lambda: samplers.heun(EDM(), steps=[math.inf, 2.0]), ValueError, "steps: expected numbers that fall"),
    "churn of a chain": (
        lambda: samplers.heun(NoiseSchedule.linear(), s_churn=1.0),
        ValueError,
        "s_churn: expected 0 but for EDM",
    ),
    "density of t": (
        lambda: GaussianDiffusion(EDM(), density=Discrete([1, 2])),
        ValueError,
        "density: expected LogNormal or None for EDM.*got Discrete",
    ),
    "density of a level": (lambda: GaussianDiffusion(EDM(), density=LogitNormal()), ValueError, "density: .*got LogitNormal"),
    "a t_sampler": (
        lambda: GaussianDiffusion(EDM()).training_loss(network, X, KEY, t_sampler=LossSecondMoment(10)),
        ValueError,
        "t_sampler: expected None for EDM",
    ),
    "P_mean": (lambda: EDM(P_mean=math.nan), ValueError, "P_mean: expected a finite number, got nan"),
    "inpainting under churn": (
        lambda: GaussianDiffusion(EDM()).sample(network, SHAPE, steps=4, s_churn=4, inpaint=(X, torch.ones(1)), **GIVEN),
        ValueError,
        "inpaint: .* adds noise before a step: leave s_churn 0",
    ),
    "churn below 0": (lambda: samplers.heun(EDM(), s_churn=-1.0), ValueError, "s_churn, s_noise: expected 0 or more, got -1.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
