"""Noising and the reverse step: the reference's bits, but for the exponential of a learned variance."""

import pytest
import torch
from helpers import LAYOUTS, same_bits, spread, ulp, values
from interpreted import AT_BOUND, DTYPES, IMAGE, NOISES, ON_CPU, SCHEDULE, SIZES, changed, key, noise_of, rows_q, same

from fastddpm import coefficients, kernels, ops, reference, samplers
from fastddpm.rows import StepRow

# ---- noising ----


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("kind", NOISES)
def test_noising_sizes(exact, shape, kind):
    inputs = (values(*shape), noise_of(kind, shape), spread(shape[0]), rows_q())
    same(kernels.noising(*inputs), reference.noising(*inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noising_dtypes_and_layouts(exact, dtype, kind, layout):
    inputs = (LAYOUTS[layout](values(*IMAGE, dtype=dtype)), noise_of(kind, IMAGE), spread(3), rows_q())
    same(kernels.noising(*inputs), reference.noising(*inputs))


@pytest.mark.parametrize("place, count", [("contiguous", 1000), ("channels_last", 3), ("every_second", 1)])
def test_uniform_timesteps_of_noising(exact, place, count):
    """In one sample of several programs, and in three of one."""
    for shape in ((1, 4097), IMAGE):
        x = LAYOUTS[place](values(*shape)) if len(shape) == 4 else values(*shape)
        inputs = (x, key(len(x)), rows_q()[:count])
        for got, wanted in zip(kernels.noising_uniform(*inputs), reference.noising_uniform(*inputs), strict=True):
            same(got, wanted)


def test_noising_an_expanded_tensor(exact):
    x = values(1, 4, 1, 6).expand(IMAGE)
    same(kernels.noising(x, key(3), spread(3), rows_q()), reference.noising(x, key(3), spread(3), rows_q()))


T_FORMS = {
    "int64": spread(3),
    "int32": spread(3).int(),
    "strided": spread(6)[::2],
    "one": torch.tensor(7),
    "one in a row": torch.tensor([7]),
    "expanded": torch.tensor(7).expand(3),
}


@pytest.mark.parametrize("form", T_FORMS)
def test_forms_of_t(exact, form):
    inputs = (values(3, 10), key(3), T_FORMS[form], rows_q())
    same(kernels.noising(*inputs), reference.noising(*inputs))


def test_a_t_out_of_range_poisons_its_sample_alone(exact):
    bad, good = torch.tensor([-1, 5, 1000, 2**40, -(2**62), 999]), torch.tensor([0, 5, 0, 0, 0, 999])
    poisoned = torch.tensor([True, False, True, True, True, False])

    def check(got, wanted):
        assert got[poisoned].isnan().all() and same_bits(got[~poisoned], wanted[~poisoned])

    x, out, noise = values(6, 50), values(6, 50, seed=1), key(6)
    check(kernels.noising(x, noise, bad, rows_q()), reference.noising(x, noise, good, rows_q()))
    mse = coefficients.mse_rows(SCHEDULE, "epsilon", None, *ON_CPU)
    loss, _ = kernels.mse_loss(out, noise, None, None, bad, mse, ops.NONE, False)
    assert torch.equal(loss.isnan(), poisoned)
    ones = torch.ones(6)
    check(*(k.mse_loss_backward(out, noise, None, None, t, mse, ops.NONE, ones)
            for k, t in ((kernels, bad), (reference, good))))  # fmt: skip
    rows = samplers.ddpm(SCHEDULE).on(*ON_CPU)
    for got, wanted in zip(kernels.reverse_step(out, x, noise, bad, rows, True),
                           reference.reverse_step(out, x, noise, good, rows, True), strict=True):  # fmt: skip
        check(got, wanted)
    for got, wanted in zip(kernels.reverse_step_backward(x, None, out, x, None, bad, rows),
                           reference.reverse_step_backward(x, None, out, x, None, good, rows), strict=True):  # fmt: skip
        check(got, wanted)


def test_a_nan_stays_in_its_sample():
    x = values(3, 50)
    x[1, 7] = torch.nan
    out = kernels.noising(x, key(3), spread(3), rows_q())
    assert out.isnan().sum() == 1 and out[1, 7].isnan()
    rows = samplers.ddpm(SCHEDULE).on(*ON_CPU)
    x_prev, x_0 = kernels.reverse_step(values(3, 50), x, key(3), spread(3), rows, True)
    assert x_prev.isnan().sum() == 1 and x_0[1, 7].isnan()


# ---- reverse ----


def table(variance_type="fixed_small"):
    rows = samplers.ddpm(SCHEDULE, variance_type=variance_type).on(*ON_CPU)
    return changed(StepRow, rows, k_o=torch.linspace(-1, 1, len(rows)))  # a sampler that uses the output directly as well


def reverse_inputs(shape, kind, dtype=torch.float32, layout="contiguous", learned=False):
    place = LAYOUTS[layout] if len(shape) == 4 else torch.clone
    out = values(shape[0], shape[1] * (1 + learned), *shape[2:], dtype=dtype)
    rows = table("learned_range" if learned else "fixed_small")
    return place(out), place(values(*shape, seed=1)), noise_of(kind, shape), spread(shape[0]), rows


def check_reverse(inputs):
    for wanted_x_0 in (True, False):
        for got, wanted in zip(*(k.reverse_step(*inputs, wanted_x_0) for k in (kernels, reference)), strict=True):
            same(got, wanted)


def check_reverse_backward(inputs):
    g, h = values(*inputs[1].shape, seed=8), values(*inputs[1].shape, seed=9)
    twisted = h.transpose(-1, -2).contiguous().transpose(-1, -2)
    for grads in ((g, None), (None, h), (g, h), (g.expand_as(h), twisted)):
        for got, wanted in zip(*(k.reverse_step_backward(*grads, *inputs) for k in (kernels, reference)), strict=True):
            same(got, wanted)


@pytest.mark.parametrize("shape", [s for s in SIZES if len(s) > 1], ids=str)
@pytest.mark.parametrize("kind", NOISES)
def test_reverse_sizes(exact, shape, kind):
    check_reverse(reverse_inputs(shape, kind))
    if kind == "none":
        check_reverse_backward(reverse_inputs(shape, kind))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reverse_dtypes_and_layouts(exact, layout, dtype):
    inputs = reverse_inputs(IMAGE, "key", dtype, layout)
    check_reverse(inputs)
    check_reverse_backward(inputs)


def test_reverse_where_output_and_sample_lie_differently(exact):
    out, x, noise, index, rows = reverse_inputs(IMAGE, "key")
    for a, b in (("channels_last", "contiguous"), ("contiguous", "channels_last"), ("batch_last", "every_second")):
        inputs = (LAYOUTS[a](out), LAYOUTS[b](x), noise, index, rows)
        check_reverse(inputs)
        check_reverse_backward(inputs)


def test_no_noise_where_sigma_is_zero_even_of_an_infinite_tensor(exact):
    out, x, _, _, rows = reverse_inputs((2, 9), "none")
    noise = torch.full((2, 9), torch.inf)
    got, _ = kernels.reverse_step(out, x, noise, torch.zeros(2, dtype=torch.int64), rows, False)
    assert got.isfinite().all()


def test_the_gradient_passes_at_the_bound_and_not_beyond(exact):
    rows = samplers.StepRows(torch.zeros(1, dtype=torch.int64), p_o=1.0, bound=0.5, k_0=1.0).on(*ON_CPU)
    inputs = (AT_BOUND, torch.zeros(1, 5), None, torch.zeros(1, dtype=torch.int64), rows)
    grad, _ = kernels.reverse_step_backward(torch.ones(1, 5), None, *inputs)
    assert grad.tolist() == [[0, 1, 1, 1, 0]]
    check_reverse_backward(inputs)


# ---- a learned variance ----


def check_learned(inputs):
    """The reference's bits but for the deviation, whose exponential rounds otherwise."""
    _, x, noise, _, _ = inputs
    g, h = values(*x.shape, seed=8), values(*x.shape, seed=9)
    runs = (lambda k, i: k.reverse_step(*i, True), lambda k, i: k.reverse_step_backward(g, h, *i))
    for run in runs:
        double = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in inputs]
        for got, wanted, true in zip(run(kernels, inputs), run(reference, inputs), run(reference, double), strict=True):
            assert got.stride() == wanted.stride() and got.dtype == wanted.dtype
            error, allowed = (got.double() - true).abs(), 2 * (wanted.double() - true).abs().max() + ulp(true, got.dtype)
            assert bool((error <= allowed).all())
    if noise is None:
        assert not kernels.reverse_step_backward(g, h, *inputs)[0][:, x.shape[1] :].any()
    same(kernels.reverse_step(*inputs, True)[1], reference.reverse_step(*inputs, True)[1])


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (2, 1030), (2, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", NOISES)
def test_learned_sizes(exact, shape, kind):
    check_learned(reverse_inputs(shape, kind, learned=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_learned_dtypes_and_layouts(exact, layout, dtype):
    check_learned(reverse_inputs(IMAGE, "key", dtype, layout, learned=True))


@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (2, 3, 9, 8), (1, 64, 3, 5), (1, 70, 2, 3)], ids=str)
@pytest.mark.parametrize("kind", NOISES)
def test_learned_channels_last(exact, shape, kind):
    check_learned(reverse_inputs(shape, kind, layout="channels_last", learned=True))
    out, x, *rest = reverse_inputs(shape, kind, learned=True)
    check_learned((LAYOUTS["channels_last"](out), x, *rest))


def test_an_empty_learned_step():
    for shape in ((0, 5), (2, 0)):
        x, rows = values(*shape), table("learned")
        inputs = (values(shape[0], 2 * shape[1]), x, key(shape[0]), spread(shape[0]), rows)
        assert kernels.reverse_step(*inputs, True)[0].shape == x.shape
        assert [g.shape for g in kernels.reverse_step_backward(x, None, *inputs)] == [inputs[0].shape, x.shape]
