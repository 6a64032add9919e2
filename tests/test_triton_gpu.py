"""The Triton kernels on a GPU: bit for bit the CPU's noise, every op against the reference, and what only a device shows.

Skipped without a GPU. `benchmarks/gpu.sh` runs it. Not yet run on a GPU.
"""

import itertools

import pytest
import torch
from helpers import LAYOUTS, assert_right, poisoned, same_bits, spread, ulp, values

import fastddpm as fd
from fastddpm import _triton, coefficients, noise_key, ops, reference, samplers
from fastddpm.reference import philox
from fastddpm.rows import NoisingRow

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

SCHEDULE = fd.NoiseSchedule.linear(1000)
ON_CPU = (torch.device("cpu"), torch.float32)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((3, 1), (3, 3), (3, 4), (3, 5), (3, 127), (3, 4097), (0, 5), (3, 0), (3, 4, 5, 6), (64, 3, 64, 64), (2, 3, 2, 9, 5))
IMAGE = (3, 4, 5, 6)
SEED, STEP = -(2**62) + 12345, 9


def key(batch):
    return noise_key(SEED, STEP, batch)


def on_gpu(x):
    """A tensor on the GPU with its strides and as far behind an aligned address; anything else as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return whole.cuda().as_strided(x.shape, x.stride(), x.storage_offset())


def both(name, *inputs):
    """(the op on the GPU, the reference on the CPU), as tuples of CPU tensors."""
    results = getattr(ops, name)(*map(on_gpu, inputs)), getattr(reference, name)(*inputs)
    return [tuple(x.cpu() for x in ((r,) if isinstance(r, torch.Tensor) else r)) for r in results]


def same(name, *inputs):
    for got, wanted in zip(*both(name, *inputs), strict=True):
        assert got.stride() == wanted.stride() and same_bits(got, wanted)


def rows_q():
    return coefficients.q_sample_rows(SCHEDULE, *ON_CPU)


def test_the_kernels_serve_the_gpu():
    assert _triton.serves("cuda") == "Triton"


def test_a_gradient_of_any_upstream_by_the_engine():
    """Made with the loss in float32 and bfloat16, and then scaled in place; made in the backward in float16."""
    x_0, t, k = values(3, 3, 8, 8, seed=1), spread(3), key(3)
    rows = coefficients.mse_rows(SCHEDULE, "v_prediction", None, *ON_CPU)
    for dtype, layout, scale in itertools.product(DTYPES, ("contiguous", "channels_last"), (1.0, 3.0)):
        out = LAYOUTS[layout](values(3, 3, 8, 8, dtype=dtype))
        leaf = on_gpu(out).requires_grad_()
        loss = fd.mse_loss(leaf, t.cuda(), SCHEDULE, k.cuda(), x_0.cuda(), prediction_type="v_prediction")
        (scale * loss).backward()
        wanted = reference.mse_loss_backward(out, k, x_0, None, t, rows, ops.MEAN, torch.tensor(scale))
        error = (leaf.grad.cpu().double() - wanted.double()).abs()
        assert bool((error <= ulp(wanted.double(), dtype)).all())


# ---- the noise ----


@pytest.mark.parametrize("shape", [s for s in SHAPES if 0 not in s], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_is_the_cpu_s_bit_for_bit(shape, dtype):
    gpu = fd.randn(key(shape[0]).cuda(), shape, dtype).cpu()
    assert same_bits(gpu, fd.randn(key(shape[0]), shape, dtype))  # the C++ kernels, where they are built
    assert same_bits(gpu, philox.normals(key(shape[0]), gpu[0].numel()).view(shape).to(dtype))


def test_sixty_four_million_normals_are_the_cpu_s_bit_for_bit():
    for seed in range(4):
        made = noise_key(seed, batch_size=16)
        assert same_bits(fd.randn(made.cuda(), (16, 1 << 20)).cpu(), fd.randn(made, (16, 1 << 20)))


@pytest.mark.parametrize("channels", [2, 3, 4, 16, 17, 64, 65])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (63, 33)], ids=str)
def test_noise_does_not_depend_on_the_layout(channels, size):
    shape = (2, channels, *size)
    made = fd.randn(key(2).cuda(), shape, memory_format=torch.channels_last)
    assert same_bits(made, fd.randn(key(2).cuda(), shape))


def test_keys_are_the_cpu_s():
    gpu, cpu = noise_key(SEED, STEP, 300, device="cuda"), noise_key(SEED, STEP, 300)
    for steps in (0, 1, 12345):
        assert torch.equal(fd.advance(gpu, steps).cpu(), fd.advance(cpu, steps))
        assert torch.equal(fd.timesteps(gpu, 1000).cpu(), fd.timesteps(cpu, 1000))


# ---- every op, to the reference's bits where it adds nothing up, and against float64 ----


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["key", "tensor", "none"])
def test_ops_at_every_size(shape, kind):
    noise = {"key": key(shape[0]), "tensor": values(*shape, seed=5), "none": None}[kind]
    x, out, t = values(*shape), values(*shape, seed=1), spread(shape[0])
    same("noising", x, noise, t, rows_q())
    if kind == "key":
        same("noising_uniform", x, noise, rows_q())
    table = samplers.ddpm(SCHEDULE).on(*ON_CPU)
    same("reverse_step", out, x, noise, t, table, True)
    same("reverse_step_backward", x, out, out, x, None, t, table)
    if noise is not None:
        mse = coefficients.mse_rows(SCHEDULE, "v_prediction", "min_snr", *ON_CPU)
        for reduction in (ops.NONE, ops.MEAN, ops.SUM):
            upstream = torch.rand(shape[:1] if reduction == ops.NONE else ())
            same("mse_loss_backward", out, noise, x, None, t, mse, reduction, upstream)
            check_loss(out, noise, x, None, t, mse, reduction)


def check_loss(*inputs):
    """The loss; its gradient to the bit."""
    (got, grad), (wanted, wanted_grad) = both("mse_loss", *inputs, True)
    assert same_bits(grad, wanted_grad)
    double = (x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)
    exact, _ = reference.mse_loss(*double, False)
    finite = exact.isfinite()
    assert got.shape == wanted.shape and torch.equal(got.isfinite(), finite)
    allowed = 2 * (wanted - exact).abs() + 2 * ulp(exact, torch.float32)
    assert bool(((got - exact).abs() <= allowed)[finite].all())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ops_in_every_layout_and_dtype(layout, dtype):
    x, out = LAYOUTS[layout](values(*IMAGE, dtype=dtype)), LAYOUTS[layout](values(*IMAGE, dtype=dtype, seed=1))
    t, table = spread(3), samplers.ddpm(SCHEDULE).on(*ON_CPU)
    with poisoned():
        same("noising", x, key(3), t, rows_q())
        same("noising_uniform", x, key(3), rows_q())
        same("reverse_step", out, x, key(3), t, table, True)
        same("reverse_step_backward", x, None, out, x, None, t, table)
        mse = coefficients.mse_rows(SCHEDULE, "epsilon", None, *ON_CPU)
        same("mse_loss_backward", out, key(3), None, None, t, mse, ops.MEAN, torch.tensor(3.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_q_sample_against_float64(dtype):
    x, t = values(16, 3, 32, 32, dtype=dtype), spread(16)
    got = fd.q_sample(x.cuda(), t.cuda(), SCHEDULE, key(16).cuda()).cpu()
    z = fd.randn(key(16), x.shape)
    exact = reference.noising(x.double(), z.double(), t, rows_q().double())
    a, s = (c.view(-1, 1, 1, 1).to(dtype) for c in rows_q()[t].unbind(1))
    assert_right(got, exact, a * x + s * z.to(dtype))


# ---- the variational bound and learned variances: sums and exponentials, so against float64 ----

FORMS = {
    "epsilon, range": ("epsilon", "learned_range"),
    "v, large": ("v_prediction", "fixed_large"),
    "previous, learned": ("previous", "learned"),
}


def bound_inputs(form, shape, dtype=torch.float32, layout="contiguous", tanh=False):
    """model_output, x_0, x_t, noise, t, rows, tanh_cdf."""
    place = LAYOUTS[layout] if len(shape) == 4 else torch.clone
    out = values(shape[0], shape[1] * (1 + ("learned" in FORMS[form][1])), *shape[2:], dtype=dtype, seed=1)
    x_0 = place(values(*shape, dtype=dtype).clamp(-1, 1))
    rows = coefficients.vlb_rows(SCHEDULE, *FORMS[form], True, "posterior", None, *ON_CPU)
    return place(out), x_0, None, key(shape[0]), spread(shape[0]), rows, tanh


def close(name, *inputs):
    """flash-attention's rule: at most twice the error of the reference in the same dtype, and an ulp of the greatest."""
    double = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    exact = getattr(reference, name)(*double)
    for got, plain, true in zip(*both(name, *inputs), exact if isinstance(exact, tuple) else (exact,), strict=True):
        assert got.stride() == plain.stride() and got.dtype == plain.dtype and torch.equal(got.isnan(), true.isnan())
        error, allowed = (got.double() - true).abs(), (plain.double() - true).abs()
        if error.nan_to_num().any():
            worst = true.abs().nan_to_num().max()
            assert bool((error <= 2 * allowed.nan_to_num().max() + 2 * ulp(worst, got.dtype) + 2e-7 * worst).all())


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1 and 0 not in s], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tanh", [False, True], ids=["exact", "tanh"])
def test_the_bound_at_every_size(shape, form, tanh):
    inputs = bound_inputs(form, shape, tanh=tanh)
    for reduction in (ops.NONE, ops.MEAN, ops.SUM):
        upstream = torch.rand(shape[:1] if reduction == ops.NONE else ())
        close("vlb_loss", *inputs, reduction, True)
        close("vlb_loss_backward", *inputs, reduction, upstream)
        close("hybrid_loss", *inputs, 0.3, reduction, True)
        close("hybrid_loss_backward", *inputs, 0.3, reduction, upstream, None, upstream)
    close("vlb_terms", *inputs, noise_key(SEED, STEP + 1, shape[0]), torch.full(shape[:1], 7))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_bound_in_every_layout_and_dtype(layout, dtype, form):
    inputs = bound_inputs(form, IMAGE, dtype, layout)
    with poisoned():
        close("hybrid_loss", *inputs, 0.3, ops.NONE, True)
        close("hybrid_loss_backward", *inputs, 0.3, ops.MEAN, torch.tensor(3.0), None, None)
        close("vlb_loss_backward", *inputs, ops.MEAN, torch.tensor(3.0))
        close("vlb_terms", *inputs, key(3), torch.full((3,), 7))


@pytest.mark.parametrize("channels", [1, 3, 4, 64, 65])
@pytest.mark.parametrize("given", [False, True], ids=["x_t of the key", "x_t given"])
def test_a_bound_with_variance_channels_in_channels_last(channels, given):
    out, x_0, _, noise, t, rows, tanh = bound_inputs("epsilon, range", (3, channels, 9, 7), layout="channels_last")
    if given:
        inputs = (out, x_0, reference.noising(x_0, noise, t, rows[:, : len(NoisingRow._fields)]), None, t, rows, tanh)
    else:
        inputs = (out, x_0, None, noise, t, rows, tanh)
    close("vlb_loss", *inputs, ops.NONE, True)
    close("vlb_loss_backward", *inputs, ops.NONE, torch.rand(3))


@pytest.mark.parametrize("kind", ["key", "tensor", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reverse_step_with_a_learned_variance(kind, layout):
    out, x = LAYOUTS[layout](values(3, 8, 5, 6)), LAYOUTS[layout](values(*IMAGE, seed=1))
    noise = {"key": key(3), "tensor": values(*IMAGE, seed=5), "none": None}[kind]
    table = samplers.ddpm(SCHEDULE, variance_type="learned_range").on(*ON_CPU)
    close("reverse_step", out, x, noise, spread(3), table, True)
    close("reverse_step_backward", x, None, out, x, noise, spread(3), table)


@pytest.mark.parametrize("log_variance", [-30.0, -15.0, 0.0, 30.0])
@pytest.mark.parametrize("tanh", [False, True], ids=["exact", "tanh"])
def test_the_first_step_s_likelihood_is_finite_at_any_variance(log_variance, tanh):
    _, x_0, _, noise, _, _, _ = bound_inputs("previous, learned", (4, 3, 32, 32))
    rows = coefficients.vlb_rows(SCHEDULE, "previous", "learned", True, "posterior", None, *ON_CPU)
    out = torch.cat((values(4, 3, 32, 32, seed=3), torch.full((4, 3, 32, 32), log_variance)), 1)
    inputs = [on_gpu(x) for x in (out, x_0, None, noise, torch.zeros(4, dtype=torch.int64), rows, tanh)]
    loss, grad = ops.vlb_loss(*inputs, ops.NONE, True)
    assert loss.isfinite().all() and grad.isfinite().all()


# ---- what only a device shows ----


def test_a_t_out_of_range_poisons_its_sample_alone():
    x, t = values(4, 1000), torch.tensor([5, -1, 1000, 999])
    made = ops.noising(x.cuda(), key(4).cuda(), t.cuda(), rows_q().cuda()).cpu()
    wanted = reference.noising(x, key(4), t.clamp(0, 999), rows_q())
    assert made[1:3].isnan().all() and same_bits(made[[0, 3]], wanted[[0, 3]])


def training_step(x_0, made, output):
    t = fd.timesteps(made, 1000)
    x_t = fd.q_sample(x_0, t, SCHEDULE, made)
    loss = fd.mse_loss(output * x_t, t, SCHEDULE, made)
    (grad,) = torch.autograd.grad(loss, output)
    return x_t, loss.detach(), grad


def test_a_training_step_never_waits_for_the_host():
    x_0, made = values(8, 3, 32, 32).cuda(), key(8).cuda()
    output = torch.ones((), device="cuda", requires_grad=True)
    training_step(x_0, made, output)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(x_0, fd.advance(made), output)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_hybrid_step_never_waits_for_the_host_and_replays():
    x_0, made = values(8, 3, 32, 32).clamp(-1, 1).cuda(), key(8).cuda()
    output = torch.full((8, 6, 32, 32), 0.1, device="cuda", requires_grad=True)

    def step():
        t = fd.timesteps(made, 1000)
        losses = fd.hybrid_loss(output, x_0, made, t, SCHEDULE)
        return losses["loss"].detach(), *torch.autograd.grad(losses["loss"], output)

    wanted = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for got, expected in zip(captured, wanted, strict=True):
        assert same_bits(got, expected)


def test_each_replay_of_a_captured_step_draws_fresh_noise():
    x_0, made = values(8, 3, 32, 32).cuda(), key(8).cuda()
    output = torch.ones((), device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            training_step(x_0, fd.advance(made), output)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x_t, loss, grad = training_step(x_0, fd.advance(made), output)
    made.copy_(key(8))
    for step in range(1, 4):
        graph.replay()
        cpu = noise_key(SEED, STEP + step, 8)
        assert torch.equal(made.cpu(), cpu)
        assert same_bits(x_t.cpu(), fd.q_sample(x_0.cpu(), fd.timesteps(cpu, 1000), SCHEDULE, cpu))
        assert loss.isfinite() and grad.isfinite()


def test_a_compiled_training_step_gives_the_same_noise():
    x_0, made = values(8, 3, 32, 32).cuda(), key(8).cuda()

    @torch.compile(fullgraph=True)
    def step(x_0, made):
        t = fd.timesteps(made, 1000)
        x_t = fd.q_sample(x_0, t, SCHEDULE, made)
        return x_t, fd.mse_loss(x_t, t, SCHEDULE, made)

    x_t, loss = step(x_0, made)
    t = fd.timesteps(made, 1000)
    assert same_bits(x_t, fd.q_sample(x_0, t, SCHEDULE, made))
    assert torch.equal(loss, fd.mse_loss(x_t, t, SCHEDULE, made))


def test_a_loss_has_the_same_bits_in_any_batch():
    """Of so many samples that their cut would be coarser than one's, did it depend on them (2^20 elements)."""
    x_0, out, t, made = values(32, 50_000).cuda(), values(32, 50_000, seed=1).cuda(), spread(32).cuda(), key(32).cuda()
    mse = coefficients.mse_rows(SCHEDULE, "epsilon", None, *ON_CPU).cuda()
    vlb = coefficients.vlb_rows(SCHEDULE, *FORMS["v, large"], True, "posterior", None, *ON_CPU).cuda()

    def of(first, end):
        o, x, z, i = (data[first:end] for data in (out, x_0, made, t))
        loss, _ = ops.mse_loss(o, z, None, None, i, mse, ops.NONE, False)
        return torch.stack((loss, *ops.hybrid_loss(o, x, None, z, i, vlb, False, 0.3, ops.NONE, False)[:3]))

    assert torch.equal(of(0, 32), torch.cat((of(0, 1), of(1, 32)), 1))


def test_a_nan_passes_the_clamp_of_a_reverse_step():
    x = values(2, 1000)
    x[1, 7] = torch.nan
    rows = samplers.ddpm(SCHEDULE).on(*ON_CPU)
    _, x_0, _ = ops.reverse_step(*map(on_gpu, (values(2, 1000, seed=1), x, key(2), spread(2), rows)), True)
    assert torch.equal(x_0.isnan().cpu(), x.isnan())


def test_the_second_gpu_is_made_current_for_a_launch():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    made = fd.randn(key(2).to("cuda:1"), (2, 1000))
    assert made.device == torch.device("cuda:1") and same_bits(made.cpu(), fd.randn(key(2), (2, 1000)))


# ---- past 2^31 elements ----

LARGE = {"batch": (3, (1 << 30) + 4), "sample": (1, (1 << 31) + 4100), "channels_last": (1, 3, 27_000, 27_001)}


@pytest.mark.parametrize("form", LARGE)
def test_past_two_to_the_31_elements(form):
    """Where a 32-bit offset would wrap. Checked at places on both sides of it, and at the end."""
    shape = LARGE[form]
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("24 GiB of free memory wanted")
    layout = torch.channels_last if form == "channels_last" else torch.contiguous_format
    made = key(shape[0]).cuda()
    z = fd.randn(made, shape, torch.bfloat16, memory_format=layout)
    x = torch.ones_like(z)
    t = torch.full(shape[:1], 500, device="cuda")
    x_t = fd.q_sample(x, t, SCHEDULE, made)
    elements = z[0].numel()
    for sample in range(shape[0]):
        starts = {0, elements - 64, min((1 << 30), elements - 64), min((1 << 31) - 32, elements - 64), elements // 2}
        for start in starts:
            e = torch.arange(start, start + 64)
            wanted = normals_at(key(shape[0])[sample], e)
            place = (e // (27_000 * 27_001), e // 27_001 % 27_000, e % 27_001) if form == "channels_last" else (e,)
            place = tuple(p.cuda() for p in place)
            assert same_bits(z[sample][place].cpu(), wanted.bfloat16()), (sample, start)
            a, s = rows_q()[500]
            assert same_bits(x_t[sample][place].cpu(), philox.fma(a, torch.ones(64), s * wanted).bfloat16()), (sample, start)
    loss = fd.mse_loss(z, t, SCHEDULE, made)
    assert 0 < loss < 1e-4  # the rounding of z to bfloat16


def normals_at(row, elements):
    """float32: the normals of some elements of one sample, by the reference's words."""
    w = philox.philox(elements // 4, row[:1], row[1:])
    (c01, s01), (c23, s23) = philox.cos_sin(w[1]), philox.cos_sin(w[3])
    r01, r23 = philox.radius(w[0]), philox.radius(w[2])
    z = torch.stack((r01 * c01, r01 * s01, r23 * c23, r23 * s23), 1)
    return z.gather(1, (elements % 4)[:, None])[:, 0]
