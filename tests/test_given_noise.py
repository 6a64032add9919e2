"""Noise and t of the caller's in place of a key's, in everything that is tied to a model: what the key makes, given as tensors,
is the same; and what is asked for each step's noise is asked in the loop's order."""

import pytest
import torch
from helpers import same_bits, values

from fastddpm import GaussianDiffusion, LossSecondMoment, NoiseSchedule, advance, noise_key, randn, samplers, timesteps

SCHEDULE = NoiseSchedule.linear(1000)
X_0, KEY = values(4, 3, 5, 5).clamp(-1, 1), noise_key(3, 4, 4)
Z, T = randn(KEY, X_0.shape), timesteps(KEY, 1000)
SETTINGS = {
    "mse": {},
    "v": {"prediction_type": "v_prediction", "weight": "min_snr"},
    "kl": {"loss": "kl", "variance_type": "learned"},
    "hybrid": {"loss": "hybrid", "variance_type": "learned_range"},
}


def model_of(settings):
    def model(x, t):
        mean = 0.5 * x + t.view(-1, 1, 1, 1) / 1000
        return mean if "variance_type" not in settings else torch.cat((mean, 0.1 * mean), 1)

    return model


# ---- training ----


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "given", [{"noise": Z, "t": T}, {"noise": Z, "t": T.int()}, {"noise": KEY, "t": T}], ids=["", "int32", "key"]
)
def test_a_training_loss_of_given_noise_and_t(name, given):
    """Alone, and each beside a key that would have made it."""
    diffusion, model = GaussianDiffusion(SCHEDULE, **SETTINGS[name]), model_of(SETTINGS[name])
    of_key = diffusion.training_loss(model, X_0, KEY, reduction="none")
    other = noise_key(7, 7, 4)
    for key, part in ((None, given), (other, given), (KEY, {"noise": given["noise"]}), (KEY, {"t": given["t"]})):
        loss = diffusion.training_loss(model, X_0, key, reduction="none", **part)
        assert same_bits(loss, of_key)


def test_one_t_for_all():
    diffusion, seen = GaussianDiffusion(SCHEDULE), []

    def model(x, t):
        seen.append(t.tolist())
        return x

    losses = [
        diffusion.training_loss(model, X_0, noise=Z, t=t) for t in (7, torch.tensor(7), torch.tensor([7]), torch.full((4,), 7))
    ]
    assert seen == [[7] * 4] * 4 and all(same_bits(losses[0], loss) for loss in losses)


def test_a_given_t_of_a_respaced_chain_is_an_index():
    chain, seen = SCHEDULE.respace(10), []
    GaussianDiffusion(chain).training_loss(
        lambda x, t: (seen.append(t.tolist()), x)[1], X_0, noise=Z, t=torch.tensor([0, 3, 5, 9])
    )
    assert seen == [[99, 399, 599, 999]]


def test_t_of_importance_with_given_noise():
    diffusion, model = GaussianDiffusion(SCHEDULE), model_of({})
    losses = [
        diffusion.training_loss(model, X_0, KEY, t_sampler=LossSecondMoment(1000), **given) for given in ({}, {"noise": Z})
    ]
    torch.testing.assert_close(*losses)


def training(**given):
    return GaussianDiffusion(SCHEDULE).training_loss(model_of({}), X_0, **given)


BAD = {
    "nothing": ({}, ValueError, "key: expected one, or both noise and t in its place .*, got None"),
    "noise alone": ({"noise": Z}, ValueError, "key: expected one, or both noise and t"),
    "t alone": ({"t": T}, ValueError, "key: expected one, or both noise and t"),
    "importance without a key": (
        {"noise": Z, "t": T, "t_sampler": LossSecondMoment(1000)},
        ValueError,
        r"key: expected one, or .*\(and no t_sampler\), got None",
    ),
    "importance and t": (
        {"key": KEY, "t": T, "t_sampler": LossSecondMoment(1000)},
        ValueError,
        "t: expected None, since t_sampler draws it of the key, got both",
    ),
    "noise of another shape": ({"noise": Z[:2], "t": T}, ValueError, r"noise: expected x_0's shape \[4, 3, 5, 5\], got \[2, 3"),
    "noise no tensor": ({"noise": 0.5, "t": T}, TypeError, "noise: expected a float32, .* tensor .*, got float"),
    "t of floats": ({"noise": Z, "t": T.float()}, TypeError, "t: expected an int32 or int64 tensor .*, got float32"),
    "t of another batch": ({"noise": Z, "t": T[:3]}, ValueError, r"t: expected shape \[4\] .*, got \[3\]"),
    "t too large": ({"noise": Z, "t": T + 1000}, IndexError, r"t: expected 0 \.\. 999"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_training(case):
    given, error, message = BAD[case]
    with pytest.raises(error, match=message):
        training(**given)


# ---- sampling ----

SHAPE = (2, 3, 4, 4)
LOOPS = {
    "ddpm": {"steps": 12},
    "ddim": {"steps": 9, "eta": 1.0},
    "euler_ancestral": {"steps": 8},
    "ddpm, learned": {"steps": 6, "variance_type": "learned_range"},
}


def images(name, **given):
    options = dict(LOOPS[name])
    settings = {key: options.pop(key) for key in ("variance_type",) if key in options}
    diffusion = GaussianDiffusion(SCHEDULE, **settings, **({"loss": "hybrid"} if settings else {}))
    return diffusion.sample(model_of(settings), SHAPE, name.split(",")[0], seed=5, progress=False, **options, **given)


def of_steps(first, count):
    key = noise_key(5, first, SHAPE[0], stream="reverse")
    return torch.stack([randn(advance(key.clone(), n), SHAPE) for n in range(count)])


@pytest.mark.parametrize("name", [name for name in LOOPS if name.split(",")[0] in samplers.SAMPLERS])
def test_sampling_by_given_noise(name):
    """A tensor of every step's, and what is asked for them: the seed's images."""
    steps, asked = LOOPS[name]["steps"], []
    noise = of_steps(0, steps)

    def ask(x, i):
        assert x.shape == SHAPE
        asked.append(i)
        return noise[steps - 1 - i]

    expected = images(name)
    for given in (noise, noise.double(), ask):
        torch.testing.assert_close(images(name, noise=given), expected, rtol=0, atol=0)
    assert asked == list(range(steps - 1, -1, -1))


def test_a_torch_loop_is_sampled_again():
    """The generator's own stream: x_T, then each step's noise."""
    rows, model = samplers.ddpm(SCHEDULE.respace(5)), model_of({})
    generator = torch.Generator().manual_seed(11)
    x = x_T = torch.randn(SHAPE, generator=generator)  # noqa: N806
    for i in reversed(range(5)):
        k = rows.columns
        x_0 = (k.p_x[i] * x + k.p_o[i] * model(x, rows.timesteps[i : i + 1])).clamp(-1, 1)
        x = k.k_x[i] * x + k.k_0[i] * x_0 + k.sigma[i] * torch.randn(SHAPE, generator=generator)
    generator.manual_seed(11)
    torch.randn(SHAPE, generator=generator)
    draw = {"noise": lambda x, i: torch.randn(x.shape, generator=generator)}
    got = GaussianDiffusion(SCHEDULE).sample(model, SHAPE, steps=5, x_T=x_T, progress=False, **draw)
    torch.testing.assert_close(got.double(), x.double(), rtol=1e-5, atol=1e-5)


def test_the_steps_behind_a_start_are_given_theirs():
    x_t, noise = values(*SHAPE), of_steps(4, 8)
    options = {"start": 4, "x_t": x_t}
    torch.testing.assert_close(images("ddpm", noise=noise, **options), images("ddpm", **options), rtol=0, atol=0)


def test_rows_without_noise_ask_for_none():
    def never(x, i):
        raise AssertionError

    diffusion = GaussianDiffusion(SCHEDULE)
    diffusion.sample(model_of({}), SHAPE, "ddim", steps=4, noise=never, progress=False)


NOISE = torch.zeros(12, *SHAPE)
BAD_NOISE = {
    "fewer steps": (
        NOISE[1:],
        ValueError,
        r"noise: expected floating \[12, 2, 3, 4, 4\] \(one for each step\) on cpu, got .*\[11,",
    ),
    "of one step": (NOISE[0], ValueError, r"noise: expected floating \[12, 2, 3, 4, 4\]"),
    "of integers": (NOISE.long(), ValueError, "noise: expected floating .*, got int64"),
    "elsewhere": (NOISE.to("meta"), ValueError, "noise: expected floating .* on cpu, got .* on meta"),
    "a number": (0.5, TypeError, "noise: expected a tensor or a callable, got float"),
    "asked, of another shape": (
        lambda x, i: x[:1],
        ValueError,
        r"noise's result: expected x's shape \[2, 3, 4, 4\], got \[1, 3",
    ),
    "asked, no tensor": (lambda x, i: 0.0, TypeError, "noise's result: expected a float32, .* tensor, got float"),
}


@pytest.mark.parametrize("case", BAD_NOISE)
def test_bad_noise_of_sampling(case):
    noise, error, message = BAD_NOISE[case]
    with pytest.raises(error, match=message):
        images("ddpm", noise=noise)


# ---- bits/dim ----


@pytest.mark.parametrize("batch_size", [None, 3])
def test_bits_per_dim_asks_for_each_steps_noise(batch_size):
    """From the last index to 0, for the data of each chunk in turn."""
    diffusion, model, asked = GaussianDiffusion(SCHEDULE), model_of({}), []
    chain, key = SCHEDULE.respace(8), noise_key(6, 0, 4, stream="evaluation")

    def ask(x, i):
        asked.append((i, len(x)))
        first = 3 if len(x) == 1 else 0
        return randn(advance(key.clone(), int(chain.timesteps[i])), X_0.shape)[first : first + len(x)]

    options = {"steps": 8, "batch_size": batch_size, "progress": False}
    expected = diffusion.bits_per_dim(model, X_0, seed=6, **options)
    got = diffusion.bits_per_dim(model, X_0, noise=ask, **options)
    assert all(torch.allclose(got[name], expected[name], rtol=1e-5) for name in expected)
    assert asked == [(i, size) for size in ((4,) if batch_size is None else (3, 1)) for i in range(7, -1, -1)]


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        ("randn", TypeError, "noise: expected a tensor or a callable, got str"),
        (lambda x, i: x[:1], ValueError, "noise's result: expected x's shape"),
        (lambda x, i: None, TypeError, "noise's result: .*, got NoneType"),
    ],
    ids=["a name", "another shape", "none"],
)
def test_bad_noise_of_bits_per_dim(noise, error, message):
    with pytest.raises(error, match=message):
        GaussianDiffusion(SCHEDULE).bits_per_dim(model_of({}), X_0, noise=noise, steps=2, progress=False)
