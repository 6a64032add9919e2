"""Noising and the reverse step: the reference's bits, but for the exponential of a learned variance."""

import pytest
import torch
from helpers import LAYOUTS, assert_unread, same_bits, spread, ulp, values
from interpreted import (
    AT_BOUND,
    DTYPES,
    IMAGE,
    NO_OPTIONS,
    NOISES,
    ON_CPU,
    SCHEDULE,
    SIZES,
    changed,
    key,
    noise_of,
    rows_q,
    same,
)

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
    each = torch.ones(6)
    for own in (NO_OPTIONS, (x, each, each)):
        options = (rows, True, *own, None, True)
        for got, wanted in zip(kernels.reverse_step(out, x, noise, bad, *options),
                               reference.reverse_step(out, x, noise, good, *options), strict=True):  # fmt: skip
            check(got, wanted)
    for got, wanted in zip(kernels.reverse_step_backward(x, None, out, x, None, bad, rows)[:2],
                           reference.reverse_step_backward(x, None, out, x, None, good, rows)[:2],
                           strict=True):  # fmt: skip
        check(got, wanted)


def test_a_nan_stays_in_its_sample():
    x = values(3, 50)
    x[1, 7] = torch.nan
    out = kernels.noising(x, key(3), spread(3), rows_q())
    assert out.isnan().sum() == 1 and out[1, 7].isnan()
    rows = samplers.ddpm(SCHEDULE).on(*ON_CPU)
    x_prev, x_0, _ = kernels.reverse_step(values(3, 50), x, key(3), spread(3), rows, True)
    assert x_prev.isnan().sum() == 1 and x_0[1, 7].isnan()


# ---- reverse ----


def test_an_operand_whose_coefficients_are_0_may_hold_anything():
    assert_unread(kernels)


OTHERS = ["k_h1", "k_h2", "k_h3", "g", "c_x", "c_0"]


def table(variance_type="fixed_small"):
    """A sampler that has every column; its row 0 reads no history."""
    rows = samplers.ddpm(SCHEDULE, variance_type=variance_type).on(*ON_CPU)
    others = {name: (n + 1) * torch.linspace(0, 0.5, len(rows)) for n, name in enumerate(OTHERS)}
    return changed(StepRow, rows, k_o=torch.linspace(-1, 1, len(rows)), **others)


def reverse_inputs(shape, kind, dtype=torch.float32, layout="contiguous", learned=False, options=""):
    place = LAYOUTS[layout] if len(shape) == 4 else torch.clone
    out, u = (values(shape[0], shape[1] * (1 + learned), *shape[2:], dtype=dtype, seed=n) for n in (0, 3))
    rows = table("learned_range" if learned else "fixed_small")
    guidance, bound = (torch.linspace(a, b, shape[0]) for a, b in ((0.5, 4), (0.3, 2)))
    inputs = place(out), place(values(*shape, seed=1)), noise_of(kind, shape), spread(shape[0]), rows
    own = (("u", place(u)), ("guidance", guidance), ("bound", bound))
    return *inputs, *(x if name in options else None for name, x in own)


def step(k, inputs, history=None, return_x_0=True, return_kept=False):
    return k.reverse_step(*inputs[:5], return_x_0, *inputs[5:], history, return_kept)


def check_reverse(inputs, history=None, returned=((True, False), (False, False))):
    for each in returned:
        for got, wanted in zip(*(step(k, inputs, history, *each) for k in (kernels, reference)), strict=True):
            same(got, wanted)


def check_reverse_backward(inputs, kept=False):
    g, h, m = (values(*inputs[1].shape, seed=n) for n in (8, 9, 10))
    twisted = h.transpose(-1, -2).contiguous().transpose(-1, -2)
    plain = ((g, None, None), (None, h, None), (g, h, None), (g.expand_as(h), twisted, None))
    for *grads, last in ((None, None, m), (g, twisted, m)) if kept else plain:
        for got, wanted in zip(*(k.reverse_step_backward(*grads, *inputs, last) for k in (kernels, reference)), strict=True):
            same(got, wanted)


OPTIONS = ("u", "u guidance", "bound", "u guidance bound")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_samples_own_guidance_and_bound(exact, options, dtype):
    inputs = reverse_inputs(IMAGE, "key", dtype, options=options)
    check_reverse(inputs, returned=[(True, True)])
    check_reverse_backward(inputs, kept=True)


def test_one_guidance_and_one_bound_for_all(exact):
    *inputs, _, _ = reverse_inputs((3, 9), "none", options="u")
    for own in (torch.tensor(2.5), torch.full((3,), 2.5), torch.tensor(2.5).expand(3)):
        check_reverse((*inputs, own, own / 3), returned=[(True, False)])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_earlier_steps_kept(exact, count):
    """Of any dtype and layout, and anything at all where no coefficient reads it: row 0 is the first sample's."""
    history = [LAYOUTS[layout](values(*IMAGE, dtype=dtype, seed=20))
               for layout, dtype in zip(("contiguous", "channels_last", "every_second"), DTYPES, strict=True)]  # fmt: skip
    for h in history:
        h[0] = torch.nan
    inputs = reverse_inputs(IMAGE, "tensor")
    assert int(inputs[3][0]) == 0
    check_reverse(inputs, history[:count], [(False, True)])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_option_at_once(exact, layout):
    inputs = reverse_inputs(IMAGE, "key", layout=layout, options="u guidance bound")
    check_reverse(inputs, [inputs[1], inputs[0], inputs[1]], [(True, True)])
    check_reverse_backward(inputs, kept=True)


def test_the_halves_of_a_stacked_output(exact):
    out, x, noise, index, rows, _, guidance, bound = reverse_inputs(IMAGE, "key", options="guidance bound")
    for place in ("contiguous", "channels_last"):
        out, u = LAYOUTS[place](values(6, *IMAGE[1:])).chunk(2)
        check_reverse((out, LAYOUTS[place](x), noise, index, rows, u, guidance, bound))


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
    out, x, noise, index, rows, *_ = reverse_inputs(IMAGE, "key")
    for a, b in (("channels_last", "contiguous"), ("contiguous", "channels_last"), ("batch_last", "every_second")):
        inputs = (LAYOUTS[a](out), LAYOUTS[b](x), noise, index, rows, *NO_OPTIONS)
        check_reverse(inputs)
        check_reverse_backward(inputs)


def test_no_noise_where_sigma_is_zero_even_of_an_infinite_tensor(exact):
    out, x, _, _, rows, *_ = reverse_inputs((2, 9), "none")
    noise = torch.full((2, 9), torch.inf)
    got, *_ = kernels.reverse_step(out, x, noise, torch.zeros(2, dtype=torch.int64), rows, False)
    assert got.isfinite().all()


def test_the_gradient_passes_at_the_bound_and_not_beyond(exact):
    rows = samplers.StepRows(torch.zeros(1, dtype=torch.int64), p_o=1.0, bound=0.5, k_0=1.0).on(*ON_CPU)
    inputs = (AT_BOUND, torch.zeros(1, 5), None, torch.zeros(1, dtype=torch.int64), rows, *NO_OPTIONS)
    grad, *_ = kernels.reverse_step_backward(torch.ones(1, 5), None, *inputs)
    assert grad.tolist() == [[0, 1, 1, 1, 0]]
    check_reverse_backward(inputs)


# ---- a learned variance ----


def check_learned(inputs):
    """The reference's bits but for the deviation, whose exponential rounds otherwise."""
    _, x, noise, *_ = inputs
    g, h = values(*x.shape, seed=8), values(*x.shape, seed=9)
    runs = (lambda k, i: step(k, i, [x], True, True), lambda k, i: k.reverse_step_backward(g, h, *i))
    for run in runs:
        double = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in inputs]
        for got, wanted, true in zip(run(kernels, inputs), run(reference, inputs), run(reference, double), strict=True):
            assert got.stride() == wanted.stride() and got.dtype == wanted.dtype
            if not got.numel():  # no u
                continue
            error, allowed = (got.double() - true).abs(), 2 * (wanted.double() - true).abs().max() + ulp(true, got.dtype)
            assert bool((error <= allowed).all())
    if noise is None:
        assert not kernels.reverse_step_backward(g, h, *inputs)[0][:, x.shape[1] :].any()
    same(*(step(k, inputs)[1] for k in (kernels, reference)))


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


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_guided_learned_step_takes_the_conditional_outputs_variance(exact, layout):
    inputs = reverse_inputs(IMAGE, "key", layout=layout, learned=True, options="u guidance bound")
    check_learned(inputs)
    out, x, noise, index, rows, u, *own = inputs
    other = torch.cat((u[:, :4], torch.full_like(u[:, 4:], torch.nan)), 1)
    given = ((out, x, noise, index, rows, each, *own) for each in (LAYOUTS[layout](other), u))
    same(*(step(kernels, i)[0] for i in given))


def test_an_empty_learned_step():
    for shape in ((0, 5), (2, 0)):
        x, rows = values(*shape), table("learned")
        inputs = (values(shape[0], 2 * shape[1]), x, key(shape[0]), spread(shape[0]), rows, *NO_OPTIONS)
        assert step(kernels, inputs)[0].shape == x.shape
        assert [g.shape for g in kernels.reverse_step_backward(x, None, *inputs)[:2]] == [inputs[0].shape, x.shape]
