"""The bound is finite and has a right gradient, where the published code clamps or overflows too."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from helpers import DTYPES, FLOATS, on_reference, poisoned, same_bits, values, wide
from torch.autograd import gradcheck, gradgradcheck
from vlb_inputs import SCHEDULE, SHAPE, SMALL, T, data, output

from fastddpm import (
    advance,
    hybrid_loss,
    mse_loss,
    noise_key,
    ops,
    q_sample,
    vlb_loss,
)
from fastddpm.coefficients import vlb_rows
from fastddpm.schedule import LEARNED_VARIANCE_TYPES, PREDICTION_TYPES, VARIANCE_TYPES
from fastddpm.vlb import CDFS

# ---- finite, and with a gradient ----


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
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


@pytest.mark.parametrize("log_variance", [1400.0, 1500.0, 6e4, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_deviation_wider_than_any(log_variance, dtype):
    """The bin's P falls as 1 over it, and its log as minus half the log-variance; the tanh form has its floor long since."""
    data, t = torch.zeros(1, 1, 1, dtype=dtype), torch.tensor([0])
    losses, grads = [], []
    for value, cdf in ((1000.0, "exact"), (log_variance, "exact"), (log_variance, "tanh")):
        out = torch.tensor([[[0.0], [value]]], dtype=dtype, requires_grad=True)
        losses.append(vlb_loss(out, data, data, t, SCHEDULE, variance_type="learned", cdf=cdf))
        grads.append(torch.autograd.grad(losses[-1], out)[0])
    nat = 1 / math.log(2)
    expected = losses[0] + (log_variance - 1000) / 2 * nat
    torch.testing.assert_close(losses[1], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grads[1].flatten(), torch.tensor([0, nat / 2], dtype=dtype), rtol=1e-6, atol=0)
    torch.testing.assert_close(losses[2], torch.tensor(-math.log(1e-12) * nat, dtype=dtype))
    assert not grads[2].any()
    for end, cdf in itertools.product((-1, 1), CDFS):
        out = torch.tensor([[[0.0], [log_variance]]], dtype=dtype, requires_grad=True)
        half = vlb_loss(out, data + end, data, t, SCHEDULE, variance_type="learned", cdf=cdf)
        assert abs(float(half.detach()) - 1) < 1e-6, "one half: a bit"
        assert float(torch.autograd.grad(half, out)[0].abs().max()) < 1e-30


@pytest.mark.parametrize("log_variance", [-1500.0, -6e4, -math.inf])
def test_a_deviation_narrower_than_any(log_variance):
    """All of it lies in the bin, or nothing does."""
    out = torch.tensor([[[0.0], [log_variance]]]).expand(2, 2, 1)
    data, t = torch.zeros(2, 1, 1), torch.zeros(2, dtype=torch.int64)
    x_t = torch.tensor([0.0, 0.5])[:, None, None]
    for where in (nullcontext, on_reference):
        with where():
            exact, tanh = (
                vlb_loss(out, data, x_t, t, SCHEDULE, variance_type="learned", cdf=cdf, reduction="none") for cdf in CDFS
            )
        assert exact.tolist() == [0, math.inf]
        torch.testing.assert_close(tanh, torch.tensor([0, -math.log2(1e-12)]))


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
    rows = vlb_rows(SCHEDULE, "epsilon", variance_type, False, "posterior", None, T.device, kind)
    out = output(variance_type, dtype=dtype).requires_grad_()
    for reduction, part in itertools.product((ops.NONE, ops.MEAN, ops.SUM), range(4)):
        others = (x_0, None, key, T, rows, False)
        hybrid = [autograd.Loss.apply(out, "hybrid_loss", way, (*others, 0.3, reduction)) for way in (True, False)]
        vlb = [autograd.Loss.apply(out, "vlb_loss", way, (*others, reduction))[0] for way in (True, False)]
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


def test_second_derivatives_in_half_precision_are_those_of_the_rounded_output():
    out, x_0 = output("learned_range", dtype=torch.bfloat16), data(*SHAPE)

    def second(dtype, name):
        leaf = out.to(dtype).requires_grad_()
        loss = vlb_loss(leaf, x_0, x_0, T, SCHEDULE, variance_type="learned_range")
        if name == "hybrid":
            loss = hybrid_loss(leaf, x_0, x_0, T, SCHEDULE, noise_key(1, 2, 4))["loss"]
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(grad.sum(), leaf)[0].double()

    for name in ("vlb", "hybrid"):
        exact = second(torch.float64, name)
        torch.testing.assert_close(second(torch.bfloat16, name), exact, rtol=2**-7, atol=float(exact.abs().max()) * 1e-4)
