"""Gradients are right: gradcheck in float64 on the ops themselves, autograd through the plain formula in float32, reductions,
upstream gradients and loss scaling. What loops do between a forward and its backward is in test_backward.py."""

import itertools

import plain
import pytest
import torch
from helpers import DTYPES, FLOATS, LAYOUTS, assert_right, every_column, leaf, poisoned, spread, values, wide
from torch.autograd import gradcheck, gradgradcheck

from fastddpm import NoiseSchedule, autograd, mse_loss, noise_key, q_sample, q_step, randn, reverse_step, samplers
from fastddpm.coefficients import mse_rows
from fastddpm.functional import REDUCTIONS
from fastddpm.schedule import PREDICTION_TYPES

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (3, 2, 3, 3)


# ---- gradcheck ----


@pytest.mark.parametrize("function", [q_sample, q_step])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
def test_gradcheck_noising(function, layout):
    x, t, key = leaf(*SHAPE, **wide), spread(3), noise_key(1, 2, 3)
    assert gradcheck(lambda x: function(LAYOUTS[layout](x), t, SCHEDULE, key), x)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_gradcheck_mse_loss(prediction_type, reduction):
    out, x_0, t, key = leaf(*SHAPE, **wide), values(*SHAPE, seed=1, **wide), spread(3), noise_key(1, 2, 3)
    weight = None if prediction_type == "previous" else "min_snr"
    kwargs = {"x_0": x_0, "prediction_type": prediction_type, "weight": weight, "reduction": reduction}
    assert gradcheck(lambda out: mse_loss(out, t, SCHEDULE, key, **kwargs), out)


@pytest.mark.parametrize("with_grad", [True, False], ids=["in_forward", "in_backward"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
def test_gradcheck_both_ways_to_a_loss_gradient(with_grad, layout):
    """One is eager float32's, the other a compiler's and float16's."""
    out, x_0, t, key = leaf(*SHAPE, **wide), values(*SHAPE, seed=1, **wide), spread(3), noise_key(1, 2, 3)
    others = (key, x_0, None, t, mse_rows(SCHEDULE, "v_prediction", "min_snr", t.device, torch.float64))
    for reduction in range(3):
        assert gradcheck(
            lambda x, r=reduction: autograd.Loss.apply(LAYOUTS[layout](x), "mse_loss", with_grad, (*others, r)), out
        )


@pytest.mark.parametrize(
    "device, dtype, early",
    [
        ("cpu", torch.float32, True), ("cpu", torch.bfloat16, False), ("cpu", torch.float16, False),
        ("meta", torch.float32, True), ("meta", torch.bfloat16, True), ("meta", torch.float16, False),
    ],
)  # fmt: skip
def test_where_a_gradient_is_made_with_its_loss(monkeypatch, device, dtype, early):
    """By dtype, on a CPU and elsewhere, for which the device without memory stands."""
    asked = []
    monkeypatch.setattr(autograd, "_apply", lambda out, name, with_grad, others: asked.append(with_grad) or (out,))
    out, t, rows = torch.empty(2, 3, device=device, dtype=dtype, requires_grad=True), spread(2), torch.empty(9, 4)
    autograd.mse_loss(out, None, None, None, t, rows, 0)
    assert asked == [early]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("wanted", ["x_prev", "x_0", "both"])
def test_gradcheck_reverse_step(prediction_type, clip, wanted):
    """No value of x_0_hat lies within the finite difference of the clamp."""
    out, x, t, key = leaf(*SHAPE, **wide), leaf(*SHAPE, seed=1, **wide), torch.tensor([0, 200, 400]), noise_key(1, 2, 3)
    rows = plain.ddpm_rows(SCHEDULE, prediction_type, "fixed_small", clip)
    chosen = {"x_prev": slice(0, 1), "x_0": slice(1, 2), "both": slice(0, 2)}[wanted]
    assert gradcheck(lambda out, x: reverse_step(out, x, t, rows, key)[chosen], (out, x))


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
@pytest.mark.parametrize("noise", ["key", "tensor", "none"])
def test_gradcheck_reverse_step_with_a_learned_variance(variance_type, noise):
    """The variance's channels too: nothing at the last step, which adds no noise."""
    out, x, t = leaf(3, 4, 3, 3, **wide), leaf(*SHAPE, seed=1, **wide), torch.tensor([0, 200, 400])
    rows, z = samplers.ddpm(SCHEDULE, "v_prediction", variance_type), values(*SHAPE, seed=2, **wide)
    z = {"key": noise_key(1, 2, 3), "tensor": z, "none": "none"}[noise]
    assert gradcheck(lambda out, x: reverse_step(out, x, t, rows, z), (out, x))
    (grad,) = torch.autograd.grad(reverse_step(out, x, t, rows, z)[0].sum(), out)
    assert not grad[0, 2:].any() and bool(grad[1:, 2:].any()) == (noise != "none")


OPTIONS = {
    "guided by the rows": (4, {}),
    "guided": (4, {"guidance": torch.tensor([0.0, 1.5, 4.0], dtype=torch.float64)}),
    "of its own bound": (4, {"bound": torch.tensor([0.4, 1.1, 3.0], dtype=torch.float64)}),
    "with history": (7, {"guidance": 3.0}),
    "kept": (4, {"return_kept": True}),
}
"""How many of out, x, u and the history are leaves; and what else is given."""


def step_with(options, variance_type="fixed_small"):
    """A step as a function of out, x, u and what else the rows' history needs; row 0's is not read."""
    count, given = OPTIONS[options]
    rows = every_column(8, variance_type, **({} if count == 7 else {"k_h1": 0.0, "k_h2": 0.0, "k_h3": 0.0}))
    t, key = torch.tensor([0, 3, 7]), noise_key(1, 2, 3)

    def step(out, x, u, *history):
        return reverse_step(out, x, t, rows, key, uncond_output=u, history=history[: rows.history], **given)

    channels = (4 if variance_type == "learned" else 2, 2)
    return step, [leaf(3, channels[n in (1, 3, 4, 5)], 3, seed=n, **wide) for n in range(6 if count == 7 else 3)]


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned"])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_reverse_step_with_options(options, variance_type):
    """No value of x_0_hat lies within the finite difference of the clamp."""
    step, inputs = step_with(options, variance_type)
    assert gradcheck(step, inputs)
    assert gradgradcheck(step, inputs)


def test_gradcheck_two_steps_in_a_row():
    """The second one's history is what the first kept, and the first one's is not read."""
    t, rows, key = torch.full((3,), 5), every_column(8, k_h2=0.0, k_h3=0.0), noise_key(1, 2, 3)

    def steps(out, x, u, h):
        x, _, kept = reverse_step(out, x, t, rows, key, uncond_output=u, history=[h], return_kept=True)
        return reverse_step(x.tanh(), x, t - 1, rows, key, uncond_output=u, history=[kept], return_kept=True)

    assert gradcheck(steps, [leaf(3, 2, 3, seed=n, **wide) for n in range(4)])


def test_the_gradient_of_a_history_of_another_dtype_is_of_that_dtype():
    rows, x = every_column(8, k_h2=0.0, k_h3=0.0), leaf(3, 5).bfloat16()
    for dtype in FLOATS:
        h = leaf(3, 5, dtype=dtype, seed=1)
        x_prev, _ = reverse_step(x, x, 5, rows, "none", history=[h])
        (grad,) = torch.autograd.grad(x_prev.sum(), h)
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, torch.full_like(h, float(rows.columns.k_h1[5])))


@pytest.mark.parametrize("which", ["out", "x_t"])
def test_gradcheck_reverse_step_in_one_input(which):
    out, x, t, key = values(*SHAPE, **wide), values(*SHAPE, seed=1, **wide), spread(3), noise_key(1, 2, 3)
    rows = samplers.ddpm(SCHEDULE)
    variable = (out if which == "out" else x).requires_grad_()
    assert gradcheck(lambda _: reverse_step(out, x, t, rows, key, return_x_0=False)[0], variable)


# ---- against autograd through the plain formula ----


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("function", [q_sample, q_step])
def test_noising_gradient_is_the_plain_formulas(function, dtype):
    shape, t, key = (5, 3, 7, 5), spread(5), noise_key(1, 2, 5)
    upstream, z = values(*shape, dtype=dtype, seed=3), randn(key, shape)
    formula = getattr(plain, function.__name__)

    def gradient_of(call, d):
        x = leaf(*shape, dtype=dtype).detach().to(d).requires_grad_()
        return torch.autograd.grad(call(x, d), x, upstream.to(d))[0]

    with poisoned():
        got = gradient_of(lambda x, d: function(x, t, SCHEDULE, key), dtype)
    exact, eager = (gradient_of(lambda x, d: formula(x, t, SCHEDULE, z, d), d) for d in (torch.float64, dtype))
    assert got.dtype == dtype
    assert_right(got, exact, eager)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("prediction_type", "clip"), list(itertools.product(PREDICTION_TYPES, (None, 0.6))))
def test_reverse_gradient_is_the_plain_formulas(prediction_type, clip, dtype):
    """Both outputs at once. Where rounding decides whether the clamp is on, the two sides may differ: left out."""
    shape, t, key = (4, 3, 7, 5), torch.tensor([0, 10, 300, 500]), noise_key(1, 2, 4)
    rows = plain.ddpm_rows(SCHEDULE, prediction_type, "fixed_large", clip)
    upstream = [values(*shape, dtype=dtype, seed=s) for s in (3, 4)]
    out, x = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    edge = (plain.x_0_hat(out, x, t, SCHEDULE, prediction_type, torch.float64).abs() - (clip or torch.inf)).abs() < 0.1

    def gradients_of(call, d):
        inputs = [v.detach().to(d).requires_grad_() for v in (out, x)]
        return torch.autograd.grad(call(*inputs, d), inputs, [u.to(d) for u in upstream])

    def formula(o, x, d):
        return plain.reverse_step(o, x, t, SCHEDULE, randn(key, shape), prediction_type, "fixed_large", clip, d)

    with poisoned():
        got = gradients_of(lambda o, x, d: reverse_step(o, x, t, rows, key), dtype)
    for mine, exact, eager in zip(got, gradients_of(formula, torch.float64), gradients_of(formula, dtype), strict=True):
        assert mine.dtype == dtype
        assert_right(mine[~edge], exact[~edge], eager[~edge])


def test_the_clamp_lets_gradients_through_up_to_its_bound():
    """As torch.clamp: at the bound too, not beyond it, and through a NaN."""
    out = torch.tensor([[-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, torch.nan]], requires_grad=True)
    _, x_0 = reverse_step(out, torch.zeros(1, 7), 5, samplers.ddpm(SCHEDULE, "sample"), "none")
    x_0.sum().backward()
    same = out.detach().clone().requires_grad_()
    same.clamp(-1, 1).sum().backward()
    assert torch.equal(out.grad[:, :6], same.grad[:, :6]) and out.grad[0].tolist()[:6] == [0, 1, 1, 1, 1, 0]


# ---- upstream gradients and reductions ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reductions_scale_the_gradient_as_torch_does(dtype):
    out, t, key = leaf(8, 3, 5, dtype=dtype), spread(8), noise_key(1, 2, 8)
    by_hand = {"mean": torch.mean, "sum": torch.sum}
    for reduction, reduce in by_hand.items():
        got = torch.autograd.grad(3 * mse_loss(out, t, SCHEDULE, key, reduction=reduction), out)[0]
        none = mse_loss(out, t, SCHEDULE, key, reduction="none")
        expected = torch.autograd.grad(3 * reduce(none), out)[0]
        torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0, 65536.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
def test_the_upstream_gradient_scales_the_gradient(upstream, layout):
    out, t, key = LAYOUTS[layout](values(3, 2, 4, 4)).requires_grad_(), spread(3), noise_key(1, 2, 3)
    one = torch.autograd.grad(mse_loss(out, t, SCHEDULE, key), out)[0]
    scaled = torch.autograd.grad(mse_loss(out, t, SCHEDULE, key), out, torch.tensor(upstream))[0]
    torch.testing.assert_close(scaled, upstream * one, rtol=1e-6, atol=0)


def test_an_upstream_gradient_of_its_own_for_each_sample():
    out, t, key = leaf(6, 4099), spread(6), noise_key(1, 2, 6)
    upstream = torch.tensor([1.0, 0.0, -3.0, 1.0, 0.5, 2.0])
    one = torch.autograd.grad(mse_loss(out, t, SCHEDULE, key, reduction="none"), out, torch.ones(6))[0]
    for given in (upstream, upstream.repeat_interleave(2)[::2], torch.full((1,), 0.25).expand(6)):
        got = torch.autograd.grad(mse_loss(out, t, SCHEDULE, key, reduction="none"), out, given)[0]
        torch.testing.assert_close(got, given[:, None] * one, rtol=1e-6, atol=0)


def test_float16_gradients_do_not_underflow_before_the_loss_scale():
    """Of a mean over half a million elements every gradient is below float16's least; with a loss scale of 65536 none is."""
    shape, t, key = (8, 65536), spread(8), noise_key(1, 2, 8)
    out = leaf(*shape, dtype=torch.float16)
    (65536 * mse_loss(out, t, SCHEDULE, key)).backward()
    exact = 65536 * 2 * (out.detach().double() - randn(key, shape).double()) / (8 * 65536)
    assert_right(out.grad, exact, exact.half())
    assert float((out.grad == 0).double().mean()) < 1e-4
