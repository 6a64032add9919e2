# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The variational bound: its densities over their whole range, and the ops made of them."""

import math

import pytest
import torch
import triton
import triton.language as tl
from fastddpm.kernels import gaussian as kernel_gaussian
from helpers import LAYOUTS, spread, ulp, values
from interpreted import AT_BOUND, DTYPES, IMAGE, changed, key, noise_of, part, same, vlb_rows

from fastddpm import kernels, ops, reference
from fastddpm.reference import gaussian
from fastddpm.rows import MseRow, NoisingRow, VlbRow

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
"""Branches not taken overflow; their values are selected away."""

# ---- the densities, element by element ----


@triton.jit
def nll_kernel(out_ptr, difference_ptr, delta_ptr, precision, x_0_ptr, SIZE: tl.constexpr, TANH: tl.constexpr):
    i = tl.arange(0, SIZE)
    difference, delta, x_0 = tl.load(difference_ptr + i), tl.load(delta_ptr + i), tl.load(x_0_ptr + i)
    value, by_difference, by_delta = kernel_gaussian.nll(difference, delta, precision, x_0, TANH)
    tl.store(out_ptr + i, value)
    tl.store(out_ptr + SIZE + i, by_difference)
    tl.store(out_ptr + 2 * SIZE + i, by_delta)


@triton.jit
def kl_kernel(out_ptr, difference_ptr, delta_ptr, precision, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    value, by_difference, by_delta = kernel_gaussian.kl(tl.load(difference_ptr + i), tl.load(delta_ptr + i), precision)
    tl.store(out_ptr + i, value)
    tl.store(out_ptr + SIZE + i, by_difference)
    tl.store(out_ptr + 2 * SIZE + i, by_delta)


@triton.jit
def exponential_kernel(out_ptr, x_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    e, less_one, less_x = kernel_gaussian.exponential(tl.load(x_ptr + i))
    tl.store(out_ptr + i, e)
    tl.store(out_ptr + SIZE + i, less_one)
    tl.store(out_ptr + 2 * SIZE + i, less_x)


PRECISION = 18337.6  # 1 / beta~_2 of the linear schedule


def drawn(size, low, high):
    """difference, delta for log-variances in low .. high, x_0 with both open levels."""
    g = torch.Generator().manual_seed(0)
    log_variance = torch.rand(size, generator=g) * (high - low) + low
    difference = torch.randn(size, generator=g) * 10 ** (torch.rand(size, generator=g) * 4 - 4)
    x_0 = torch.rand(size, generator=g) * 2 - 1
    x_0[::7], x_0[3::7] = -1, 1
    difference[5] = 0
    return difference, log_variance + math.log(PRECISION), x_0


def double(*inputs):
    return [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]


RANGES = [(-30, 30), (-12, -8), (-4, 4), (20, 30), (-30, -20)]


@pytest.mark.parametrize("tanh", [False, True], ids=["exact", "tanh"])
@pytest.mark.parametrize("limits", RANGES, ids=str)
def test_nll(exact, limits, tanh):
    """To the rounding of the edges' places, which a steep log P magnifies, whatever the log-variance; always finite."""
    difference, delta, x_0 = drawn(1 << 14, *limits)
    out = torch.full((3, 1 << 14), torch.nan)
    nll_kernel[(1,)](out, difference, delta, PRECISION, x_0, SIZE=1 << 14, TANH=tanh)
    true = gaussian.nll(*double(difference, delta, torch.tensor(PRECISION), x_0), tanh)
    inverse = PRECISION**0.5 * torch.exp(-delta.double() / 2)
    place = 1 + (difference.abs() + 1 / 255) * inverse  # of an edge, in deviations
    floor = (true[0] - 27.631).abs() < 0.1  # which side of the floor is a matter of rounding
    scales = (place * (1 + (2 * true[0]).sqrt()), inverse * place, place**2)
    for got, wanted, scale in zip(out, true, scales, strict=True):
        assert got.isfinite().all()
        steep = 10 if tanh else 1  # dA/dx of the cubic
        assert bool(((got - wanted).abs() <= 1e-6 * steep * (wanted.abs() + scale) + 1e-30)[~(floor & tanh)].all())


@pytest.mark.parametrize("tanh", [False, True], ids=["exact", "tanh"])
def test_nll_of_deviations_wider_than_any(exact, tanh):
    """It stays what it is at e^80, with the slope of one that grows."""
    difference, delta, x_0 = drawn(1 << 14, 200, 60000)
    out = torch.full((3, 1 << 14), torch.nan)
    nll_kernel[(1,)](out, difference, delta, PRECISION, x_0, SIZE=1 << 14, TANH=tanh)
    inside, floor = x_0.abs() < 0.999, -math.log(1e-12)
    widest = 80 - math.log(2 / 255 * PRECISION**0.5 / math.sqrt(2 * math.pi))
    torch.testing.assert_close(out[0], torch.where(inside, floor if tanh else widest, math.log(2)))
    torch.testing.assert_close(out[2], torch.where(inside & (not tanh), 0.5, 0.0), rtol=1e-6, atol=1e-30)
    assert float(out[1].abs().max()) < 1e-30


@pytest.mark.parametrize("limits", RANGES, ids=str)
def test_kl(exact, limits):
    difference, delta, _ = drawn(1 << 14, *limits)
    out = torch.full((3, 1 << 14), torch.nan)
    kl_kernel[(1,)](out, difference, delta, PRECISION, SIZE=1 << 14)
    true = gaussian.kl(*double(difference, delta, torch.tensor(PRECISION)))
    assert bool(((out[0] - true[0]).abs() <= 1e-6 * true[0]).all()), "the value is a sum of terms >= 0"
    assert bool(((out[1] - true[1]).abs() <= 4e-7 * true[1].abs()).all())
    assert bool(((out[2] - true[2]).abs() <= 4e-7 * (true[0] + 1)).all())


def test_exponential(exact):
    x = torch.cat((torch.linspace(-80, 88, 8000), torch.logspace(-30, 0, 96), -torch.logspace(-30, 0, 96)))
    out = torch.full((3, 8192), torch.nan)
    exponential_kernel[(1,)](out, x, SIZE=8192)
    exact_x = x.double()
    e, expm1 = exact_x.exp(), torch.expm1(exact_x)
    series = exact_x**2 * (0.5 + exact_x / 6 + exact_x**2 / 24 + exact_x**3 / 120)
    less_x = torch.where(exact_x.abs() < 1e-3, series, expm1 - exact_x)
    for got, wanted in zip(out, (e, expm1, less_x), strict=True):
        assert ((got - wanted).abs() <= 6e-7 * wanted.abs() + 1e-38).all()
    ends = torch.tensor([-1e30, -89.0, -torch.inf, 89.0, 1e30, torch.inf, 88.5, torch.nan])
    out = torch.full((3, 8), torch.nan)
    exponential_kernel[(1,)](out, ends, SIZE=8)
    torch.testing.assert_close(out[0, :3], torch.full((3,), math.exp(-80)), rtol=1e-6, atol=0)
    assert torch.equal(out[1, :3], -torch.ones(3))
    assert (out[:2, 3:7] > 2e38).all() and out[:2, 3:7].isfinite().all() and out[:, 7].isnan().all()


# ---- the ops ----

FORMS = {
    "epsilon, fixed": ("epsilon", "fixed_small"),
    "epsilon, range": ("epsilon", "learned_range"),
    "v, large": ("v_prediction", "fixed_large"),
    "sample, learned": ("sample", "learned"),
    "previous, learned": ("previous", "learned"),
}


def bound_rows(form):
    rows = vlb_rows(*FORMS[form])
    return changed(VlbRow, rows, w=torch.linspace(0.5, 2, len(rows)))


def bound_inputs(form, shape, kind="key", dtype=torch.float32, layout="contiguous", tanh=False):
    """model_output, x_0, x_t, noise, t, rows, tanh_cdf; x_t is given where the noise isn't a key."""
    place = LAYOUTS[layout] if len(shape) == 4 else torch.clone
    rows, t = bound_rows(form), spread(shape[0])
    x_0 = place(values(*shape, seed=2).clamp(-1, 1).to(dtype))
    noise = noise_of(kind, shape)
    x_t = None if kind == "key" else reference.noising(x_0, noise_of("key", shape), t, part(NoisingRow, rows))
    out = values(shape[0], shape[1] * (1 + ("learned" in FORMS[form][1])), *shape[2:], dtype=dtype)
    return place(out), x_0, x_t, noise, t, rows, tanh


def close(got, wanted, exact):
    """flash-attention's rule: at most twice the eager formula's error, and an ulp of the greatest."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype and got.stride() == wanted.stride()
    nan = exact.isnan()
    assert torch.equal(got.isnan(), nan)
    error, plain, exact = (x[~nan] for x in ((got.double() - exact).abs(), (wanted.double() - exact).abs(), exact))
    if error.numel():
        assert bool((error <= 2 * plain.max() + 2 * ulp(exact, got.dtype) + 2e-7 * exact.abs().max()).all())


def check(name, *inputs):
    results = [getattr(k, name)(*i) for k, i in ((kernels, inputs), (reference, inputs), (reference, double(*inputs)))]
    for got, wanted, exact in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in results), strict=True):
        close(got, wanted, exact)


def check_all(inputs, reduction=ops.MEAN):
    batch = inputs[1].shape[0]
    upstream = torch.rand(batch if reduction == ops.NONE else ()) + 0.5
    check("vlb_loss", *inputs, reduction, True)
    check("vlb_loss_backward", *inputs, reduction, upstream)
    check("hybrid_loss", *inputs, 0.3, reduction, True)
    check("hybrid_loss_backward", *inputs, 0.3, reduction, upstream, None, upstream * 2)


SHAPES = ((3, 1), (3, 5), (2, 1030), (0, 5), (3, 0), (2, 2, 3, 4, 5))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
def test_bound_sizes(exact, shape, reduction):
    check_all(bound_inputs("epsilon, range", shape), reduction)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tanh", [False, True], ids=["exact", "tanh"])
def test_bound_forms(exact, form, tanh):
    check_all(bound_inputs(form, (3, 50), "tensor" if tanh else "key", tanh=tanh))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("form", ["epsilon, range", "v, large"])
def test_bound_dtypes(exact, form, dtype):
    check_all(bound_inputs(form, IMAGE, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["epsilon, range", "v, large"])
def test_bound_layouts(exact, form, layout):
    check_all(bound_inputs(form, IMAGE, layout=layout))


@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (2, 3, 9, 8), (1, 64, 3, 5), (1, 70, 2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["key", "tensor"])
def test_bound_channels_last(exact, shape, kind):
    inputs = bound_inputs("epsilon, range", shape, kind, layout="channels_last", tanh=True)
    check_all(inputs)
    check_all((inputs[0], inputs[1].contiguous(), *inputs[2:]))


def test_a_bound_without_noise(exact):
    out, x_0, _, _, t, rows, _ = bound_inputs("previous, learned", (3, 50))
    x_t = values(3, 50, seed=7)
    check_all((out, x_0, x_t, None, t, rows, False))


def test_each_upstream_gradient_of_the_hybrid(exact):
    inputs = (*bound_inputs("epsilon, range", (3, 50)), 0.3, ops.NONE)
    one, each = torch.tensor(2.0).expand(3), torch.rand(6)[::2]
    for grads in ((one, None, None), (None, each, None), (None, None, one), (each, one, each)):
        check("hybrid_loss_backward", *inputs, *grads)


def test_the_hybrid_s_mean_learns_from_the_mse_alone(exact):
    out, _, _, noise, t, rows, _ = inputs = bound_inputs("epsilon, range", (3, 50))
    one, rows = torch.tensor(1.0), part(MseRow, rows)
    grad = kernels.hybrid_loss_backward(*inputs, 7.0, ops.SUM, one, None, None)
    mse = kernels.mse_loss_backward(out[:, :50].contiguous(), noise, None, None, t, rows, ops.SUM, one)
    torch.testing.assert_close(grad[:, :50], mse, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
@pytest.mark.parametrize("next_t", [torch.tensor([3, 0, 999]), torch.tensor(7), None], ids=["each", "one", "none"])
def test_terms(exact, layout, next_t):
    inputs = bound_inputs("epsilon, range", IMAGE, layout=layout)
    following = (None if next_t is None else key(3, step=10), next_t)
    check("vlb_terms", *inputs, *following)
    got, wanted = (k.vlb_terms(*inputs, *following)[1] for k in (kernels, reference))
    same(got, wanted)


def test_terms_that_span_programs(exact):
    inputs = bound_inputs("epsilon, fixed", (2, 1030))
    check("vlb_terms", *inputs, values(2, 1030, seed=4), torch.tensor([1, 2]))


def test_a_t_out_of_range_poisons_its_sample_alone(exact):
    inputs = list(bound_inputs("epsilon, range", (4, 50)))
    bad, good = torch.tensor([5, -1, 1000, 0]), torch.tensor([5, 0, 0, 0])
    poisoned, ones = torch.tensor([False, True, True, False]), torch.ones(4)
    for name, after in (
        ("vlb_loss", (ops.NONE, True)),
        ("vlb_loss_backward", (ops.NONE, ones)),
        ("hybrid_loss", (0.3, ops.NONE, True)),
        ("hybrid_loss_backward", (0.3, ops.NONE, ones, None, None)),
    ):
        results = (getattr(kernels, name)(*inputs[:4], t, *inputs[5:], *after) for t in (bad, good))
        for got, wanted in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in results), strict=True):
            assert got[poisoned].isnan().all() and torch.equal(got[~poisoned], wanted[~poisoned])


def test_the_gradient_passes_at_the_bound_and_not_beyond(exact):
    """Where |x_0_hat before the clamp| is the bound itself, as where it is less: x_0_hat is the output here."""
    rows = changed(VlbRow, vlb_rows("sample", "fixed_small"), bound=torch.full((1000,), 0.5))
    x_0, t = torch.zeros(1, 5), torch.tensor([5])
    grad = kernels.vlb_loss_backward(AT_BOUND, x_0, x_0, None, t, rows, False, ops.SUM, torch.tensor(1.0))
    assert (grad != 0).tolist() == [[False, True, True, True, False]]


def test_a_bound_without_its_gradient_is_the_same():
    inputs = bound_inputs("epsilon, range", (3, 50), dtype=torch.bfloat16)
    for name, after in (("vlb_loss", ()), ("hybrid_loss", (0.3,))):
        (*losses, grad), (*again, _) = (getattr(kernels, name)(*inputs, *after, ops.NONE, wanted) for wanted in (False, True))
        assert all(map(torch.equal, losses, again)) and grad.shape == (0,) and grad.dtype == torch.bfloat16


def test_a_bound_has_the_same_bits_in_any_batch():
    """Of so many samples that their cut would be coarser than one's, did it depend on them (2^20 elements)."""
    out, x_0, x_t, _, t, *form = bound_inputs("v, large", (64, 16_400), "none")

    def of(part):
        return kernels.vlb_loss(out[part], x_0[part], x_t[part], None, t[part], *form, ops.NONE, False)[0]

    whole = of(slice(None))
    assert torch.equal(whole[[0, 63]], torch.cat((of(slice(0, 1)), of(slice(63, 64)))))
