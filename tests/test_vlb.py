"""The variational bound is right: its densities against mpmath, its gradients against finite differences, its terms against the
identities that define them, and finite where the published code clamps or overflows."""

import itertools
import math

import mpmath
import plain
import pytest
import torch
from helpers import DTYPES, LAYOUTS, assert_right, on_reference, poisoned, same_bits, values
from torch.autograd import gradcheck, gradgradcheck

from fastddpm import (
    GaussianDiffusion,
    NoiseSchedule,
    advance,
    gaussian,
    hybrid_loss,
    mse_loss,
    noise_key,
    ops,
    prior_kl,
    q_sample,
    randn,
    timesteps,
    vlb_loss,
)
from fastddpm.schedule import LEARNED_VARIANCE_TYPES, PREDICTION_TYPES, VARIANCE_TYPES
from fastddpm.vlb import CDFS

SCHEDULE = NoiseSchedule.linear(1000)
T = torch.tensor([0, 1, 400, 999])
SHAPE = (4, 3, 2, 3)
SMALL = (4, 2, 2)
ARITHMETIC = (torch.float32, torch.float64)
wide = {"dtype": torch.float64}


def data(*shape, dtype=torch.float32, seed=1):
    """On the 8-bit grid of [-1, 1], with pixels at both ends."""
    x = ((values(*shape, seed=seed, **wide).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    x.view(-1)[::7], x.view(-1)[3::7] = -1, 1
    return x.to(dtype)


def output(variance_type, shape=SHAPE, dtype=torch.float64, seed=0):
    """A network's, its variance channels near those of the schedule."""
    if variance_type not in LEARNED_VARIANCE_TYPES:
        return values(*shape, seed=seed, dtype=dtype)
    out = values(shape[0], 2 * shape[1], *shape[2:], seed=seed, **wide)
    out[:, shape[1] :] -= 6 if variance_type == "learned" else 0
    return out.to(dtype)


# ---- densities, against mpmath ----


def mp(x):
    """A tensor's one value, exactly."""
    return mpmath.mpf(x.item()) if isinstance(x, torch.Tensor) else mpmath.mpf(x)


def upper(x):
    return mpmath.erfc(x / mpmath.sqrt(2)) / 2


def true_log_bin(y, w):
    """log P and its derivatives; in the tail by Q, which keeps every digit there."""
    y, w = mp(y), mp(w)
    side, a, b = mpmath.sign(y) if y else mpmath.mpf(1), abs(y) - w, abs(y) + w
    p = upper(a) - upper(b)
    return mpmath.log(p), side * (mpmath.npdf(b) - mpmath.npdf(a)) / p, (mpmath.npdf(b) + mpmath.npdf(a)) / p


def true_log_tail(s):
    p = upper(-mp(s))
    return mpmath.log(p), mpmath.npdf(mp(s)) / p


def near(got, expected, relative=1e-6, absolute=1e-12):
    assert got.isfinite()
    error = abs(mp(got) - expected)
    assert error <= relative * abs(expected) + absolute, f"{float(got)} where {float(expected)} is right"


OFFSETS = (0.0, 1e-4, 0.02, 0.3, 0.7, 1.0, 1.9, 2.1, 3.0, 5.0, 9.0, 15.0, 27.0, 40.0)
WIDTHS = (1e-7, 1e-3, 0.05, 0.2, 0.49, 0.5, 0.53, 0.9, 1.5, 3.0, 8.0, 30.0)


@pytest.fixture
def digits():
    with mpmath.workdps(60):
        yield


@pytest.mark.parametrize("dtype", ARITHMETIC, ids=str)
@pytest.mark.parametrize("w", WIDTHS)
def test_the_density_of_a_bin(w, dtype, digits):
    """Narrow, wide and far out: log P, its slope in y and in w."""
    for y in (*OFFSETS, *(-y for y in OFFSETS)):
        y, width = torch.tensor(y, dtype=dtype), torch.tensor(w, dtype=dtype)
        for got, true in zip(gaussian.log_bin(y, width), true_log_bin(y, width), strict=True):
            near(got, true)


@pytest.mark.parametrize("dtype", ARITHMETIC, ids=str)
def test_the_density_of_an_open_bin(dtype, digits):
    for s in (*OFFSETS, *(-s for s in OFFSETS), -300.0, -1e4):
        s = torch.tensor(s, dtype=dtype)
        for got, true in zip(gaussian.log_tail(s), true_log_tail(s), strict=True):
            near(got, true)


@pytest.mark.parametrize("dtype", ARITHMETIC, ids=str)
def test_the_excess_of_a_wrong_variance(dtype, digits):
    """delta + expm1(-delta) to the last digits, where plain arithmetic has none left."""
    sizes = [10.0**n for n in range(-15, 2)] + [0.1, 0.3, 0.49, 0.5, 0.51, 0.9, 2.0, 30.0]
    for delta in (*sizes, *(-d for d in sizes)):
        delta = torch.tensor(delta, dtype=dtype)
        near(gaussian.kl_excess(delta), mp(delta) + mpmath.expm1(-mp(delta)), 16 * torch.finfo(dtype).eps, 0)
    assert gaussian.kl_excess(torch.zeros(1, dtype=dtype)) == 0


def test_derivatives_of_the_densities():
    """In closed form, as autograd finds them through the values, in both forms of the CDF."""
    y, w = torch.meshgrid(torch.linspace(-4.01, 4.02, 41, **wide), torch.tensor(WIDTHS[1:], **wide), indexing="ij")
    for inner, tail in ((gaussian.log_bin, gaussian.log_tail), (gaussian.tanh_bin, gaussian.tanh_tail)):
        at = [x.clone().requires_grad_() for x in (y, w)]
        value, *slopes = inner(*at)
        for slope, by_autograd in zip(slopes, torch.autograd.grad(value.sum(), at), strict=True):
            torch.testing.assert_close(slope, by_autograd, rtol=1e-9, atol=1e-12)
        s = y[:, 0].clone().requires_grad_()
        value, slope = tail(s)
        torch.testing.assert_close(slope, torch.autograd.grad(value.sum(), s)[0], rtol=1e-9, atol=1e-12)


def test_the_tanh_form_is_the_published_one():
    """To the digits that the published formula keeps, 1e-15 of a probability, and clamped where it is."""

    def published(x, mean, log_scale):  # openai/guided-diffusion, losses.py
        def cdf(x):
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

        scaled = torch.exp(-log_scale)
        plus, minus = cdf(scaled * (x - mean + 1 / 255)), cdf(scaled * (x - mean - 1 / 255))
        inner = torch.where(x > 0.999, 1 - minus, plus - minus)
        return -torch.where(x < -0.999, plus, inner).clamp(min=1e-12).log()

    x = data(4000, **wide)
    mean, log_scale = (x + 0.1 * values(4000, seed=2, **wide)), values(4000, seed=3, **wide) - 4
    got, *slopes = gaussian.nll(x - mean, 2 * log_scale, torch.ones_like(x), x, tanh_cdf=True)
    expected = published(x, mean, log_scale)
    clamped = expected == -math.log(1e-12)
    assert 100 < clamped.sum() < 3900
    torch.testing.assert_close((-got).exp(), (-expected).exp(), rtol=1e-9, atol=1e-15)
    assert not any(slope[clamped].any() for slope in slopes)


@pytest.mark.parametrize("dtype", ARITHMETIC, ids=str)
@pytest.mark.parametrize("x_0", [-1.0, 0.1, 1.0])
@pytest.mark.parametrize("backend", ["kernel", "reference"])
def test_the_likelihood_to_40_standard_deviations(x_0, dtype, backend, digits):
    """Through the public function, in both tails, bins open and not: a network that predicts the mean itself."""
    deviation = math.sqrt(SCHEDULE.posterior_variance[1])
    for offset in (*OFFSETS, *(-y for y in OFFSETS)):
        x = torch.tensor([[x_0]], dtype=dtype)
        mean = (x - offset * deviation).requires_grad_()
        call = (mean, x, x, 0, SCHEDULE, "previous")
        if backend == "reference":
            with on_reference():
                loss = vlb_loss(*call)
        else:
            loss = vlb_loss(*call)
        loss.backward()
        inverse = 1 / mpmath.sqrt(mp(SCHEDULE.posterior_variance[1]))
        y, w = (mp(x) - mp(mean)) * inverse, inverse / 255
        if abs(x_0) == 1:
            s = w + y if x_0 < 0 else w - y
            expected, slope = true_log_tail(s)
            slope = slope if x_0 < 0 else -slope
        else:
            expected, slope, _ = true_log_bin(y, w)
        bits = mpmath.log(2)
        near(loss, -expected / bits)
        near(mean.grad[0, 0], slope * inverse / bits, 2e-6 if dtype == torch.float32 else 1e-6, 1e-7)


# ---- finite, and with a gradient ----


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(("prediction_type", "cdf"), list(itertools.product(PREDICTION_TYPES, CDFS)))
def test_log_variances_from_minus_30_to_30(prediction_type, cdf, dtype):
    """A finite loss in every dtype, and in float32 a finite gradient."""
    x_0, t = data(61, 1, 12), T[:3].repeat(21)[:61]
    mean = values(61, 1, 12, seed=4)
    out = torch.cat((mean, torch.linspace(-30, 30, 61)[:, None, None].expand(61, 1, 12)), 1).to(dtype).requires_grad_()
    x_t = q_sample(x_0, t, SCHEDULE, noise_key(1, 2, 61))
    for first in (t, 0):
        with poisoned():
            loss = vlb_loss(out, x_0, x_t, first, SCHEDULE, prediction_type, "learned", cdf=cdf, reduction="none")
            (grad,) = torch.autograd.grad(loss.sum(), out)
        assert loss.isfinite().all()
        if dtype == torch.float32:
            assert grad.isfinite().all()


@pytest.mark.parametrize("value", [-150.0, -90.0, -87.0, 87.0, 90.0, 150.0, math.inf])
def test_beyond_the_exponents_float32_is_float64(value):
    """An exponential that overflows, or a variance that did, must not pass for a good one."""

    def loss(dtype):
        out = torch.zeros(2, 2, 2, 2, dtype=dtype)
        out[:, 1] = value
        x_0 = torch.zeros(2, 1, 2, 2, dtype=dtype)
        return vlb_loss(out, x_0, x_0 + 1e-3, torch.tensor([5, 999]), SCHEDULE, variance_type="learned", reduction="none")

    expected = loss(torch.float64)
    expected = torch.where(expected.abs() > torch.finfo(torch.float32).max, math.inf, expected)
    torch.testing.assert_close(loss(torch.float32).double(), expected, rtol=1e-4, atol=0)


def test_a_gradient_where_the_published_code_has_none():
    """Half the range away from the data, where its probability is clamped: 27.6 nats, whatever the mean and the variance."""
    x_0 = data(1, 1, 33)
    far = (-x_0).sign() * 0.5
    out = torch.cat((far, torch.full_like(far, -8.0)), 1).requires_grad_()
    clamped, exact = (vlb_loss(out, x_0, x_0, 0, SCHEDULE, "previous", "learned", cdf=cdf) for cdf in ("tanh", "exact"))
    (none,), (some,) = torch.autograd.grad(clamped, out), torch.autograd.grad(exact, out)
    assert not none.any() and clamped.item() == pytest.approx(-math.log2(1e-12), rel=1e-6)
    assert some.isfinite().all() and exact.item() > 100
    assert (some[:, 0].sign() == (far - x_0[:, 0]).sign()).all() and (some[:, 1] < 0).all()


def test_a_nan_stays_in_its_sample():
    for cdf, variance_type in itertools.product(CDFS, VARIANCE_TYPES):
        out, x_0 = output(variance_type, dtype=torch.float32), data(*SHAPE)
        clean = vlb_loss(out, x_0, x_0, T, SCHEDULE, variance_type=variance_type, cdf=cdf, reduction="none")
        for b in (0, 2):
            dirty = out.clone()
            dirty[b, -1, 0, 0] = torch.nan
            loss = vlb_loss(dirty, x_0, x_0, T, SCHEDULE, variance_type=variance_type, cdf=cdf, reduction="none")
            others = [i for i in range(4) if i != b]
            assert loss[b].isnan() and same_bits(loss[others], clean[others])


# ---- gradients ----

BOUNDS = list(itertools.product(PREDICTION_TYPES, VARIANCE_TYPES, CDFS))


@pytest.mark.parametrize(("prediction_type", "variance_type", "cdf"), BOUNDS)
def test_gradcheck_vlb_loss(prediction_type, variance_type, cdf):
    """Clipped too; and of the gradient again, which a gradient penalty wants."""
    out, x_0 = output(variance_type, SMALL).requires_grad_(), data(*SMALL, **wide)
    key = noise_key(1, 2, 4)
    near_data = 0.05 if prediction_type in ("sample", "previous") else 1.0  # or tanh clamps everything

    def loss(out, reduction="none", clip=False):
        c = SMALL[1]
        mean = near_data * out[:, :c] + (1 - near_data) * (x_0 if prediction_type == "sample" else x_t)
        full = torch.cat((mean, out[:, c:]), 1)
        return vlb_loss(full, x_0, key, T, SCHEDULE, prediction_type, variance_type, clip, cdf, reduction=reduction)

    x_t = q_sample(x_0, T, SCHEDULE, key)
    for reduction in ("none", "mean"):
        assert gradcheck(lambda out, r=reduction: loss(out, r), out, rtol=1e-4, atol=1e-6)
    assert gradcheck(lambda out: loss(out, clip=True), out, rtol=1e-4, atol=1e-6)
    assert gradgradcheck(loss, out, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("prediction_type", "variance_type", "cdf"), BOUNDS)
def test_gradients_of_hybrid_loss(prediction_type, variance_type, cdf):
    """The mean's is the mean squared error's alone, the variance's that of the bound: by finite differences in the latter."""
    full, x_0, key = output(variance_type, SMALL).requires_grad_(), data(*SMALL, **wide), noise_key(1, 2, 4)
    kwargs = {"prediction_type": prediction_type, "variance_type": variance_type, "cdf": cdf, "reduction": "none"}
    c, upstream = SMALL[1], torch.linspace(-1, 2, 4, **wide)

    def grads_of(losses, inputs=full):
        return [torch.autograd.grad(loss, inputs, upstream, retain_graph=True)[0] for loss in losses]

    parts = hybrid_loss(full, x_0, key, T, SCHEDULE, vlb_weight=0.3, **kwargs)
    torch.testing.assert_close(parts["loss"], parts["mse"] + 0.3 * parts["vlb"], rtol=1e-14, atol=0)
    of_mse, of_vlb, of_loss = grads_of([parts[name] for name in ("mse", "vlb", "loss")])
    torch.testing.assert_close(of_loss, of_mse + 0.3 * of_vlb, rtol=1e-12, atol=1e-15)
    assert not of_mse[:, c:].any() and not of_vlb[:, :c].any()

    mean = full.detach()[:, :c].requires_grad_()
    x_t = q_sample(x_0, T, SCHEDULE, key)
    mse = mse_loss(mean, T, SCHEDULE, key, x_0, x_t, prediction_type=prediction_type, reduction="none")
    torch.testing.assert_close(parts["mse"], mse, rtol=1e-12, atol=0)
    torch.testing.assert_close(of_mse[:, :c], grads_of([mse], mean)[0], rtol=1e-12, atol=1e-15)

    vlb = vlb_loss(full, x_0, x_t, T, SCHEDULE, **kwargs)
    torch.testing.assert_close(parts["vlb"], vlb, rtol=1e-12, atol=0)
    if variance_type in LEARNED_VARIANCE_TYPES:
        torch.testing.assert_close(of_vlb[:, c:], grads_of([vlb])[0][:, c:], rtol=1e-12, atol=1e-15)
        variance = full.detach()[:, c:].requires_grad_()

        def loss_of(variance):
            both = torch.cat((mean.detach(), variance), 1)
            return tuple(hybrid_loss(both, x_0, x_t, T, SCHEDULE, key, 0.3, **kwargs).values())

        assert gradcheck(loss_of, variance, rtol=1e-4, atol=1e-6)
        assert gradgradcheck(loss_of, variance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variance_type", ["fixed_large", "learned_range"])
def test_both_ways_to_a_gradient_agree(variance_type, dtype):
    """Eager float32's, made in the forward, and everyone else's; each part alone, all at once, and a second time."""
    from fastddpm import autograd

    x_0, key = data(*SHAPE), noise_key(1, 2, 4)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    rows = SCHEDULE.vlb_rows("epsilon", variance_type, False, "posterior", None, T.device, kind)
    out = output(variance_type, dtype=dtype).requires_grad_()
    for reduction, part in itertools.product((ops.NONE, ops.MEAN, ops.SUM), range(4)):
        others = (x_0, None, key, T, rows, False)
        hybrid = (
            autograd.HybridLossWithGrad.apply(out, (*others, 0.3, reduction)),
            autograd.HybridLoss.apply(out, *others, 0.3, reduction),
        )
        vlb = (
            autograd.VlbLossWithGrad.apply(out, (*others, reduction)),
            autograd.VlbLoss.apply(out, *others, reduction),
        )
        chosen = [x[part] if part < 3 else sum(x) for x in hybrid]
        for one, other in (chosen, vlb):
            upstream = (
                torch.linspace(0.5, 2, 4, dtype=one.dtype) if reduction == ops.NONE else torch.tensor(3.0, dtype=one.dtype)
            )
            grads = [torch.autograd.grad(loss, out, upstream, retain_graph=True)[0] for loss in (one, one, other, other)]
            for grad in grads:
                assert grad.dtype == dtype
                torch.testing.assert_close(grad, grads[-1], rtol=4 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("changed", ["model_output", "x_0", "x_t", "noise", "advance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_an_input_changed_in_place_gives_no_wrong_gradient(changed, dtype):
    """The gradient of the loss as it was, or an error."""
    weight, key = output("learned_range", dtype=dtype).requires_grad_(), noise_key(1, 2, 4)
    inputs = {"model_output": weight * 1, "x_0": data(*SHAPE), "x_t": key, "noise": key}
    if changed == "x_t":
        inputs["x_t"] = values(*SHAPE, seed=5)

    def loss_now():
        return hybrid_loss(**inputs, t=T, schedule=SCHEDULE)["loss"]

    (expected,) = torch.autograd.grad(loss_now(), weight, retain_graph=True)
    once, twice = loss_now(), loss_now()
    torch.autograd.grad(twice, weight, retain_graph=True)
    if changed == "advance":
        advance(key)
    else:
        inputs[changed].detach().add_(1)
    for loss in (once, twice):
        try:
            (grad,) = torch.autograd.grad(loss, weight, retain_graph=True)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            assert same_bits(grad, expected)


def test_second_derivatives_in_float32_are_those_of_float64():
    x_0, key = data(*SHAPE), noise_key(1, 2, 4)

    def second(dtype, name):
        out = output("learned_range", dtype=dtype).requires_grad_()
        x_t = q_sample(x_0, T, SCHEDULE, key)
        loss = (
            hybrid_loss(out, x_0, x_t, T, SCHEDULE, key)[name]
            if name != "bound"
            else vlb_loss(out, x_0, x_t, T, SCHEDULE, variance_type="learned_range")
        )
        (grad,) = torch.autograd.grad(loss, out, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), out)[0].double()

    for name in ("loss", "vlb", "bound"):
        exact = second(torch.float64, name)
        torch.testing.assert_close(
            second(torch.float32, name) / exact.abs().max(), exact / exact.abs().max(), rtol=0, atol=1e-4
        )


def test_forward_mode_is_refused():
    """A tangent of zero would be wrong in silence."""
    x_0 = data(4, *SMALL)
    with torch.autograd.forward_ad.dual_level():
        out = torch.autograd.forward_ad.make_dual(data(4, *SMALL), torch.ones(4, *SMALL))
        with pytest.raises(NotImplementedError, match="forward"):
            vlb_loss(out, x_0, x_0, T, SCHEDULE)


def test_second_derivatives_elsewhere_are_refused():
    out, x_0 = output("learned_range", dtype=torch.bfloat16).requires_grad_(), data(*SHAPE)
    for loss in (
        vlb_loss(out, x_0, x_0, T, SCHEDULE, variance_type="learned_range"),
        hybrid_loss(out, x_0, x_0, T, SCHEDULE, noise_key(1, 2, 4))["loss"],
    ):
        (grad,) = torch.autograd.grad(loss, out, torch.ones((), requires_grad=True), create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


# ---- the arguments ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
def test_x_t_as_a_key_is_x_t_as_a_tensor(layout, dtype):
    """To the bit of the loss: it is made again as q_sample made it, rounded to the data's dtype."""
    place, key = LAYOUTS[layout], noise_key(3, 4, 4)
    x_0, out = place(data(4, 3, 5, 7, dtype=dtype)), place(output("learned_range", (4, 3, 5, 7), dtype))
    x_t = q_sample(x_0, T, SCHEDULE, key)
    for prediction_type in PREDICTION_TYPES:
        kwargs = {"prediction_type": prediction_type, "variance_type": "learned_range", "reduction": "none"}
        losses = [vlb_loss(out, x_0, x, T, SCHEDULE, **kwargs) for x in (x_t, key)]
        assert same_bits(*losses)
        tensor = hybrid_loss(out, x_0, x_t, T, SCHEDULE, key, **kwargs)
        for noise in (key, None):
            again = hybrid_loss(out, x_0, key, T, SCHEDULE, noise, **kwargs)
            assert all(same_bits(tensor[name], again[name]) for name in tensor)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second", "batch_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_are_the_reference(layout, dtype):
    """Losses and gradients, of every prediction and variance, in any place in memory, every element written."""
    place, key, shape = LAYOUTS[layout], noise_key(3, 4, 4), (4, 3, 5, 7)
    x_0 = place(data(*shape, dtype=dtype))
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    for prediction_type, variance_type in itertools.product(PREDICTION_TYPES, ("fixed_large", "learned_range")):
        out = place(output(variance_type, shape, dtype)).requires_grad_()
        for cdf, clip in ((CDFS[0], False), (CDFS[1], True)):
            kwargs = {"clip_denoised": clip, "cdf": cdf, "reduction": "none"}
            bound = (out, x_0, key, T, SCHEDULE, prediction_type, variance_type)

            def results(bound=bound, kwargs=kwargs):
                loss = vlb_loss(*bound, **kwargs)
                parts = hybrid_loss(*bound[:5], None, 0.3, *bound[5:], **kwargs)
                grads = [torch.autograd.grad(x.sum(), bound[0])[0] for x in (loss, parts["loss"])]
                return [loss, *parts.values(), *grads]

            with poisoned():
                got = results()
            with on_reference():
                expected = results()
            for mine, true in zip(got, expected, strict=True):
                scale = true.double().abs().max().clamp(min=1e-30)
                eps = torch.finfo(true.dtype).eps
                torch.testing.assert_close(
                    mine.double() / scale, true.double() / scale, rtol=tolerance["rtol"] + eps, atol=tolerance["atol"]
                )
            assert got[-1].stride() == torch.empty_like(out).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("prediction_type", "variance_type"), list(itertools.product(PREDICTION_TYPES, VARIANCE_TYPES)))
def test_the_bound_is_as_right_as_the_plain_formula(prediction_type, variance_type, dtype):
    """Its error against the exact value is at most twice that of eager code in the same dtype, where that is finite; or 1e-5 of
    the largest: a coefficient's rounding goes the same way in a whole sample, and eager's coefficients are others. The mean is
    within reach of the data, so that the plain likelihood is not 0."""
    shape, t, c = (8, 3, 7, 5), torch.tensor([0, 1, 2, 10, 100, 500, 800, 900]), 3
    x_0, key = data(*shape, dtype=dtype), noise_key(1, 2, 8)
    x_t, out = q_sample(x_0, t, SCHEDULE, key), output(variance_type, shape, **wide)
    right = {
        "epsilon": randn(key, shape),
        "sample": x_0,
        "v_prediction": plain.target(x_0, None, t, SCHEDULE, randn(key, shape), "v_prediction", torch.float64),
        "previous": plain.posterior_mean(x_0, x_t, t, SCHEDULE, torch.float64),
    }[prediction_type]
    near = 0.01 if prediction_type in ("sample", "previous") else 0.3
    out[:, :c] = right.double() + near * out[:, :c]
    out = out.to(dtype).requires_grad_()
    case = (x_0, x_t, t, SCHEDULE, prediction_type, variance_type)

    def value_and_gradient(call, x):
        loss = call(x)
        return loss, torch.autograd.grad(loss.sum(), x)[0]

    got = value_and_gradient(lambda x: vlb_loss(x, *case, reduction="none"), out)
    true = value_and_gradient(lambda x: vlb_loss(x, *case, reduction="none"), out.detach().double().requires_grad_())
    eager = value_and_gradient(lambda x: plain.vlb_loss(x, *case, dtype), out)
    plain_in_wide = value_and_gradient(
        lambda x: plain.vlb_loss(x, *case, torch.float64), out.detach().double().requires_grad_()
    )
    for mine, exact, theirs, written_out in zip(got, true, eager, plain_in_wide, strict=True):
        torch.testing.assert_close(exact, written_out, rtol=1e-6, atol=1e-6 * float(written_out.detach().abs().max()))
        if theirs.isfinite().all() and (mine.double() - exact).abs().max() > 1e-5 * exact.abs().max():
            assert_right(mine, exact, theirs)


def test_reductions():
    out, x_0, key = output("learned", dtype=torch.float32), data(*SHAPE), noise_key(1, 2, 4)
    each = hybrid_loss(out, x_0, key, T, SCHEDULE, variance_type="learned", reduction="none")
    for reduction, reduce in (("mean", torch.mean), ("sum", torch.sum)):
        whole = hybrid_loss(out, x_0, key, T, SCHEDULE, variance_type="learned", reduction=reduction)
        alone = vlb_loss(out, x_0, key, T, SCHEDULE, variance_type="learned", reduction=reduction)
        assert same_bits(alone, whole["vlb"])
        for name, loss in whole.items():
            assert loss.shape == () and loss.dtype == torch.float32
            torch.testing.assert_close(loss, reduce(each[name]), rtol=1e-6, atol=0)


def test_the_default_weight_is_the_published_hybrid():
    """T / 1000 of a term is 0.001 of T of them."""
    for steps in (1000, 50):
        schedule = NoiseSchedule.linear(steps)
        out, x_0, key = output("learned_range"), data(*SHAPE, **wide), noise_key(1, 2, 4)
        parts = hybrid_loss(out, x_0, key, T % steps, schedule)
        torch.testing.assert_close(parts["loss"], parts["mse"] + 0.001 * (steps * parts["vlb"]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight", ["min_snr", "table"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES[:3])
def test_the_weight_is_of_the_mean_squared_error(prediction_type, weight):
    out, x_0, key = output("learned_range"), data(*SHAPE, **wide), noise_key(1, 2, 4)
    weight = torch.linspace(0.5, 2, 1000, **wide) if weight == "table" else weight
    kwargs = {"prediction_type": prediction_type, "reduction": "none"}
    plain, weighted = (hybrid_loss(out, x_0, key, T, SCHEDULE, **kwargs, weight=w) for w in (None, weight))
    expected = mse_loss(out[:, :3], T, SCHEDULE, key, x_0, weight=weight, **kwargs)
    torch.testing.assert_close(weighted["mse"], expected, rtol=1e-12, atol=0)
    assert same_bits(weighted["vlb"], plain["vlb"])


def test_the_ends_of_a_learned_range_are_the_fixed_variances():
    x_0, key = data(*SHAPE, **wide), noise_key(1, 2, 4)
    mean = values(*SHAPE, **wide)
    log_variance = SCHEDULE.betas[T].log()[:, None, None, None].expand(SHAPE)

    def loss(out, variance_type, t=T[1:], rows=slice(1, 4)):
        return vlb_loss(out[rows], x_0[rows], key[rows], t, SCHEDULE, variance_type=variance_type, reduction="none")

    small, large = (loss(torch.cat((mean, torch.full_like(mean, v)), 1), "learned_range") for v in (-1.0, 1.0))
    torch.testing.assert_close(small, loss(mean, "fixed_small"), rtol=1e-12, atol=0)
    torch.testing.assert_close(large, loss(mean, "fixed_large"), rtol=1e-12, atol=0)
    torch.testing.assert_close(large, loss(torch.cat((mean, log_variance), 1), "learned"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_the_first_variance(variance_type):
    """beta~_2 in the published code, beta_1 as Ho et al. write it: of index 0 alone."""
    out, x_0 = output(variance_type), data(*SHAPE, **wide)
    mean = values(*SHAPE, **wide) if variance_type == "learned_range" else out
    losses = {}
    for first_variance in ("posterior", "beta"):
        kwargs = {"first_variance": first_variance, "reduction": "none"}
        losses[first_variance] = vlb_loss(out, x_0, x_0, T, SCHEDULE, "sample", variance_type, **kwargs)
        if variance_type == "learned_range":
            continue
        variance = SCHEDULE.posterior_variance[1] if first_variance == "posterior" else SCHEDULE.betas[0]
        log_variance = torch.full_like(mean, math.log(variance))
        learned = vlb_loss(torch.cat((mean, log_variance), 1), x_0, x_0, T, SCHEDULE, "sample", "learned", **kwargs)
        torch.testing.assert_close(losses[first_variance][0], learned[0], rtol=1e-12, atol=0)
    assert same_bits(losses["posterior"][1:], losses["beta"][1:])
    assert losses["posterior"][0] != losses["beta"][0]


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_a_chain_of_one_step(variance_type):
    schedule, x_0 = NoiseSchedule.from_betas([0.3]), data(*SHAPE, **wide)
    out = output(variance_type).requires_grad_()
    loss = vlb_loss(out, x_0, noise_key(1, 2, 4), 0, schedule, variance_type=variance_type)
    assert torch.autograd.grad(loss, out)[0].isfinite().all() and loss.isfinite()


def test_prior_kl():
    x_0 = values(5, 3, 4, **wide).requires_grad_()
    abar = SCHEDULE.alphas_cumprod[-1]
    nats = (abar * x_0.detach() ** 2 - abar - torch.log1p(-abar)).mean((1, 2)) / 2
    got = prior_kl(x_0, SCHEDULE)
    torch.testing.assert_close(got, nats / math.log(2), rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(got.sum(), x_0)
    torch.testing.assert_close(grad, abar * x_0 / 12 / math.log(2), rtol=1e-12, atol=0)
    nothing = prior_kl(torch.zeros(1, 3, **wide), SCHEDULE)
    assert float(nothing * math.log(2)) == pytest.approx(float((-abar - torch.log1p(-abar)) / 2), rel=1e-12)
    assert not prior_kl(x_0, SCHEDULE.zero_terminal_snr()).any()
    for dtype in DTYPES:
        assert prior_kl(x_0.detach().to(dtype), SCHEDULE).dtype == (dtype if dtype == torch.float64 else torch.float32)


def test_the_terms_of_a_step():
    """What a bits/dim loop asks of one op: the bound's term, the error of x_0_hat, and the next x_t to the bit."""
    out, x_0, key = output("learned_range", dtype=torch.float32), data(*SHAPE), noise_key(1, 2, 4)
    x_t, following = q_sample(x_0, T, SCHEDULE, key), torch.tensor([3, 0, 399, 998])
    for prediction_type, clip in itertools.product(PREDICTION_TYPES, (False, True)):
        case = (prediction_type, "learned_range", clip)
        rows = SCHEDULE.vlb_rows(*case, "posterior", None, T.device, torch.float32)
        (vlb, x_0_mse), next_x_t = ops.vlb_terms(out, x_0, x_t, None, T, rows, False, key, following)
        expected = vlb_loss(out, x_0, x_t, T, SCHEDULE, *case, reduction="none")
        torch.testing.assert_close(vlb, expected, rtol=1e-6, atol=0)
        assert same_bits(next_x_t, q_sample(x_0, following, SCHEDULE, key))
        terms, none = ops.vlb_terms(out, x_0, None, key, T, rows, False, None, None)
        assert same_bits(terms, torch.stack((vlb, x_0_mse))) and none.shape == (0,)
        if not clip and prediction_type != "previous":
            eps = randn(key, SHAPE) if prediction_type != "sample" else None
            if prediction_type == "epsilon":  # the network's own error, once scaled
                snr = SCHEDULE.snr[T].float()
                torch.testing.assert_close(snr * x_0_mse, (out[:, :3] - eps).square().mean((1, 2, 3)), rtol=1e-4, atol=0)
            if prediction_type == "sample":
                torch.testing.assert_close(x_0_mse, (out[:, :3] - x_0).square().mean((1, 2, 3)), rtol=1e-6, atol=0)


# ---- the bound itself ----


def normal_log_density(x, mean, variance):
    return -(((x - mean) ** 2) / variance + torch.log(2 * math.pi * torch.as_tensor(variance, **wide))) / 2


def test_telescoping():
    """For a fixed x_0 the estimate of -log p(x_T) - sum log p(x_{t-1} | x_t) / q(x_t | x_{t-1}) along chains of q is, on
    average, prior_kl and the terms of vlb_loss: within 4 of its standard errors, which shrink as 1 / sqrt(n)."""
    steps, count = 6, 20_000
    schedule = NoiseSchedule.linear(steps, 0.05, 0.4)
    x_0 = data(1, 3, **wide).expand(count, 3).contiguous()
    states = [x_0]
    for i in range(steps):
        noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(i), **wide)
        states.append(schedule.alphas[i].sqrt() * states[-1] + schedule.betas[i].sqrt() * noise)

    def model(x):
        return torch.cat((0.7 * x + 0.1, 0.5 * x), 1)  # any will do

    plain, terms = -normal_log_density(states[-1], 0.0, 1.0), prior_kl(x_0, schedule)
    for i in range(steps):
        before, x_t, out = states[i], states[i + 1], model(states[i + 1])
        terms = terms + vlb_loss(out, x_0, x_t, i, schedule, variance_type="learned_range", reduction="none")
        rows = schedule.vlb_rows("epsilon", "learned_range", False, "posterior", None, x_t.device, torch.float64)[i]
        variance = ((rows[9] + rows[10] * out[:, 3:]) - rows[11].log()).exp()
        x_0_hat = rows[2] * x_t + rows[3] * out[:, :3]
        mean = schedule.posterior_mean_x_0[i] * x_0_hat + schedule.posterior_mean_x_t[i] * x_t
        forward = normal_log_density(x_t, schedule.alphas[i].sqrt() * before, schedule.betas[i])
        if i:
            reverse = normal_log_density(before, mean, variance)
        else:
            reverse, _, _ = (-x for x in gaussian.nll(x_0 - mean, variance.log(), torch.ones(()), x_0, False))
        plain = plain - reverse + forward
    differences = plain.mean(1) / math.log(2) - terms
    for n in (count // 100, count):
        error = differences[:n].std() / math.sqrt(n)
        assert abs(float(differences[:n].mean())) < 4 * float(error)
    assert float(error) < 0.01


def solvable(shape, steps, sigma=0.2):
    """By how much the bound exceeds -log2 p(x_0), `[B]` a dimension, for x_0 ~ N(0, sigma^2) and the exact reverse process."""
    schedule = NoiseSchedule.linear(steps, 0.1 / steps, 20 / steps)
    x_0 = sigma * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    abar, before, betas = schedule.alphas_cumprod, schedule.alphas_cumprod_prev, schedule.betas
    level, previous = abar * sigma**2 + 1 - abar, before * sigma**2 + 1 - before
    scale, log_variance = ((1 - abar).sqrt() / level).float(), (betas * previous / level).log().float()
    bound = prior_kl(x_0, schedule)
    for i in range(steps):
        key = noise_key(2, i, shape[0])
        x_t = q_sample(x_0, i, schedule, key)
        out = torch.cat((scale[i] * x_t, log_variance[i].expand_as(x_t)), 1)
        bound = bound + vlb_loss(out, x_0, x_t, i, schedule, variance_type="learned", reduction="none")
    exact = -normal_log_density(x_0.double(), 0.0, sigma**2).flatten(1).mean(1) / math.log(2) - math.log2(2 / 255)
    return bound.double() - exact


def assert_tight(shape, steps):
    """Nothing is lost but Monte Carlo's noise, which is 0.024 bits for one image of 3x32x32."""
    gap = solvable(shape, steps)
    assert float(gap.std()) < 0.03 * math.sqrt(3072 / math.prod(shape[1:]))
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(shape[0])


def test_the_bound_of_a_solvable_problem_is_tight():
    assert_tight((32, 3, 16, 16), 250)


@pytest.mark.slow
@pytest.mark.parametrize("images", [32, 512])
def test_the_bound_of_a_solvable_problem_is_tight_at_full_length(images):
    """Of 512 the mean is within 0.0043 bits of the truth."""
    assert_tight((images, 3, 32, 32), 1000)


# ---- GaussianDiffusion ----


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("loss", ["kl", "rescaled_kl", "hybrid"])
def test_training_loss_is_its_functions(loss, variance_type):
    settings = {"cdf": "tanh", "first_variance": "beta", "reduction": "none"}
    extra = {"vlb_weight": 0.2, "weight": "min_snr"} if loss == "hybrid" else {}
    diffusion = GaussianDiffusion(SCHEDULE, "v_prediction", variance_type, loss, cdf="tanh", first_variance="beta", **extra)
    x_0, key, learned = data(*SHAPE), noise_key(5, 6, 4), variance_type in LEARNED_VARIANCE_TYPES
    t = timesteps(key, 1000)
    x_t = q_sample(x_0, t, SCHEDULE, key)
    out = torch.cat((x_t, x_t), 1) if learned else x_t
    got = diffusion.training_loss(lambda x, t: torch.cat((x, x), 1) if learned else x, x_0, key, reduction="none")
    inputs = (out, x_0, x_t, t, SCHEDULE)
    kinds = {"prediction_type": "v_prediction", "variance_type": variance_type}
    if loss == "hybrid":
        expected = hybrid_loss(*inputs, key, **kinds, **settings, **extra)["loss"]
    else:
        expected = (1000 if loss == "rescaled_kl" else 1) * vlb_loss(*inputs, **kinds, **settings)
    assert same_bits(got, expected)


def test_sampling_with_a_learned_variance():
    """Noise of the variance that the network gives: at its lower end that of fixed_small."""
    ends = {}
    for variance_type, v in (("learned_range", -1.0), ("learned_range", 1.0), ("fixed_small", None), ("fixed_large", None)):
        diffusion = GaussianDiffusion(SCHEDULE, "sample", variance_type, "kl")

        def model(x, t, v=v):
            return x / 2 if v is None else torch.cat((x / 2, torch.full_like(x, v)), 1)

        ends[variance_type, v] = diffusion.sample(model, (2, 3, 4), steps=5, seed=3, progress=False)
    torch.testing.assert_close(ends["learned_range", -1.0], ends["fixed_small", None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ends["learned_range", 1.0], ends["fixed_large", None], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ends["fixed_small", None], ends["fixed_large", None], atol=1e-2)
