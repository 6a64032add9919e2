"""Rectified flow: its levels, targets, losses and samplers against the formulas in float64 and diffusers' scheduler."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import leaf, spread, values, wide
from test_no_host_reads import NoHostReads

from fastddpm import (
    FlowMatching,
    GaussianDiffusion,
    NoiseSchedule,
    graphs,
    mse_loss,
    noise_key,
    q_sample,
    randn,
    samplers,
    vlb_loss,
)
from fastddpm.samplers import Levels

SHAPE = (4, 3, 5, 5)
DATA = 0.5
"""The deviation of the analytic x_0 ~ N(0, DATA^2)."""


def each(s):
    return s[:, None, None, None]


def shifted(u, shift):
    return shift * u / (1 + (shift - 1) * u)


# ---- levels ----


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_levels_and_timesteps_are_those_of_diffusers(shift):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift)
    flow = FlowMatching(1000, shift)
    a, s = flow.levels
    torch.testing.assert_close(s.flip(0), theirs.sigmas.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(flow.timesteps.flip(0), theirs.timesteps, rtol=1e-6, atol=0)
    assert torch.equal(a, 1 - s) and s[-1] == 1 and flow.timesteps.dtype == torch.float32


MU = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
WALKS = {
    "plain": (FlowMatching(), {}, {}, None),
    "shifted": (FlowMatching(shift=3.0), {"shift": 3.0}, {}, None),
    "dynamic": (FlowMatching.dynamic(1024), {"use_dynamic_shifting": True}, {"mu": MU}, None),
    "linear": (
        FlowMatching(sampling_shift=2.0),
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"mu": 2.0},
        None,
    ),
    "karras": (FlowMatching(shift=3.0), {"shift": 3.0, "use_karras_sigmas": True}, {}, "karras"),
    "flux": (FlowMatching.dynamic(1024), {"use_dynamic_shifting": True}, {"mu": MU}, "trailing"),
}


@pytest.mark.parametrize("steps", [1, 2, 28, 1000])
@pytest.mark.parametrize("walk", WALKS)
def test_a_sampler_walks_where_diffusers_does(walk, steps):
    diffusers = pytest.importorskip("diffusers")
    flow, config, given, spacing = WALKS[walk]
    if spacing == "trailing":
        given = {**given, "sigmas": np.linspace(1.0, 1 / steps, steps)}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(1000, **config)
    theirs.set_timesteps(steps, **given)
    timesteps, sigmas, a = flow.walk(steps, spacing)
    torch.testing.assert_close(1 - a, theirs.sigmas.double(), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(timesteps, theirs.timesteps, rtol=2e-6, atol=0)
    assert sigmas[0].isinf() and sigmas[-1] == 0


def test_the_shift_of_a_resolution_is_sd3_s():
    """Equation 23: the level at which m elements are as uncertain as n are at t_n."""
    flow = FlowMatching.for_resolution(4096, 1024, 10)
    t_n, ratio = torch.arange(1, 11, **wide) / 10, math.sqrt(4096 / 1024)
    torch.testing.assert_close(flow.levels[1], ratio * t_n / (1 + (ratio - 1) * t_n))


def test_the_index_and_the_number_are_the_same_level():
    flow = FlowMatching(10, 3.0)
    number = torch.arange(1, 11, **wide) / 10
    for given, table in zip(flow.levels_at(number), flow.levels, strict=True):
        torch.testing.assert_close(given, table)
    torch.testing.assert_close(flow.timesteps_at(number), flow.timesteps.double(), rtol=1e-6, atol=0)


# ---- training ----

TARGETS = {"velocity": lambda x_0, z: z - x_0, "sample": lambda x_0, z: x_0, "epsilon": lambda x_0, z: z}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["index", "number", "one number", "float32"])
def test_noising(kind, shift):
    dtype = torch.float32 if kind == "float32" else torch.float64
    flow, x_0, z = FlowMatching(shift=shift), values(*SHAPE, dtype=dtype), values(*SHAPE, dtype=dtype, seed=1)
    t = {"index": spread(4), "one number": 0.3}.get(kind, torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=dtype))
    u = (t.double() + 1) / 1000 if kind == "index" else torch.as_tensor(t, **wide).expand(4)
    s = each(shifted(u.double(), shift))
    expected = (1 - s) * x_0.double() + s * z.double()
    got = q_sample(x_0, t, flow, z)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-12 if dtype is torch.float64 else 5e-7)


@pytest.mark.parametrize("prediction_type", TARGETS)
@pytest.mark.parametrize("number", [False, True])
@pytest.mark.parametrize("weight", [None, "table", "min_snr"])
def test_the_loss_and_its_gradient(prediction_type, number, weight):
    flow, x_0, z, out = (
        FlowMatching(shift=2.0),
        values(*SHAPE, **wide),
        values(*SHAPE, **wide, seed=1),
        leaf(*SHAPE, **wide, seed=2),
    )
    t = torch.tensor([0.1, 0.2, 0.7, 0.9], **wide) if number else spread(4)[[0, 1, 2, 2]]
    s = shifted(t, 2.0) if number else flow.levels[1][t]
    table = torch.rand(4 if number else 1000, **wide)
    w = {None: torch.ones(4, **wide), "table": table if number else table[t]}.get(weight)
    if weight == "min_snr":
        least = ((1 - s) / s).square().clamp(max=5)
        w = least * {"velocity": s**2, "sample": 1, "epsilon": (s / (1 - s)) ** 2}[prediction_type]
    expected = (w * (out - TARGETS[prediction_type](x_0, z)).square().flatten(1).mean(1)).mean()
    got = mse_loss(out, t, flow, z, x_0, prediction_type=prediction_type, weight=table if weight == "table" else weight)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, out)[0], torch.autograd.grad(expected, out)[0])


@pytest.mark.parametrize("t", [0.5, np.float32(0.5), torch.tensor(0.5)], ids=["float", "numpy", "tensor"])
def test_one_number_for_all_with_a_weight_for_each(t):
    out, x_0, noise, weight = *(values(3, 5, seed=n) for n in range(3)), torch.tensor([1.0, 100.0, 0.0])
    options = {"weight": weight, "reduction": "none"}
    expected = mse_loss(out, torch.full((3,), 0.5), FlowMatching(), noise, x_0, **options)
    assert torch.equal(mse_loss(out, t, FlowMatching(), noise, x_0, **options), expected)


def test_levels_of_one_s_own_keep_their_signals():
    """Of whatever process: b is sigma a."""
    sigmas, signals = torch.tensor([3.0, 1.0, 0.0], **wide), torch.tensor([0.25, 0.5, 1.0], **wide)
    a, b = samplers.euler(Levels(torch.tensor([7, 3]), sigmas, signals)).levels()
    torch.testing.assert_close(a, torch.tensor([0.5, 0.25], **wide))
    torch.testing.assert_close(b, torch.tensor([0.5, 0.75], **wide))


def test_min_snr_of_epsilon_is_1_where_nothing_of_x_0_is_left():
    out = values(1, 3, 5, 5)
    loss = mse_loss(out, 999, FlowMatching(), torch.zeros_like(out), prediction_type="epsilon", weight="min_snr")
    torch.testing.assert_close(loss, out.square().mean())


def test_x_0_may_want_a_gradient_through_a_number_t():
    x_0, t = leaf(*SHAPE, **wide), torch.tensor([0.0, 0.3, 0.6, 1.0], **wide)
    q_sample(x_0, t, FlowMatching(), noise_key(0, 0, 4)).sum().backward()
    torch.testing.assert_close(x_0.grad, each(1 - t).expand(SHAPE))


@pytest.mark.parametrize("t", [torch.tensor([0.1, 0.4, 0.6, 1.0]), spread(4)])
def test_a_key_s_noise_is_that_of_randn(t):
    flow, x_0, key = FlowMatching(), values(*SHAPE), noise_key(3, 1, 4)
    z = randn(key, SHAPE)
    assert torch.equal(q_sample(x_0, t, flow, key), q_sample(x_0, t, flow, z))
    assert torch.equal(mse_loss(x_0, t, flow, key, x_0), mse_loss(x_0, t, flow, z, x_0))


def test_a_training_step_is_its_parts():
    flow, x_0, key, seen = FlowMatching(shift=3.0), values(*SHAPE), noise_key(3, 1, 4), []

    def model(x_t, t):
        seen.append((x_t, t))
        return x_t / 2

    diffusion, t = GaussianDiffusion(flow), torch.tensor([0.1, 0.4, 0.6, 1.0])
    got = diffusion.training_loss(model, x_0, key, t=t)
    x_t = q_sample(x_0, t, flow, key)
    assert torch.equal(got, mse_loss(x_t / 2, t, flow, key, x_0))
    assert torch.equal(seen[0][0], x_t)
    torch.testing.assert_close(seen[0][1], 1000 * shifted(t, 3.0))
    diffusion.training_loss(model, x_0, key)
    assert set(seen[1][1].tolist()) <= set(flow.timesteps.tolist())


# ---- sampling ----


def velocity_of(shift=1.0):
    """The best network's, of x_0 ~ N(0, DATA^2): E[z - x_0 | x]."""

    def model(x, t):
        s = each(t.double() / 1000)
        return x * (s - (1 - s) * DATA**2) / ((1 - s) ** 2 * DATA**2 + s**2)

    return model


def distance(sampler, steps):
    """From what the exact flow makes of x_T: DATA x_T."""
    x_T = values(2, 1, 2, 2, **wide)  # noqa: N806
    timesteps = torch.linspace(1, 0, steps + 1, **wide)
    at = Levels(1000 * timesteps[:-1].float(), timesteps / (1 - timesteps), 1 - timesteps, FlowMatching())
    options = {"lower_order_final": False} if sampler.startswith("dpmpp") else {}
    rows = samplers.SAMPLERS[sampler](at, **options)
    diffusion = GaussianDiffusion(FlowMatching())
    got = diffusion.sample(velocity_of(), x_T.shape, rows, x_T=x_T, dtype=torch.float64, progress=False)
    return float((got - DATA * x_T).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2)])
def test_order_of_convergence(sampler, order):
    errors = [distance(sampler, steps) for steps in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "lms"])
def test_the_samplers_over_log_snr_and_their_first_step_from_infinity(sampler):
    assert distance(sampler, 80) < distance("euler", 80)


def test_the_inverse_leads_to_the_x_T_of_an_image():  # noqa: N802
    diffusion, x_0 = GaussianDiffusion(FlowMatching()), DATA * values(*SHAPE, **wide)
    given = {"steps": 400, "progress": False, "dtype": torch.float64, "spacing": "trailing"}
    got = diffusion.sample(velocity_of(), SHAPE, "ddim_inverse", x_T=x_0, **given)
    torch.testing.assert_close(got, x_0 / DATA, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_loop_is_that_of_diffusers(sampler, shift):
    diffusers = pytest.importorskip("diffusers")
    name = {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}[sampler]
    theirs, steps = getattr(diffusers, name)(1000, shift), 7
    theirs.set_timesteps(steps)
    if sampler == "heun":
        theirs.sigmas = theirs.sigmas.double()

    def model(x, t):
        return torch.sin(x) + 1e-3 * t.reshape(-1, 1, 1, 1).to(x.dtype)

    x = x_T = values(2, 3, 4, 4)  # noqa: N806
    for t in theirs.timesteps:
        x = theirs.step(model(x, t.expand(2)), t, x).prev_sample
    given = (theirs.timesteps if sampler == "euler" else theirs.timesteps[::2]).tolist()
    diffusion = GaussianDiffusion(FlowMatching(1000, shift))
    got = diffusion.sample(model, x.shape, sampler, given, x_T=x_T, progress=False)
    torch.testing.assert_close(got, x.float(), rtol=0, atol=2e-5)


def test_the_default_sampler_is_euler():
    diffusion = GaussianDiffusion(FlowMatching())
    given = {"steps": 5, "seed": 0, "progress": False}
    assert torch.equal(
        diffusion.sample(velocity_of(), SHAPE, **given), diffusion.sample(velocity_of(), SHAPE, "euler", **given)
    )


@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
def test_x_0_is_clipped_where_asked_only(prediction_type):
    def network(x, t):
        s = each(t) / 1000
        x_0 = torch.full_like(x, 2.0)
        return x_0 if prediction_type == "sample" else (x - x_0) / s

    diffusion, given = GaussianDiffusion(FlowMatching(), prediction_type), {"steps": 5, "seed": 0, "progress": False}
    for sampler in ("euler", "ddim", "dpmpp_2m"):
        torch.testing.assert_close(
            diffusion.sample(network, SHAPE, sampler, **given), torch.full(SHAPE, 2.0), rtol=0, atol=1e-4
        )
    clipped = diffusion.sample(network, SHAPE, "euler", clip_denoised=True, **given)
    torch.testing.assert_close(clipped, torch.ones(SHAPE), rtol=0, atol=1e-4)


def test_inpainting_noises_what_is_known_to_each_step_s_level():
    flow, known, seen = FlowMatching(), values(*SHAPE), []

    def callback(i, t, x, x_0):
        seen.append(x.clone())

    diffusion = GaussianDiffusion(flow)
    got = diffusion.sample(
        velocity_of(), SHAPE, steps=[1000, 600, 200], seed=0, progress=False, inpaint=(known, torch.ones(1)), callback=callback
    )
    assert torch.equal(got, known)
    z = randn(noise_key(0, 0, 4, stream="inpainting"), SHAPE)
    torch.testing.assert_close(seen[0], 0.4 * known + 0.6 * z, rtol=0, atol=1e-6)


def test_a_score_moves_the_flow_as_it_moves_x_0():
    """x_0_hat is b^2 / a of the gradient more."""
    flow, x = FlowMatching(), values(*SHAPE, **wide)
    rows = samplers.euler(flow, steps=[600, 300])
    p_x, p_o = (getattr(rows.columns, name)[-1] for name in ("p_x", "p_o"))
    out = velocity_of()(x, torch.full((4,), 600.0))
    seen = []
    GaussianDiffusion(flow).sample(
        velocity_of(), SHAPE, rows, x_T=x, progress=False, dtype=torch.float64,
        cond_fn=lambda x, t: torch.ones_like(x), callback=lambda i, t, x, x_0: seen.append(x_0),
    )  # fmt: skip
    torch.testing.assert_close(seen[0], p_x * x + p_o * out + 0.36 / 0.4)


def test_a_loop_begins_at_any_level():
    flow, x_0 = FlowMatching(), values(*SHAPE)
    diffusion, timesteps = GaussianDiffusion(flow), flow.walk(10)[0]
    x_t = q_sample(x_0, float(timesteps[4]) / 1000, flow, noise_key(0, 0, 4))
    for sampler in ("euler", "heun", "dpmpp_2m"):
        got = diffusion.sample(velocity_of(), SHAPE, sampler, 10, seed=0, progress=False, start=4, x_t=x_t)
        again = diffusion.sample(velocity_of(), SHAPE, sampler, timesteps[4:].tolist(), seed=0, progress=False, x_T=x_t)
        torch.testing.assert_close(got, again)


# ---- capture, compile ----


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.net(x) + 1e-3 * t[:, None, None, None]


@pytest.mark.parametrize("kind", ["drawn", "number"])
def test_a_training_step_reads_nothing_and_uploads_nothing(kind):
    diffusion, model, x_0 = GaussianDiffusion(FlowMatching(shift=3.0)), Net(), values(*SHAPE)
    key, t = noise_key(1, 0, 4), None if kind == "drawn" else torch.rand(4)
    for uploads in (True, False):
        with NoHostReads(uploads):
            diffusion.training_loss(model, x_0, key, t=t).backward()


def test_a_step_at_numbers_compiles_without_a_break():
    diffusion, x_0, key, t = GaussianDiffusion(FlowMatching()), values(*SHAPE), noise_key(1, 0, 4), torch.rand(4)

    def step(x_0, key, t):
        return diffusion.training_loss(lambda x, t: x / 2, x_0, key, t=t)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x_0, key, t), step(x_0, key, t))


def test_graphed_objects_take_the_flow():
    diffusion, model = GaussianDiffusion(FlowMatching()), Net()
    twin = copy.deepcopy(model)
    step = graphs.GraphedTrainingStep(diffusion, model, torch.optim.AdamW(model.parameters(), 1e-3), noise_key(0, 0, 4))
    torch.testing.assert_close(step(values(*SHAPE)), diffusion.training_loss(twin, values(*SHAPE), noise_key(0, 0, 4)).detach())
    for whole in (True, False):
        sampler = graphs.GraphedSampler(diffusion, model, SHAPE, "heun", 4, whole=whole)
        assert torch.equal(sampler(5), diffusion.sample(model, SHAPE, "heun", 4, seed=5, progress=False))


# ---- errors ----

FLOW, X, KEY = FlowMatching(), values(*SHAPE), noise_key(0, 0, 4)


def of_flow(**settings):
    return GaussianDiffusion(FLOW, **settings)


def noised(t, schedule=FLOW):
    return q_sample(X, t, schedule, KEY)


NO_CHAIN = "schedule: expected a NoiseSchedule.*, got FlowMatching"
CHAIN = NoiseSchedule.linear()


BAD = {
    "steps": (lambda: FlowMatching(0), ValueError, "num_timesteps: expected 1 or more, got 0"),
    "shift": (lambda: FlowMatching(shift=0), ValueError, "shift: expected a number above 0, got 0"),
    "sampling shift": (lambda: FlowMatching(sampling_shift=math.nan), ValueError, "sampling_shift: .*got nan"),
    "prediction": (lambda: of_flow(prediction_type="v_prediction"), ValueError, "prediction_type: .*'v_prediction'"),
    "velocity of a chain": (lambda: GaussianDiffusion(CHAIN, "velocity"), ValueError, "prediction_type: .*'velocity'"),
    "bound": (lambda: of_flow(loss="kl"), ValueError, "loss, variance_type: expected 'mse' .* FlowMatching, .*got 'kl'"),
    "variance": (lambda: of_flow(variance_type="learned"), ValueError, "loss, variance_type: .*'learned'"),
    "bits": (lambda: of_flow().bits_per_dim(lambda x, t: x, X), TypeError, NO_CHAIN),
    "vlb": (lambda: vlb_loss(X, X, X, 0, FLOW), TypeError, NO_CHAIN),
    "ddpm": (lambda: of_flow().sample(lambda x, t: x, SHAPE, "ddpm"), TypeError, NO_CHAIN),
    "lcm": (lambda: samplers.lcm(FLOW), TypeError, NO_CHAIN),
    "plms": (lambda: samplers.plms(FLOW), TypeError, NO_CHAIN),
    "epsilon from pure noise": (lambda: samplers.euler(FLOW, "epsilon"), ValueError, "prediction_type: expected 'velocity' or"),
    "spacing": (lambda: samplers.euler(FLOW, spacing="leading"), ValueError, "spacing: expected one of .*'leading'"),
    "offset": (lambda: samplers.euler(FLOW, steps_offset=1), ValueError, "steps_offset, .*of a NoiseSchedule only, got 1"),
    "least": (lambda: samplers.euler(FLOW, final_sigmas_type="sigma_min"), ValueError, "final_sigmas_type: .*'sigma_min'"),
    "from no noise": (lambda: samplers.ddim_inverse(FLOW, "sample"), ValueError, "expected 'velocity' or 'epsilon' where a"),
    "no steps": (lambda: samplers.euler(FLOW, steps=0), ValueError, "steps: expected 1 or more, got 0"),
    "one level": (lambda: samplers.euler(FlowMatching(1), steps=2), ValueError, "steps: expected 1 but for .*T is 1.*got 2"),
    "resolution": (lambda: FlowMatching.for_resolution(4, 0), ValueError, "elements, trained: .* above 0, got 4 and 0"),
    "a score from pure noise": (
        lambda: of_flow().sample(lambda x, t: x, SHAPE, steps=2, seed=0, cond_fn=lambda x, t: x),
        ValueError, "cond_fn: .*a list of timesteps below T",
    ),
    "steps that rise": (lambda: samplers.euler(FLOW, steps=[1, 2]), ValueError, "steps: expected numbers that fall"),
    "steps beyond": (lambda: samplers.euler(FLOW, steps=[1001]), ValueError, "steps: expected numbers that fall, from 1000"),
    "steps a word": (lambda: samplers.euler(FLOW, steps=[True]), TypeError, "steps: expected .* list of numbers, got bool"),
    "number of a chain": (lambda: noised(0.5, CHAIN), TypeError, "t: expected an int32 or int64 tensor"),
    "numbers of another batch": (lambda: noised(torch.rand(3)), ValueError, r"t: expected shape \[4\]"),
    "numbers elsewhere": (lambda: noised(torch.rand(4, device="meta")), ValueError, "t: .*device cpu, got meta"),
    "numbers with a gradient": (lambda: noised(torch.rand(4).requires_grad_()), ValueError, "t: .*require grad"),
    "not a number": (lambda: noised(math.nan), ValueError, "t: expected a finite number"),
    "index beyond": (lambda: noised(1000), IndexError, r"t: expected 0 \.\. 999, got 1000"),
    "weight of numbers": (
        lambda: mse_loss(X, torch.rand(4), FLOW, KEY, X, weight=torch.ones(1000)), ValueError, r"weight: expected .*\[4\]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
