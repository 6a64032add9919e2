"""q_sample, q_step, mse_loss and reverse_step are right: within twice plain eager's error of float64, bit for bit the
reference's where that is promised, in every dtype, size and layout, every element written, at every edge of t."""

import itertools

import plain
import pytest
import torch
from helpers import DTYPES, LAYOUTS, assert_right, on_reference, poisoned, same_bits, spread, threads, values

from fastddpm import (
    GaussianDiffusion,
    NoiseSchedule,
    advance,
    hybrid_loss,
    mse_loss,
    noise_key,
    q_sample,
    q_step,
    randn,
    reverse_step,
    samplers,
    timesteps,
    vlb_loss,
)
from fastddpm.schedule import FIXED_VARIANCE_TYPES, LEARNED_VARIANCE_TYPES, PREDICTION_TYPES

T = 1000
SCHEDULE = NoiseSchedule.linear(T)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
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
KINDS = ("key", "tensor")


def noise_of(kind, shape, dtype=torch.float32):
    """The argument, and the numbers that it stands for."""
    if kind == "key":
        key = noise_key(1, 2, shape[0])
        return key, randn(key, shape)
    z = values(*shape, dtype=dtype, seed=9)
    return z, z


def loss_arguments(prediction_type, weight=None):
    """Which of x_0, x_t and weight go together."""
    weights = {"table": torch.linspace(0.5, 2.0, T)}
    return {"prediction_type": prediction_type, "weight": weights.get(weight, weight)}


# ---- noising ----


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
    a, s = (plain.column(c, t, x, torch.float32) for c in SCHEDULE.q_sample_rows(x.device, torch.float32).unbind(1))
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
        noise = None if kind == "none" else noise_of(kind, shape, dtype)[0]
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
    quiet = reverse_step(out, x, 0, rows)[0]
    assert same_bits(quiet, reverse_step(out, x, 0, rows, torch.full((2, 5), torch.inf))[0])
    assert same_bits(quiet, reverse_step(out, x, 0, rows, noise_key(1, 2, 2))[0])
    assert not same_bits(reverse_step(out, x, 1, rows)[0], reverse_step(out, x, 1, rows, noise_key(1, 2, 2))[0])


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


# ---- every way of giving t ----


def calls(shape, t, dtype=torch.float32, noise=None):
    """Each function once: its elementwise outputs by name, and its loss."""
    noise = noise_key(1, 2, shape[0]) if noise is None else noise
    out, x = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    return _calls(out, x, t, noise)


LOSS_NAMES = ("loss", "vlb", "hybrid")
"""Of the outputs of `_calls` those that are `[B]`: their sums run in memory's order."""


def _calls(out, x, t, noise):
    x_prev, x_0 = reverse_step(out, x, t, samplers.ddpm(SCHEDULE), noise)
    both, learned = torch.cat((out, out), 1), samplers.ddpm(SCHEDULE, variance_type="learned_range")
    x_t = noise if noise.dtype == torch.int64 else q_sample(x, t, SCHEDULE, noise)
    kwargs = {"prediction_type": "v_prediction", "reduction": "none"}
    return {
        "q_sample": q_sample(x, t, SCHEDULE, noise),
        "q_step": q_step(x, t, SCHEDULE, noise),
        "x_prev": x_prev,
        "x_0": x_0,
        "learned": reverse_step(both, x, t, learned, noise)[0],
        "loss": mse_loss(out, t, SCHEDULE, noise, x, weight="min_snr", **kwargs),
        "vlb": vlb_loss(out, x, x_t, t, SCHEDULE, variance_type="fixed_large", **kwargs),
        "hybrid": hybrid_loss(both, x, x_t, t, SCHEDULE, noise, variance_type="learned_range", **kwargs)["loss"],
    }


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert not [name for name in a if not same_bits(a[name], b[name])]


@pytest.mark.parametrize("value", [0, 1, 500, T - 1])
def test_t_as_any_integer_tensor_or_int(value):
    expected = calls((3, 2, 5), torch.full((3,), value))
    narrow = torch.full((6,), value, dtype=torch.int32)
    for t in (
        value,
        torch.tensor(value),
        torch.tensor([value]),
        narrow[:3],
        narrow[::2],
        torch.tensor([value]).expand(3),
    ):
        assert_same(calls((3, 2, 5), t), expected)


def test_every_sample_has_its_own_t():
    t = torch.tensor([T - 1, 0, 17, 500, 1])
    together = calls((5, 33), t)
    for b in range(5):
        with_one_t = calls((5, 33), int(t[b]))
        assert all(same_bits(together[name][b], with_one_t[name][b]) for name in together)


@pytest.mark.parametrize("bad", [-1, T, 2**31 - 1, -(2**31)])
def test_t_out_of_range_is_an_index_error(bad):
    for dtype, form in itertools.product((torch.int32, torch.int64), ("batch", "one", "int")):
        t = {"batch": torch.tensor([0, bad, 5], dtype=dtype), "one": torch.tensor([bad], dtype=dtype), "int": bad}[form]
        x, key = values(3, 5), noise_key(1, 2, 3)
        for call in (
            lambda x=x, t=t, key=key: q_sample(x, t, SCHEDULE, key),
            lambda x=x, t=t, key=key: q_step(x, t, SCHEDULE, key),
            lambda x=x, t=t, key=key: mse_loss(x, t, SCHEDULE, key),
            lambda x=x, t=t, key=key: mse_loss(x.clone().requires_grad_(), t, SCHEDULE, key),
            lambda x=x, t=t, key=key: reverse_step(x, x, t, samplers.ddpm(SCHEDULE), key),
            lambda x=x, t=t, key=key: vlb_loss(x, x, key, t, SCHEDULE),
            lambda x=x, t=t, key=key: hybrid_loss(x, x, key, t, SCHEDULE, variance_type="fixed_small"),
        ):
            with pytest.raises(IndexError, match=rf"expected 0 .. 999, got {bad}$"):
                call()


# ---- layouts and dtypes ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_layouts_in_memory_change_no_value(layout, dtype):
    place, shape, t = LAYOUTS[layout], (3, 5, 6, 7), spread(3)
    out, x = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    expected = _calls(out, x, t, noise_key(1, 2, 3))
    with poisoned():
        got = _calls(place(out), place(x), t, noise_key(1, 2, 3))
    strides = torch.empty_like(place(x)).stride()
    for name, value in expected.items():
        if name in LOSS_NAMES:
            torch.testing.assert_close(got[name], value, rtol=1e-6, atol=0)
        else:
            assert same_bits(got[name], value) and got[name].stride() == strides, name


PLACES = ("contiguous", "channels_last", "every_second", "batch_last")


@pytest.mark.parametrize("layouts", list(itertools.permutations(PLACES, 3)))
def test_operands_of_mixed_layouts(layouts):
    shape, t = (3, 5, 6, 7), spread(3)
    out, x, z = values(*shape), values(*shape, seed=1), values(*shape, seed=2)
    expected = _calls(out, x, t, z)
    for place in (LAYOUTS[layouts[0]], LAYOUTS["contiguous"]):
        got = _calls(place(out), LAYOUTS[layouts[1]](x), t, LAYOUTS[layouts[2]](z))
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-6 if name in LOSS_NAMES else 0, atol=0)


MIXED_DTYPES = list(itertools.product(DTYPES, DTYPES, (torch.float32, torch.bfloat16, "key")))


@pytest.mark.parametrize(("out", "x", "z"), MIXED_DTYPES)
def test_operands_of_mixed_dtypes(out, x, z):
    """Each is widened to the arithmetic of the first (float64 or float32), and the result is cast to the first's dtype."""
    shape, t = (3, 130), spread(3)
    out, x = values(*shape, dtype=out), values(*shape, dtype=x, seed=1)
    noise = noise_key(1, 2, 3) if z == "key" else values(*shape, dtype=z, seed=2)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if wide == torch.float64 else {"rtol": 0, "atol": 0}
    x_t = q_sample(x, t, SCHEDULE, noise)
    expected = q_sample(x.to(wide), t, SCHEDULE, noise if z == "key" else noise.to(wide)).to(x.dtype)
    torch.testing.assert_close(x_t, expected, **tolerance)
    x_prev, x_0 = reverse_step(out, x, t, samplers.ddpm(SCHEDULE), noise)
    widened = reverse_step(out.to(wide), x.to(wide), t, samplers.ddpm(SCHEDULE), noise)
    torch.testing.assert_close(x_prev, widened[0].to(x.dtype), **tolerance)
    torch.testing.assert_close(x_0, widened[1].to(x.dtype), **tolerance)
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    loss = mse_loss(out, t, SCHEDULE, noise, x, prediction_type="v_prediction")
    widened = mse_loss(out.to(wide), t, SCHEDULE, noise, x.to(wide), prediction_type="v_prediction")
    torch.testing.assert_close(loss, widened, rtol=1e-12 if wide == torch.float64 else 0, atol=0)
    assert (x_t.dtype, x_prev.dtype, x_0.dtype, loss.dtype) == (x.dtype, x.dtype, x.dtype, wide)


@pytest.mark.parametrize(
    "expand",
    [
        lambda: values(1, 3, 4, 5).expand(6, 3, 4, 5),
        lambda: values(6, 1, 4, 5).expand(6, 3, 4, 5),
        lambda: values(6, 3, 1, 1).expand(6, 3, 4, 5),
        lambda: values(1).expand(6, 3, 4, 5),
        lambda: values(6, 3, 1).expand(6, 3, 20),
    ],
)
def test_expanded_operands(expand):
    x, t, key = expand(), spread(6), noise_key(1, 2, 6)
    with poisoned():
        got = _calls(x, x, t, key)
    expected = _calls(x.contiguous(), x.contiguous(), t, key)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6 if name in LOSS_NAMES else 0, atol=0)
    assert torch.equal(q_sample(x, t, SCHEDULE, x), q_sample(x.contiguous(), t, SCHEDULE, x.contiguous()))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 64, 130, 255, 256, 257, 400])
@pytest.mark.parametrize("pixels", [(1, 1), (1, 2), (3, 3), (31, 3)])
def test_channels_last_of_every_number_of_channels(channels, pixels):
    shape, t = (2, channels, *pixels), spread(2)
    out, x, key = values(*shape), values(*shape, seed=1), noise_key(1, 2, 2)
    expected = _calls(out, x, t, key)
    with poisoned():
        got = _calls(LAYOUTS["channels_last"](out), LAYOUTS["channels_last"](x), t, key)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6 if name in LOSS_NAMES else 0, atol=0)


def test_channels_last_of_images_in_space():
    shape, t, key = (2, 3, 4, 5, 6), spread(2), noise_key(1, 2, 2)
    x = values(*shape)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    x_t = q_sample(last, t, SCHEDULE, key)
    assert same_bits(x_t, q_sample(x, t, SCHEDULE, key)) and x_t.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dims", [9, 15])
def test_many_dimensions(dims):
    shape, t, key = (2, *[2] * dims), spread(2), noise_key(1, 2, 2)
    x = values(*shape).permute(0, *range(dims, 0, -1))
    assert same_bits(q_sample(x, t, SCHEDULE, key), q_sample(x.contiguous(), t, SCHEDULE, key))


def test_a_key_or_a_t_in_strided_memory():
    keys, ts = noise_key(1, 2, 6), torch.arange(0, 12)
    got = calls((3, 33), ts[::4], noise=keys[::2])
    assert_same(got, calls((3, 33), ts[::4].contiguous(), noise=keys[::2].contiguous()))
    turned = noise_key(1, 2, 3).t().contiguous().t()
    assert_same(calls((3, 33), ts[:3], noise=turned), calls((3, 33), ts[:3]))


# ---- batches ----


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,), (0, 3, 8, 8), (2, 0, 4, 4)], ids=str)
def test_empty_batches_and_empty_samples(shape):
    for dtype, kind in itertools.product(DTYPES, KINDS):
        x, t = values(*shape, dtype=dtype).requires_grad_(), torch.zeros(shape[0], dtype=torch.int64)
        noise, _ = noise_of(kind, shape, dtype)
        assert q_sample(x, t, SCHEDULE, noise).shape == shape
        x_prev, x_0 = reverse_step(x, x, t, samplers.ddpm(SCHEDULE), noise)
        assert x_prev.shape == x_0.shape == shape
        loss = mse_loss(x, t, SCHEDULE, noise, reduction="none")
        assert loss.shape == shape[:1]
        bound = hybrid_loss(x, x.detach(), x.detach(), t, SCHEDULE, noise, variance_type="fixed_small", reduction="none")
        assert all(part.shape == shape[:1] for part in bound.values())
        for reduction in ("mean", "sum"):
            assert mse_loss(x, t, SCHEDULE, noise, reduction=reduction).shape == ()
            assert vlb_loss(x, x.detach(), x.detach(), t, SCHEDULE, reduction=reduction).shape == ()
        (loss.sum() + bound["loss"].sum() + q_sample(x, t, SCHEDULE, noise).sum() + x_prev.sum()).backward()
        assert x.grad.shape == shape


def test_an_empty_batchs_loss_is_torchs():
    empty, key = values(0, 3, 4), noise_key(1, 2, 0)
    t = torch.zeros(0, dtype=torch.int64)
    assert mse_loss(empty, t, SCHEDULE, key).isnan() and float(mse_loss(empty, t, SCHEDULE, key, reduction="sum")) == 0


@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 17, 9), (12, 2500)], ids=str)
def test_a_batch_split_in_two_computes_the_same(shape):
    """To the bit, the loss of each sample too."""
    out, x, t, key = values(*shape), values(*shape, seed=1), spread(12), noise_key(1, 2, 12)
    whole = _calls(out, x, t, key)
    parts = [_calls(out[s], x[s], t[s], key[s]) for s in (slice(0, 5), slice(5, 12))]
    assert_same(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_has_the_same_bits_on_any_number_of_threads(reduction):
    out, key = values(7, 30001), noise_key(1, 2, 7)
    losses = []
    for count in (1, 2, 5):
        with threads(count):
            losses.append(mse_loss(out, spread(7), SCHEDULE, key, reduction=reduction))
    assert same_bits(losses[0], losses[1]) and same_bits(losses[0], losses[2])


# ---- NaN and infinity ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_nan_stays_in_its_sample(bad, layout, dtype):
    shape, t, key = (3, 2, 5, 3), spread(3), noise_key(1, 2, 3)
    out, x = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    place = LAYOUTS[layout]
    clean = _calls(place(out), place(x), t, key)
    x[1, 1, 2, 0] = bad
    dirty = _calls(place(out), place(x), t, key)
    for name, value in dirty.items():
        assert same_bits(value[[0, 2]], clean[name][[0, 2]]), name
        if name in LOSS_NAMES:
            assert not value[1].isfinite()
        else:
            touched = torch.zeros(shape, dtype=torch.bool)
            touched[1, 1, 2, 0] = True
            assert same_bits(value[~touched], clean[name][~touched])
            if bad != bad:
                assert value[touched].isnan().all(), name
    if bad == bad:
        assert not dirty["q_sample"][1, 1, 2, 0].isfinite()


def test_a_nan_in_the_output_is_not_clipped_away():
    out, x = values(2, 9), values(2, 9, seed=1)
    out[0, 8] = torch.nan
    x_prev, x_0 = reverse_step(out, x, 500, samplers.ddpm(SCHEDULE), noise_key(1, 2, 2))
    assert x_prev[0, 8].isnan() and x_0[0, 8].isnan() and int(x_prev.isnan().sum() + x_0.isnan().sum()) == 2


# ---- GaussianDiffusion ----


class Doubled:
    """A model that looks like diffusers': its output has the tensor in `.sample`."""

    def __call__(self, x, t, scale=2.0):
        self.t, self.sample = t, scale * x
        return self


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("weight", [None, "table"])
def test_training_loss_is_its_three_functions(prediction_type, weight):
    kwargs = loss_arguments(prediction_type, weight)
    diffusion = GaussianDiffusion(SCHEDULE, prediction_type, weight=kwargs["weight"])
    x_0, key = values(4, 3, 5, 5), noise_key(3, 4, 4)
    t = timesteps(key, T)
    out = 3 * q_sample(x_0, t, SCHEDULE, key)
    for reduction in ("mean", "sum", "none"):
        loss = diffusion.training_loss(Doubled(), x_0, key, {"scale": 3.0}, reduction)
        assert same_bits(loss, mse_loss(out, t, SCHEDULE, key, x_0, **kwargs, reduction=reduction))


def test_a_respaced_chain_gives_the_model_the_timesteps_it_knows():
    short, model, key = SCHEDULE.respace(10), Doubled(), noise_key(3, 4, 50)
    GaussianDiffusion(short).training_loss(model, values(50, 3), key)
    assert torch.equal(model.t, short.timesteps[timesteps(key, 10)])
    seen = []
    GaussianDiffusion(SCHEDULE).sample(lambda x, t: seen.append(t) or x, (2, 3), steps=10, progress=False)
    assert [int(t[0]) for t in seen] == short.timesteps.flip(0).tolist() and all(t.shape == (2,) for t in seen)


def test_sampling_is_its_loop_written_out():
    model, shape = Doubled(), (2, 3, 4, 4)
    rows = samplers.ddpm(SCHEDULE.respace(5), "v_prediction", "fixed_large")
    x, key = randn(noise_key(6, 0, 2, stream=2), shape), noise_key(6, 0, 2, stream=1)
    for i in range(4, -1, -1):
        x = reverse_step(model(x, rows.timesteps[i].expand(2), 0.5).sample, x, i, rows, key)[0]
        advance(key)
    diffusion = GaussianDiffusion(SCHEDULE, "v_prediction", "fixed_large")
    images = diffusion.sample(model, shape, steps=5, seed=6, model_kwargs={"scale": 0.5}, progress=False)
    assert same_bits(images, x)


def test_an_image_of_a_batch_of_seeds_is_the_image_of_its_seed():
    diffusion, seeds = GaussianDiffusion(SCHEDULE), torch.tensor([5, 9, 5])
    images = diffusion.sample(Doubled(), (3, 2, 4, 4), steps=5, seed=seeds, progress=False)
    alone = diffusion.sample(Doubled(), (1, 2, 4, 4), steps=5, seed=torch.tensor([9]), progress=False)
    assert same_bits(images[1:2], alone) and same_bits(images[0], images[2]) and not same_bits(images[0], images[1])
