"""The bound's functions are right, and what each argument does."""

import itertools
import math

import plain
import pytest
import torch
from helpers import DTYPES, LAYOUTS, assert_right, on_reference, poisoned, same_bits, values, wide
from vlb_inputs import SCHEDULE, SHAPE, T, data, output

from fastddpm import (
    NoiseSchedule,
    hybrid_loss,
    mse_loss,
    noise_key,
    ops,
    prior_kl,
    q_sample,
    randn,
    vlb_loss,
)
from fastddpm.coefficients import vlb_rows
from fastddpm.schedule import PREDICTION_TYPES, VARIANCE_TYPES
from fastddpm.vlb import CDFS


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
        rows = vlb_rows(SCHEDULE, *case, "posterior", None, T.device, torch.float32)
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
