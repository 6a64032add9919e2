"""What a training step may add: offset noise, input perturbation, self-conditioning; and self-conditioning in sampling."""

import pytest
import torch
from helpers import LAYOUTS, same_bits, values
from test_no_host_reads import NoHostReads

from fastddpm import (
    EDM,
    FlowMatching,
    GaussianDiffusion,
    LossSecondMoment,
    NoiseSchedule,
    densities,
    hybrid_loss,
    levels,
    mse_loss,
    noise_key,
    q_sample,
    randn,
    timesteps,
    vlb_loss,
)
from fastddpm.coefficients import x_0_columns

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (6, 3, 5, 4)
X_0, KEY = values(*SHAPE).clamp(-1, 1), noise_key(3, 4, 6)
T = timesteps(KEY, 1000)


def of(stream, shape, key=KEY):
    """A stream's normals, for the seed, step and samples of the key."""
    return randn(torch.stack((key[:, 0], noise_key(3, 4, len(key), stream=stream)[:, 1]), 1), shape)


class Model:
    """Remembers what it is given."""

    def __init__(self, learned=False):
        self.learned, self.seen, self.with_gradient = learned, [], []

    def __call__(self, x, t, self_cond=None, label=0.0):
        self.seen.append((x, t, self_cond))
        self.with_gradient.append(torch.is_grad_enabled())
        out = 0.5 * x + t.view(-1, *(1,) * (x.dim() - 1)) / 1000 + label
        out = out if self_cond is None else out + 0.3 * self_cond
        return torch.cat((out, 0.1 * out), 1) if self.learned else out


def offset(n, x):
    return n.view(*n.shape, *(1,) * (x.dim() - 2))


# ---- offset noise ----


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "previous"])
@pytest.mark.parametrize("given", ["nothing", "noise", "another key", "t"])
def test_offset_noise_is_in_x_t_and_in_the_target(prediction_type, given):
    z = {"noise": values(*SHAPE, seed=5), "another key": noise_key(9, 9, 6)}.get(given)
    t = torch.arange(6) * 100 if given == "t" else T
    diffusion, model = GaussianDiffusion(SCHEDULE, prediction_type, offset_noise=0.1), Model()
    got = diffusion.training_loss(model, X_0, KEY, reduction="none", noise=z, t=t if given == "t" else None)
    z = z if given == "noise" else randn(KEY if z is None else z, SHAPE)
    moved = z + 0.1 * offset(of("offset_noise", (6, 3)), X_0)
    x_t = q_sample(X_0, t, SCHEDULE, moved)
    expected = mse_loss(Model()(x_t, t), t, SCHEDULE, moved, X_0, prediction_type=prediction_type, reduction="none")
    torch.testing.assert_close(model.seen[0][0], x_t)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "x_0", [values(6, 4), values(6, 2, 3, 3, 3), LAYOUTS["channels_last"](X_0)], ids=["flat", "3d", "last"]
)
def test_offset_noise_of_any_shape(x_0):
    model = Model()
    GaussianDiffusion(SCHEDULE, offset_noise=0.5).training_loss(model, x_0, KEY)
    moved = randn(KEY, x_0.shape) + 0.5 * offset(of("offset_noise", x_0.shape[:2]), x_0)
    torch.testing.assert_close(model.seen[0][0], q_sample(x_0, T, SCHEDULE, moved))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_noise_with_an_offset_is_of_the_arithmetics_dtype(dtype):
    x_0, model = X_0.to(dtype), Model()
    GaussianDiffusion(SCHEDULE, offset_noise=0.5).training_loss(model, x_0, KEY)
    moved = randn(KEY, SHAPE).double() + 0.5 * offset(of("offset_noise", (6, 3)), X_0).double()
    moved = moved.to(torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(model.seen[0][0], q_sample(x_0, T, SCHEDULE, moved))


# ---- input perturbation ----


@pytest.mark.parametrize("loss", ["mse", "kl", "hybrid"])
def test_only_the_model_sees_the_perturbation(loss):
    settings = {"loss": loss, "variance_type": "fixed_small" if loss == "mse" else "learned_range"}
    diffusion, model = GaussianDiffusion(SCHEDULE, input_perturbation=0.1, **settings), Model(loss != "mse")
    got = diffusion.training_loss(model, X_0, KEY, reduction="none")
    z = randn(KEY, SHAPE)
    seen = q_sample(X_0, T, SCHEDULE, z + 0.1 * of("input_perturbation", SHAPE))
    torch.testing.assert_close(model.seen[0][0], seen)
    output, x_t = Model(loss != "mse")(seen, T), q_sample(X_0, T, SCHEDULE, KEY)
    variance = {"variance_type": "learned_range", "reduction": "none"}
    expected = {
        "mse": lambda: mse_loss(output, T, SCHEDULE, KEY, reduction="none"),
        "kl": lambda: vlb_loss(output, X_0, x_t, T, SCHEDULE, **variance),
        "hybrid": lambda: hybrid_loss(output, X_0, x_t, T, SCHEDULE, KEY, **variance)["loss"],
    }[loss]()
    torch.testing.assert_close(got, expected)


# ---- self-conditioning ----


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "previous"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_second_call_is_given_the_firsts_estimate_in_some_samples(prediction_type, learned):
    settings = {"variance_type": "learned_range", "loss": "hybrid"} if learned else {}
    diffusion, model = GaussianDiffusion(SCHEDULE, prediction_type, self_condition="self_cond", **settings), Model(learned)
    got = diffusion.training_loss(model, X_0, KEY, {"label": 0.2}, reduction="none")
    (x_t, t, zeros), (x_again, t_again, estimate) = model.seen
    assert model.with_gradient == [False, True]
    assert x_again is x_t and torch.equal(t, T) and torch.equal(t_again, T) and not zeros.any()
    out = Model()(x_t, t, zeros, 0.2)
    p_x, p_o = (column[t].view(-1, 1, 1, 1) for column in x_0_columns(SCHEDULE, prediction_type))
    taken = of("self_conditioning", (6,)) < 0
    expected = ((p_x * x_t + p_o * out) * taken.view(-1, 1, 1, 1)).float()
    assert 0 < taken.sum() < 6
    torch.testing.assert_close(estimate, expected, rtol=1e-5, atol=1e-5)
    plain = GaussianDiffusion(SCHEDULE, prediction_type, **settings)
    given = {"label": 0.2, "self_cond": estimate}
    assert same_bits(got, plain.training_loss(Model(learned), X_0, KEY, given, reduction="none"))


def test_every_second_sample_is_self_conditioned():
    model, count = Model(), 4000
    key = noise_key(1, 2, count)
    GaussianDiffusion(SCHEDULE, "sample", self_condition="self_cond").training_loss(model, values(count, 1), key)
    taken = (model.seen[1][2] != 0).sum()
    assert abs(int(taken) - count / 2) < 4 * (count / 4) ** 0.5


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(6, 3, 3, padding=1)
        with torch.no_grad():
            for n, weight in enumerate(self.parameters()):
                weight.copy_(values(*weight.shape, seed=n) / 4)

    def forward(self, x, t, self_cond=None):
        return self.net(torch.cat((x, torch.zeros_like(x) if self_cond is None else self_cond), 1))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gradient_is_the_second_calls(autocast):
    """Autocast may keep the weights that it has cast in the first call."""
    net, kept = Net(), []
    net.register_forward_pre_hook(lambda *given: kept.append(given[2]["self_cond"]), with_kwargs=True)
    gradients = []
    for settings, kwargs in (({"self_condition": "self_cond"}, lambda: None), ({}, lambda: {"self_cond": kept[1]})):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = GaussianDiffusion(SCHEDULE, **settings).training_loss(net, X_0, KEY, kwargs())
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
    assert all(map(same_bits, *gradients)) and all(grad.any() for grad in gradients[0])


WALKS = {
    "ddpm": {},
    "heun": {},
    "dpmpp_2m": {"denoised_fn": lambda x_0, t: 0.9 * x_0},
    "unipc_2": {"guidance_scale": 2.0, "uncond_kwargs": {"label": 0.1}, "model_kwargs": {"label": 0.2}},
    "ddim": {"guidance_scale": 2.0, "uncond_kwargs": {"label": 0.1}, "model_kwargs": {"label": 0.1}, "stacked": True},
}


@pytest.mark.parametrize("name", WALKS)
def test_a_sampled_model_is_given_the_last_steps_estimate(name):
    model, estimates = Model(), [torch.zeros(SHAPE)]
    diffusion = GaussianDiffusion(SCHEDULE, self_condition="self_cond")

    def after(i, t, x, x_0):
        estimates.append(x_0.clone())

    diffusion.sample(model, SHAPE, name, 5, seed=1, progress=False, callback=after, **WALKS[name])
    stacked, calls = "stacked" in WALKS[name], 2 if name == "unipc_2" else 1
    assert len(model.seen) == calls * (len(estimates) - 1)
    for number, (_, _, given) in enumerate(model.seen):
        expected = estimates[number // calls]
        assert same_bits(given, torch.cat((expected, expected)) if stacked else expected)


def test_the_bound_is_of_the_model_without_an_estimate():
    bounds = [
        GaussianDiffusion(SCHEDULE, **settings).bits_per_dim(Model(), X_0, steps=4, progress=False, batch_size=4)["total"]
        for settings in ({"self_condition": "self_cond"}, {})
    ]
    assert same_bits(*bounds)


# ---- of other processes ----

FLOW, NUMBERS = FlowMatching(1000, shift=3.0), torch.linspace(0.1, 1.0, 6)


def of_flow(x, s, out):
    return x - s * out


def of_edm(x, sigma, out):
    """Karras et al. 2022, table 1, of c_in y."""
    squared = sigma**2 + 0.25
    return 0.25 / squared * x * squared.sqrt() + sigma * 0.5 / squared.sqrt() * out


@pytest.mark.parametrize(
    ("process", "t", "drawn", "level", "x_0_of"),
    [
        (FLOW, None, T, FLOW.levels[1][T].float(), of_flow),
        (FLOW, NUMBERS, NUMBERS, FLOW.levels_at(NUMBERS)[1], of_flow),
        (EDM(), None, levels(KEY, densities.LogNormal()), levels(KEY, densities.LogNormal()), of_edm),
    ],
    ids=["flow", "numbers", "edm"],
)
def test_what_another_process_is_perturbed_and_conditioned_by(process, t, drawn, level, x_0_of):
    diffusion, model = GaussianDiffusion(process, input_perturbation=0.1, self_condition="self_cond"), Model()
    got = diffusion.training_loss(model, X_0, KEY, t=t, reduction="none")
    (seen, given_t, _), (_, _, estimate) = model.seen
    torch.testing.assert_close(seen, q_sample(X_0, drawn, process, randn(KEY, SHAPE) + 0.1 * of("input_perturbation", SHAPE)))
    taken = (of("self_conditioning", (6,)) < 0).view(-1, 1, 1, 1)
    torch.testing.assert_close(estimate, x_0_of(seen, level.view(-1, 1, 1, 1), Model()(seen, given_t)) * taken)
    output = Model()(seen, given_t, estimate)
    torch.testing.assert_close(got, mse_loss(output, drawn, process, KEY, X_0, reduction="none"))


def test_an_estimate_is_zeros_where_no_x_0_follows():
    """From epsilon at pure noise."""
    model = Model()
    GaussianDiffusion(FLOW, "epsilon", self_condition="self_cond").training_loss(model, X_0, KEY, t=999)
    assert not model.seen[1][2].any()


@pytest.mark.parametrize("name", ["sigma_sqrt", "cosmap"])
@pytest.mark.parametrize("t", [T, NUMBERS], ids=["indices", "numbers"])
def test_weights_are_diffusers(name, t):
    theirs = pytest.importorskip("diffusers.training_utils").compute_loss_weighting_for_sd3
    losses = [mse_loss(X_0 / 2, t, FLOW, KEY, X_0, weight=weight, reduction="none") for weight in (name, None)]
    s = FLOW.levels_at(t)[1] if t.is_floating_point() else FLOW.levels[1][t]
    torch.testing.assert_close(losses[0], losses[1] * theirs(name, s).float())


# ---- all of them ----

ALL = {"offset_noise": 0.1, "input_perturbation": 0.1, "self_condition": "self_cond", "density": densities.LogitNormal()}


def test_without_an_option_nothing_else_is_called():
    called = []
    for options in ({}, {"offset_noise": 0, "input_perturbation": 0.0, "self_condition": None, "density": None}):
        with NoHostReads() as mode:
            GaussianDiffusion(SCHEDULE, **options).training_loss(Net(), X_0, KEY)
        called.append(mode.seen[-mode.seen[::-1].index("noising_uniform") - 1 :])
    assert called[0] == called[1] and "randn_" not in called[0]


@pytest.mark.parametrize("importance", [False, True])
def test_a_step_with_all_of_them_waits_for_nothing(importance):
    options = {name: value for name, value in ALL.items() if not (importance and name == "density")}
    t_sampler = LossSecondMoment(1000, device="cpu") if importance else None
    diffusion, net = GaussianDiffusion(SCHEDULE, **options), Net()
    for uploads in (True, False):
        with NoHostReads(uploads):
            diffusion.training_loss(net, X_0, KEY, t_sampler=t_sampler).backward()


def test_a_batch_split_in_two_sees_the_same():
    models = Model(), Model()
    diffusion = GaussianDiffusion(SCHEDULE, **ALL)
    diffusion.training_loss(models[0], X_0, KEY)
    for part in (slice(0, 2), slice(2, 6)):
        diffusion.training_loss(models[1], X_0[part], KEY[part])
    for number in (0, 1):
        for whole, first, second in zip(
            models[0].seen[number], models[1].seen[number], models[1].seen[2 + number], strict=True
        ):
            assert same_bits(whole, torch.cat((first, second)))


BAD = {
    "a flow's weight": (
        {"weight": "sigma_sqrt"},
        {},
        ValueError,
        r"weight: expected one of None, 'min_snr', got 'sigma_sqrt'",
    ),
    "a strength below 0": ({"offset_noise": -0.1}, {}, ValueError, "offset_noise: expected 0 or more, got -0.1"),
    "no strength": ({"input_perturbation": "0.1"}, {}, ValueError, "input_perturbation: expected a finite number, got '0.1'"),
    "no name": ({"self_condition": True}, {}, ValueError, "self_condition: expected the name of an argument .*, got True"),
    "no key": (
        {"offset_noise": 0.1},
        {"key": None, "noise": X_0, "t": 3},
        ValueError,
        "key: expected one, of which offset_noise, input_perturbation and self_condition draw, got None",
    ),
    "noise of another shape": (
        {"offset_noise": 0.1},
        {"noise": X_0[:2]},
        ValueError,
        r"noise: expected x_0's shape \[6, 3, 5, 4\]",
    ),
    "no channels": ({"offset_noise": 0.1}, {"x_0": X_0[:, 0, 0, 0]}, ValueError, r"x_0: expected \[B, C, ...\], .*, got \[6\]"),
    "an estimate of the caller's": (
        {"self_condition": "self_cond"},
        {"model_kwargs": {"self_cond": X_0}},
        ValueError,
        "model_kwargs: expected no 'self_cond'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    settings, given, error, message = BAD[case]
    with pytest.raises(error, match=message):
        GaussianDiffusion(SCHEDULE, **settings).training_loss(Model(), **{"x_0": X_0, "key": KEY, **given})
