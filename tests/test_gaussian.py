"""The densities of the bound: against mpmath, in both tails."""

import math

import mpmath
import pytest
import torch
from helpers import INSTRUCTION_SETS, NOT_BUILT, on_reference, values, wide
from vlb_inputs import ARITHMETIC, SCHEDULE, data

from fastddpm import autograd, ops, vlb_loss
from fastddpm.reference import gaussian
from fastddpm.rows import VlbRow, pack


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


def row_of(**columns):
    """A table of one row, in float64: 0 but for these columns."""
    return pack(VlbRow(**{name: torch.full((1,), columns.get(name, 0.0), **wide) for name in VlbRow._fields}))


@pytest.mark.skipif(not INSTRUCTION_SETS, reason=NOT_BUILT)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_kernels_excess_of_a_wrong_variance(sign, digits):
    """The KL of two normals of one mean, in float64, and its slope: to the last digits from 1e-15 to the ends of exp."""
    delta = sign * torch.tensor(
        [*(10.0**n for n in range(-15, 3)), 0.3, 0.34, 0.35, 0.49, 0.69, 1.04, 2.0, 30.0, 350.0, 700.0], **wide
    )
    output = torch.stack((torch.zeros_like(delta), delta), 1)[:, :, None].requires_grad_()
    x, rows = torch.zeros(len(delta), 1, 1, **wide), torch.cat((row_of(), row_of(v_1=1.0, precision=1.0, bound=1.0)))
    loss = autograd.vlb_loss(output, x, x, None, torch.ones(1, dtype=torch.int64), rows, False, ops.NONE)
    (slopes,) = torch.autograd.grad(loss.sum(), output)
    for got, slope, d in zip(loss.detach(), slopes[:, 1, 0], delta, strict=True):
        near(got * math.log(2), (mp(d) + mpmath.expm1(-mp(d))) / 2, 4e-15, 0)
        near(slope * math.log(2), -mpmath.expm1(-mp(d)) / 2, 4e-15, 0)


@pytest.mark.skipif(not INSTRUCTION_SETS, reason=NOT_BUILT)
@pytest.mark.parametrize("x_0", [-1.0, 0.1, 1.0])
def test_the_kernels_densities_keep_thirteen_digits(x_0, digits):
    """In float64, of a network whose output is the mean and the log-variance: narrow bins, tails and the middle."""
    row = row_of(e_0=1.0, e_o=-1.0, v_1=1.0, precision=1.0, bound=math.inf)
    places = [(y, w) for y in (*OFFSETS, *(-y for y in OFFSETS), 1e-9, 100.0, 1e4) for w in (1e-5, 0.009, 0.02, 0.3, 1.2, 30.0)]
    y, w = torch.tensor(places, **wide).T
    x = torch.full((len(y), 1, 1), x_0, **wide)
    output = torch.stack((x[:, 0, 0] - y / w / 255, -2 * (255 * w).log()), 1)[:, :, None].requires_grad_()
    first = torch.zeros(1, dtype=torch.int64)
    loss = autograd.vlb_loss(output, x, x, None, first, row, False, ops.NONE)
    (slopes,) = torch.autograd.grad(loss.sum(), output)
    for value, (mean, log_variance), slope in zip(loss, output.detach()[..., 0], slopes[..., 0], strict=True):
        inverse = mpmath.exp(-mp(log_variance) / 2)
        y, w = (mp(x_0) - mp(mean)) * inverse, mp(1 / 255) * inverse
        if abs(x_0) == 1:
            log_p, by_s = true_log_tail(w - x_0 * y)
            by_y, by_w = -x_0 * by_s, by_s
        else:
            log_p, by_y, by_w = true_log_bin(y, w)
        by_variance = abs(y * by_y) + abs(w * by_w)  # the sizes of its two terms
        truth = ((value, -log_p, 0), (slope[0], by_y * inverse, 0), (slope[1], (y * by_y + w * by_w) / 2, by_variance))
        for got, true, size in truth:
            near(got.detach() * math.log(2), true, 1e-13, 1e-13 * max(size, 1e-3))
