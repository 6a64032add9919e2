"""q_sample, q_step, mse_loss and reverse_step are right: within twice plain eager's error of float64, bit for bit the
reference's where that is promised, in every dtype and size, every element written."""

import itertools

import plain
import pytest
import torch
from helpers import (
    DTYPES,
    FLOATS,
    KINDS,
    assert_right,
    loss_arguments,
    noise_of,
    on_reference,
    poisoned,
    same_bits,
    spread,
    values,
)

from fastddpm import (
    GaussianDiffusion,
    NoiseSchedule,
    mse_loss,
    noise_key,
    q_sample,
    q_sample_uniform,
    q_step,
    randn,
    reverse_step,
    samplers,
    timesteps,
)
from fastddpm.coefficients import q_sample_rows
from fastddpm.schedule import FIXED_VARIANCE_TYPES, LEARNED_VARIANCE_TYPES, PREDICTION_TYPES

T = 1000
SCHEDULE = NoiseSchedule.linear(T)
SHAPES = (
    (3,),
    (3, 1),
    (3, 3),
    (3, 4),
    (3, 5),
    (3, 127),
    (3, 4097),
    (3, 4100),
    (3, 2, 7),
    (2, 3, 5, 7),
    (2, 2, 3, 3, 5),
)
"""One element a sample to more than one chunk, aligned to a block of noise and not, one to five dimensions."""
# ---- noising ----


@pytest.mark.parametrize("schedule", [SCHEDULE, SCHEDULE.respace(7), NoiseSchedule.linear(1)], ids=len)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_q_sample_uniform_is_q_sample_at_the_timesteps(dtype, schedule):
    key, x = noise_key(5, 6, 3), values(3, 4, 5, 6, dtype=dtype)
    t = timesteps(key, len(schedule))
    for wanted in (False, True):
        x.requires_grad_(wanted)
        x_t, drawn = q_sample_uniform(x, schedule, key)
        expected = q_sample(x, t, schedule, key)
        assert same_bits(drawn, t) and same_bits(x_t, expected)
    grads = (torch.autograd.grad(out, x, torch.ones_like(x))[0] for out in (x_t, expected))
    assert same_bits(*grads)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", [q_sample, q_step])
def test_noising_is_right(function, dtype, shape):
    formula = getattr(plain, function.__name__)
    x, t = values(*shape, dtype=dtype), spread(shape[0])
    for kind in KINDS:
        noise, z = noise_of(kind, shape, dtype)
        with poisoned():
            out = function(x, t, SCHEDULE, noise)
        assert out.dtype == dtype and out.shape == x.shape
        exact = formula(x, t, SCHEDULE, z, torch.float64)
        assert_right(out, exact, formula(x, t, SCHEDULE, z, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_noising_has_the_references_bits(dtype, shape):
    x, t = values(*shape, dtype=dtype), spread(shape[0])
    for function, kind in itertools.product((q_sample, q_step), KINDS):
        noise, _ = noise_of(kind, shape, dtype)
        got = function(x, t, SCHEDULE, noise)
        with on_reference():
            assert same_bits(got, function(x, t, SCHEDULE, noise))


def test_x_t_is_one_fused_multiply_add():
    """fma(a, x_0, s z), where s z is rounded and a x_0 is not: some bits differ from the plain formula's."""
    x, key, t = values(4, 999), noise_key(1, 2, 4), spread(4)
    a, s = (plain.column(c, t, x, torch.float32) for c in q_sample_rows(SCHEDULE, x.device, torch.float32).unbind(1))
    z = s * randn(key, x.shape)
    fused = (a.double() * x.double() + z.double()).float()  # rounded twice: equal but for one in 2^29
    x_t = q_sample(x, t, SCHEDULE, key)
    assert torch.equal(x_t, fused) and not torch.equal(x_t, a * x + z)


# ---- loss ----


LOSSES = [
    *itertools.product(PREDICTION_TYPES[:3], (None, "min_snr", "table"), (False,)),
    *itertools.product(("previous",), (None, "table"), (False, True)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("prediction_type", "weight", "given_x_t"), LOSSES)
def test_mse_loss_is_right(prediction_type, weight, given_x_t, dtype):
    shape, kwargs = (32, 3, 7, 5), loss_arguments(prediction_type, weight)
    out, x_0, t = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1), spread(shape[0])
    for kind in KINDS:
        noise, z = noise_of(kind, shape, dtype)
        x_t = values(*shape, dtype=dtype, seed=2) if given_x_t else None
        loss = mse_loss(out, t, SCHEDULE, noise, x_0, x_t, **kwargs, reduction="none")
        assert loss.shape == (32,) and loss.dtype == (dtype if dtype == torch.float64 else torch.float32)
        formula = (out, t, SCHEDULE, z, x_0, x_t, *kwargs.values())
        exact = plain.mse_loss(*formula, torch.float64)
        assert_right(loss, exact, plain.mse_loss(*formula, dtype))
        for reduction, reduce in (("mean", torch.mean), ("sum", torch.sum)):
            whole = mse_loss(out, t, SCHEDULE, noise, x_0, x_t, **kwargs, reduction=reduction)
            assert whole.shape == () and whole.dtype == loss.dtype
            torch.testing.assert_close(whole.double(), reduce(loss.double()), rtol=2e-7, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mse_loss_of_every_size(shape):
    out, x_0, t = values(*shape), values(*shape, seed=1), spread(shape[0])
    for kind, prediction_type in itertools.product(KINDS, PREDICTION_TYPES):
        noise, z = noise_of(kind, shape)
        loss = mse_loss(out, t, SCHEDULE, noise, x_0, prediction_type=prediction_type, reduction="none")
        exact = plain.mse_loss(out, t, SCHEDULE, z, x_0, None, prediction_type, None, torch.float64)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("prediction_type", "weight", "given_x_t"), LOSSES)
def test_mse_gradient_is_right(prediction_type, weight, given_x_t, dtype):
    """An upstream gradient of a size that keeps float16 clear of its subnormals."""
    shape, kwargs = (8, 3, 7, 5), loss_arguments(prediction_type, weight)
    x_0, t, upstream = values(*shape, dtype=dtype, seed=1), spread(shape[0]), 64 * torch.linspace(-1, 2, shape[0])
    x_t = values(*shape, dtype=dtype, seed=2) if given_x_t else None
    noise, z = noise_of("key", shape, dtype)

    def gradient_of(loss, out):
        return torch.autograd.grad(loss, out, upstream.to(loss.dtype))[0]

    out = values(*shape, dtype=dtype).requires_grad_()
    with poisoned():
        loss = mse_loss(out, t, SCHEDULE, noise, x_0, x_t, **kwargs, reduction="none")
        grad = gradient_of(loss, out)
    wide = out.detach().double().requires_grad_()
    exact, eager = (
        gradient_of(plain.mse_loss(x, t, SCHEDULE, z, x_0, x_t, *kwargs.values(), d), x)
        for x, d in ((wide, torch.float64), (out, dtype))
    )
    assert grad.dtype == dtype
    assert_right(grad, exact, eager)


def test_a_float32_loss_of_half_precision_keeps_float32():
    """The sum of bfloat16 squares in bfloat16 would be off by per cents."""
    out, x_0 = values(4, 50000, dtype=torch.bfloat16), values(4, 50000, dtype=torch.bfloat16, seed=1)
    loss = mse_loss(out, spread(4), SCHEDULE, x_0=x_0, prediction_type="sample")
    torch.testing.assert_close(loss.double(), (out.double() - x_0.double()).square().mean(), rtol=1e-6, atol=0)


# ---- reverse ----


CLIPS = (None, 1.0, 0.3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("prediction_type", "variance_type"), list(itertools.product(PREDICTION_TYPES, FIXED_VARIANCE_TYPES)))
def test_reverse_step_is_right(prediction_type, variance_type, dtype):
    """t up to 900: at 999 float16's x_0_hat overflows, in eager as in the op."""
    shape, t = (8, 3, 7, 5), torch.tensor([0, 1, 2, 10, 100, 500, 800, 900])
    out, x_t = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    for clip, kind in itertools.product(CLIPS, KINDS):
        rows = plain.ddpm_rows(SCHEDULE, prediction_type, variance_type, clip)
        noise, z = noise_of(kind, shape, dtype)
        with poisoned():
            got = reverse_step(out, x_t, t, rows, noise)
        case = (out, x_t, t, SCHEDULE, z, prediction_type, variance_type, clip)
        exact, eager = plain.reverse_step(*case, torch.float64), plain.reverse_step(*case, dtype)
        for mine, true, other in zip(got, exact, eager, strict=True):
            assert mine.dtype == dtype and mine.shape == shape
            assert_right(mine, true, other)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_reverse_step_has_the_references_bits(dtype, shape):
    out, x_t, t = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1), spread(shape[0])
    for prediction_type, clip, kind in itertools.product(PREDICTION_TYPES, CLIPS, (*KINDS, "none")):
        rows = plain.ddpm_rows(SCHEDULE, prediction_type, "fixed_large", clip)
        noise = kind if kind == "none" else noise_of(kind, shape, dtype)[0]
        with poisoned():
            got = reverse_step(out, x_t, t, rows, noise)
        with on_reference():
            expected = reverse_step(out, x_t, t, rows, noise)
        assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("prediction_type", "variance_type"), list(itertools.product(PREDICTION_TYPES, LEARNED_VARIANCE_TYPES))
)
def test_reverse_step_with_a_learned_variance_is_right(prediction_type, variance_type, dtype):
    shape, t = (8, 3, 7, 5), torch.tensor([0, 1, 2, 10, 100, 500, 800, 900])
    out, x_t = values(8, 6, 7, 5, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    for clip, kind in itertools.product(CLIPS, KINDS):
        rows = plain.ddpm_rows(SCHEDULE, prediction_type, variance_type, clip)
        noise, z = noise_of(kind, shape, dtype)
        with poisoned():
            got = reverse_step(out, x_t, t, rows, noise)
        case = (out, x_t, t, SCHEDULE, z, prediction_type, variance_type, clip)
        for mine, true, other in zip(
            got, plain.reverse_step(*case, torch.float64), plain.reverse_step(*case, dtype), strict=True
        ):
            assert mine.dtype == dtype and mine.shape == shape
            assert_right(mine, true, other)


def test_the_last_step_adds_no_noise_not_even_infinite_noise():
    out, x = values(2, 5), values(2, 5, seed=1)
    rows = samplers.ddpm(SCHEDULE)
    quiet = reverse_step(out, x, 0, rows, "none")[0]
    assert same_bits(quiet, reverse_step(out, x, 0, rows, torch.full((2, 5), torch.inf))[0])
    assert same_bits(quiet, reverse_step(out, x, 0, rows, noise_key(1, 2, 2))[0])
    assert not same_bits(reverse_step(out, x, 1, rows, "none")[0], reverse_step(out, x, 1, rows, noise_key(1, 2, 2))[0])


def test_x_0_is_left_out_where_it_is_not_wanted():
    out, x, rows, key = values(3, 5), values(3, 5, seed=1), samplers.ddpm(SCHEDULE), noise_key(1, 2, 3)
    x_prev, nothing = reverse_step(out, x, 7, rows, key, return_x_0=False)
    assert nothing is None and same_bits(x_prev, reverse_step(out, x, 7, rows, key)[0])


def test_reverse_steps_undo_the_forward_process_of_a_known_image():
    """A model that knows x_0 gives it back, from pure noise, at any respacing."""
    x_0 = values(3, 2, 4, 4).clamp(-1, 1)
    for steps in (None, 1, 7, 50):
        diffusion = GaussianDiffusion(SCHEDULE, "sample")
        images = diffusion.sample(lambda x, t: x_0, x_0.shape, steps=steps, seed=1, progress=False)
        torch.testing.assert_close(images, x_0, rtol=0, atol=1e-6)
