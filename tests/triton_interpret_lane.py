# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The Triton kernels in Triton's interpreter, on CPU tensors, against the reference.

Run by test_triton_interpret.py in a process of its own, or by `TRITON_INTERPRET=1 pytest tests/triton_interpret_lane.py`:
the variable is read when a kernel is decorated.

The interpreter rounds `tl.fma` twice and truncates float32 to bfloat16, where every GPU rounds once, to nearest. The fixture
`exact` mends both, and then an elementwise kernel gives the reference's bits, which proves its operations and their order. The
tests that go without it allow for just those two.
"""

import inspect

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from fastddpm.kernels import philox
from fastddpm.kernels.tile import _MAX_CHANNELS, plan, positions_of
from helpers import LAYOUTS, same_bits, spread, ulp, values
from torch.library import opcheck
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from fastddpm import NoiseSchedule, _triton, autograd, kernels, noise_key, ops, reference, samplers

SCHEDULE = NoiseSchedule.linear(1000)
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((3,), (3, 1), (2, 3), (3, 4), (2, 5), (3, 127), (2, 4097), (0, 5), (3, 0), (2, 3, 4, 5), (2, 2, 3, 4, 5))
IMAGE = (3, 4, 5, 6)
WORDS = torch.cat(
    (
        torch.arange(0, 1 << 32, 1_048_573),
        (torch.arange(0, 1 << 32, 1 << 29)[:, None] + torch.arange(-40, 40)).flatten() & 0xFFFFFFFF,
        0xFFFFFFFF - (1 << torch.arange(32)),
        1 << torch.arange(32),
    )
)
"""A dense sample, both ends, round every eighth of a turn, every power of two."""


def _fma(self, x, y, z):
    a, b, c = (torch.tensor(v.data) for v in (x, y, z))
    return TensorHandle(reference.fma(a, b, c).numpy(), z.dtype.scalar)


def _cast(self, source, kind, inner=InterpreterBuilder.cast_impl):
    if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
        return inner(self, source, kind)
    rounded = torch.tensor(source.data).bfloat16().view(torch.int16)
    return TensorHandle(rounded.numpy().view(np.uint16), kind.scalar)


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_fma", _fma)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", _cast)


def same(got, wanted):
    assert got.stride() == wanted.stride()
    assert same_bits(got, wanted)


def key(batch, seed=-(2**62) + 12345, step=9):
    return noise_key(seed, step, batch, first_sample=(1 << 32) - 1 - batch)


# ---- words and normals ----


@triton.jit
def words_kernel(out_ptr, counter_ptr, seed_ptr, subsequence_ptr, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    counter = tl.load(counter_ptr + lane)
    seed, subsequence = tl.load(seed_ptr + lane), tl.load(subsequence_ptr + lane)
    w = philox.words(counter.to(tl.uint32), (counter >> 32).to(tl.uint32), seed, subsequence)
    for i in tl.static_range(4):
        tl.store(out_ptr + i * SIZE + lane, w[i].to(tl.int64))


@triton.jit
def normal_parts_kernel(radius_ptr, cos_ptr, sin_ptr, word_ptr, SIZE: tl.constexpr):
    lane = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    word = tl.load(word_ptr + lane).to(tl.uint32)
    cos, sin = philox.cos_sin(word)
    tl.store(radius_ptr + lane, philox.radius(word))
    tl.store(cos_ptr + lane, cos)
    tl.store(sin_ptr + lane, sin)


def test_words_are_those_of_the_reference_and_the_known_answers():
    draw = np.random.default_rng(1).integers(-(2**63), 2**63, (3, 512))
    draw[:, 0], draw[:, 1] = 0, -1
    draw[:, 2] = [0x85A308D3243F6A88 - (1 << 64), 0x299F31D0A4093822, 0x0370734413198A2E]
    counter, seed, subsequence = torch.from_numpy(draw)
    out = torch.empty(4, 512, dtype=torch.int64)
    words_kernel[(1,)](out, counter, seed, subsequence, SIZE=512)
    assert torch.equal(out, torch.stack(reference.philox(counter, seed, subsequence)))
    known = """6627e8d5 e169c58d bc57ac4c 9b00dbd8  408f276d 41c83b0e a20bc7c6 6d5451fd
        d16cfe09 94fdcceb 5001e420 24126ea1"""
    assert [f"{w:08x}" for w in out[:, :3].t().flatten().tolist()] == known.split()


def normal_parts():
    word = torch.nn.functional.pad(WORDS, (0, -len(WORDS) % 1024))
    parts = torch.full((3, len(word)), torch.nan)
    normal_parts_kernel[(len(word) // 1024,)](*parts, word, SIZE=1024)
    return parts, torch.stack((reference.radius(word), *reference.cos_sin(word)))


def test_radius_and_angle_are_the_reference_s_bits(exact):
    parts, wanted = normal_parts()
    assert same_bits(parts, wanted)


def test_radius_and_angle_without_mending_the_interpreter():
    parts, wanted = normal_parts()
    assert (parts - wanted).abs().max() <= 1e-6


def test_coefficients_are_the_reference_s():
    log = [getattr(philox, f"_L{i}").value for i in range(7)]
    cos, sin = ([getattr(philox, f"_{name}{i}").value for i in range(n)] for name, n in (("C", 3), ("S", 4)))
    assert (log, cos, sin) == (reference._LOG, reference._COS, reference._SIN)
    assert all(np.float32(c) == c for c in log + cos + sin)


# ---- keys ----


@pytest.mark.parametrize("batch", [0, 1, 127, 300])
def test_keys(batch):
    seed, subsequence = -(2**63) + 5, (1 << 61) + (7 << 32) + 3
    made, wanted = torch.zeros(batch, 2, dtype=torch.int64), torch.zeros(batch, 2, dtype=torch.int64)
    kernels.fill_key_(made, seed, subsequence)
    reference.fill_key_(wanted, seed, subsequence)
    assert torch.equal(made, wanted)
    for steps in (1, 1 << 27, 0):
        kernels.advance_(made, steps)
        reference.advance_(wanted, steps)
        assert torch.equal(made, wanted)
    assert torch.equal(kernels.timesteps(made, 1000), reference.timesteps(wanted, 1000))
    assert torch.equal(kernels.timesteps(made, 2**31 - 1), reference.timesteps(wanted, 2**31 - 1))


def test_advance_keeps_to_its_28_bits_and_goes_back():
    at_the_end = noise_key(1, (1 << 28) - 1, 3, stream=15)
    moved = at_the_end.clone()
    kernels.advance_(moved, 1)
    assert torch.equal(moved, noise_key(1, 0, 3, stream=15))
    kernels.advance_(moved, -1)
    assert torch.equal(moved, at_the_end)


def test_a_strided_key():
    wide = torch.zeros(6, 2, dtype=torch.int64)
    kernels.fill_key_(wide[::2], 3, 4)
    kernels.advance_(wide[::2], 5)
    assert torch.equal(wide[::2], noise_key(3, 5, 3, first_sample=4)) and not wide[1::2].any()
    assert torch.equal(kernels.timesteps(wide[::2], 50), reference.timesteps(wide[::2], 50))


# ---- the noise alone, in every layout ----


@pytest.mark.parametrize("shape", [s for s in SIZES if len(s) > 1], ids=str)
def test_randn(exact, shape):
    out = torch.full(shape, torch.nan)
    kernels.randn_(out, key(shape[0]))
    assert same_bits(out, reference.normals(key(shape[0]), out[0].numel() if len(out) else 0).view(shape))


CHANNELS_LAST = [(2, 3, 8, 8), (2, 3, 5, 7), (1, 4, 40, 40), (1, 2, 3, 3), (1, 5, 31, 29), (1, 17, 9, 2),
                 (1, 64, 3, 5), (1, 65, 3, 2), (2, 130, 3, 5), (2, 3, 2, 3, 5)]  # fmt: skip


@pytest.mark.parametrize("shape", CHANNELS_LAST, ids=str)
def test_randn_channels_last(exact, shape):
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    out = torch.full(shape, torch.nan).contiguous(memory_format=layout)
    kernels.randn_(out, key(shape[0]))
    assert same_bits(out, reference.normals(key(shape[0]), out[0].numel()).view(shape))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_randn_dtypes_and_layouts(exact, dtype, layout):
    out, wanted = (LAYOUTS[layout](torch.full(IMAGE, torch.nan, dtype=dtype)) for _ in range(2))
    kernels.randn_(out, key(3))
    reference.randn_(wanted, key(3))
    same(out, wanted)


def test_randn_without_mending_the_interpreter():
    out = torch.empty(2, 5000)
    kernels.randn_(out, key(2))
    assert (out - reference.normals(key(2), 5000)).abs().max() <= 2e-6


def test_every_plan_covers_its_tensor_once():
    for batch, elements, channels in [(1, 1, 0), (3, 3072, 0), (2, 4097, 0), (1, 1 << 24, 0), (7, 5 * 33, 5)] + [
        (b, c * s, c) for b in (1, 300) for s in (9, 64, 1024, 65537) for c in range(2, _MAX_CHANNELS + 1)
    ]:
        grid, block, _ = plan(batch, elements, channels)
        length = positions_of(block, channels) * channels if channels else block
        assert 0 < length <= block and block & (block - 1) == 0
        assert grid[0] * length >= batch * elements > (grid[0] - batch) * length


# ---- noising ----

NOISES = ("key", "tensor", "none")


def noise_of(kind, shape, dtype=torch.float32):
    return {"key": key(shape[0]), "tensor": values(*shape, dtype=dtype, seed=5), "none": None}[kind]


def rows_q():
    return SCHEDULE.q_sample_rows(CPU, torch.float32)


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
    mse = SCHEDULE.mse_rows("epsilon", None, CPU, torch.float32)
    loss = kernels.mse_loss(out, noise, None, None, bad, mse, ops.NONE)
    assert torch.equal(loss.isnan(), poisoned)
    ones = torch.ones(6)
    check(*(k.mse_loss_backward(ones, out, noise, None, None, t, mse, ops.NONE)
            for k, t in ((kernels, bad), (reference, good))))  # fmt: skip
    rows = samplers.ddpm(SCHEDULE).on(CPU, torch.float32)
    for got, wanted in zip(kernels.reverse_step(out, x, noise, bad, rows, True),
                           reference.reverse_step(out, x, noise, good, rows, True), strict=True):  # fmt: skip
        check(got, wanted)
    for got, wanted in zip(kernels.reverse_step_backward(x, None, out, x, bad, rows),
                           reference.reverse_step_backward(x, None, out, x, good, rows), strict=True):  # fmt: skip
        check(got, wanted)


def test_a_nan_stays_in_its_sample():
    x = values(3, 50)
    x[1, 7] = torch.nan
    out = kernels.noising(x, key(3), spread(3), rows_q())
    assert out.isnan().sum() == 1 and out[1, 7].isnan()
    rows = samplers.ddpm(SCHEDULE).on(CPU, torch.float32)
    x_prev, x_0 = kernels.reverse_step(values(3, 50), x, key(3), spread(3), rows, True)
    assert x_prev.isnan().sum() == 1 and x_0[1, 7].isnan()


# ---- mse ----

TARGETS = {
    "epsilon": (("key", False, False), "epsilon"),
    "epsilon of a tensor": (("tensor", False, False), "epsilon"),
    "sample": (("none", True, False), "sample"),
    "v": (("key", True, False), "v_prediction"),
    "previous": (("none", True, True), "previous_from_x_t"),
}


def mse_inputs(target, shape, dtype=torch.float32, layout="contiguous"):
    (kind, needs_x_0, needs_x_t), name = TARGETS[target]
    place = LAYOUTS[layout] if len(shape) == 4 else torch.clone
    rows = SCHEDULE.mse_rows(name, None, CPU, torch.float32).clone()
    rows[:, 3] = torch.linspace(0.5, 2, len(rows))
    x_0, x_t = (place(values(*shape, seed=n)) if needed else None for n, needed in ((2, needs_x_0), (3, needs_x_t)))
    return place(values(*shape, dtype=dtype)), noise_of(kind, shape), x_0, x_t, spread(shape[0]), rows


def check_mse(inputs, reduction):
    loss, wanted = (k.mse_loss(*inputs, reduction) for k in (kernels, reference))
    double = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    exact = reference.mse_loss(*double, reduction)
    assert loss.shape == wanted.shape and loss.dtype == torch.float32
    finite = exact.isfinite()
    assert torch.equal(loss.isfinite(), finite)
    allowed = 2 * (wanted - exact).abs()[finite] + 2 * ulp(exact, torch.float32)[finite]
    assert bool(((loss - exact).abs()[finite] <= allowed).all())
    upstream = torch.rand(exact.shape) + 0.5
    same(*(k.mse_loss_backward(upstream, *inputs, reduction) for k in (kernels, reference)))


@pytest.mark.parametrize("shape", [s for s in SIZES if len(s) > 1], ids=str)
@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
def test_mse_sizes(exact, shape, reduction):
    check_mse(mse_inputs("epsilon", shape), reduction)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mse_targets_and_dtypes(exact, target, dtype):
    check_mse(mse_inputs(target, (3, 300), dtype), ops.MEAN)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["v", "previous"])
def test_mse_layouts(exact, layout, target):
    check_mse(mse_inputs(target, IMAGE, layout=layout), ops.NONE)


def test_an_upstream_gradient_for_all_and_one_for_each(exact):
    inputs = mse_inputs("epsilon", (3, 300))
    for upstream in (torch.tensor(3.0).expand(3), torch.rand(6)[::2]):
        same(*(k.mse_loss_backward(upstream, *inputs, ops.NONE) for k in (kernels, reference)))


def test_a_loss_has_the_same_bits_in_any_batch():
    out, noise, _, _, t, rows = mse_inputs("epsilon", (4, 5000))
    whole = kernels.mse_loss(out, noise, None, None, t, rows, ops.NONE)
    alone = [kernels.mse_loss(out[b : b + 1], noise[b : b + 1], None, None, t[b : b + 1], rows, ops.NONE) for b in range(4)]
    assert torch.equal(whole, torch.cat(alone))


# ---- reverse ----


def reverse_inputs(shape, kind, dtype=torch.float32, layout="contiguous"):
    place = LAYOUTS[layout] if len(shape) == 4 else torch.clone
    rows = samplers.ddpm(SCHEDULE).on(CPU, torch.float32).clone()
    rows[:, 5] = torch.linspace(-1, 1, len(rows))  # a sampler that uses the output directly as well
    return place(values(*shape, dtype=dtype)), place(values(*shape, seed=1)), noise_of(kind, shape), spread(shape[0]), rows


def check_reverse(inputs):
    for wanted_x_0 in (True, False):
        for got, wanted in zip(*(k.reverse_step(*inputs, wanted_x_0) for k in (kernels, reference)), strict=True):
            same(got, wanted)


def check_reverse_backward(inputs):
    out, x, _, index, rows = inputs
    g, h = values(*x.shape, seed=8), values(*x.shape, seed=9)
    for grads in ((g, None), (None, h), (g, h), (g.expand_as(x), h.transpose(-1, -2).contiguous().transpose(-1, -2))):
        pairs = zip(*(k.reverse_step_backward(*grads, out, x, index, rows) for k in (kernels, reference)), strict=True)
        for got, wanted in pairs:
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


# ---- float64, and behind the op boundary ----


def test_float64_runs_the_reference():
    x, rows = values(2, 5, dtype=torch.float64), rows_q().double()
    same(kernels.noising(x, key(2), spread(2), rows), reference.noising(x, key(2), spread(2), rows))


@pytest.fixture
def registered(monkeypatch):
    """The kernels under the CPU key, in the place of whatever serves it."""
    library = torch.library.Library("fastddpm", "IMPL")
    override = {"allow_override": True} if "allow_override" in inspect.signature(library.impl).parameters else {}
    for name in _triton.OPS:
        library.impl(name, _triton.kernel(name), "CPU", **override)
    yield
    library._destroy()


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_opcheck(registered, exact):
    x, out = (LAYOUTS["channels_last"](values(2, 3, 2, 2, seed=n)) for n in range(2))
    t, noise, mse = spread(2), key(2), mse_inputs("v", (2, 12))[-1]
    rows = samplers.ddpm(SCHEDULE).on(CPU, torch.float32)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for op, arguments in (
        (ops.fill_key_, (torch.empty(3, 2, dtype=torch.int64), 7, 1 << 40)),
        (ops.advance_, (key(2), 3)),
        (ops.timesteps, (key(2), 1000)),
        (ops.randn_, (torch.empty_like(x), noise)),
        (ops.noising, (x, noise, t, rows_q())),
        (ops.mse_loss, (out, noise, x, None, t, mse, ops.MEAN)),
        (ops.mse_loss_backward, (torch.ones(2), out, noise, x, None, t, mse, ops.NONE)),
        (ops.reverse_step, (out, x.contiguous(), noise, t, rows, True)),
        (ops.reverse_step_backward, (x, None, out, x.contiguous(), t, rows)),
    ):
        opcheck(op, arguments, test_utils=tests)


def test_a_training_step_through_the_ops(registered, exact):
    x, weight = values(2, 40), torch.tensor(0.7)
    results = []
    for run in (ops, reference):
        w = weight.clone().requires_grad_()
        t = run.timesteps(key(2), 1000)
        x_t = run.noising(x, key(2), t, rows_q())
        inputs = (w * x_t, key(2), None, None, t, SCHEDULE.mse_rows("epsilon", None, CPU, torch.float32))
        if run is ops:
            loss = autograd.MseLoss.apply(*inputs, ops.MEAN)
            loss.backward()
            results.append((x_t, loss.detach(), w.grad))
        else:
            out = inputs[0].detach()
            grad = run.mse_loss_backward(torch.ones(()), out, *inputs[1:], ops.MEAN)
            results.append((x_t, run.mse_loss(out, *inputs[1:], ops.MEAN), (grad * x_t).sum()))
    (x_t, *rest), (wanted_x_t, *wanted) = results
    assert same_bits(x_t, wanted_x_t)
    torch.testing.assert_close(rest, wanted, rtol=2e-6, atol=0)
