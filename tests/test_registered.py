"""The ops are good citizens of torch.library and torch.compile: opcheck on each, and a whole training step in one graph,
compiled once over changing t, step and seed, with the values of eager."""

import itertools

import pytest
import torch
from helpers import DTYPES, LAYOUTS, every_column, spread, values
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from fastddpm import GaussianDiffusion, NoiseSchedule, advance, hybrid_loss, noise_key, ops, q_sample, reverse_step, samplers
from fastddpm.coefficients import mse_rows, q_sample_rows, vlb_rows
from fastddpm.schedule import PREDICTION_TYPES

SCHEDULE = NoiseSchedule.linear(1000)
CPU = torch.device("cpu")
SHAPE = (3, 4, 5, 6)
CHECKED = []


def check(op, *args):
    opcheck(op, args)
    CHECKED.append(op)


def key():
    return noise_key(1, 2, SHAPE[0])


def tables(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- opcheck ----


def test_opcheck_keys():
    check(ops.fill_key_, torch.empty(3, 2, dtype=torch.int64), 7, 1 << 40)
    check(ops.fill_key_, torch.empty(2, 3, dtype=torch.int64).t(), -7, -1)
    check(ops.advance_, key(), 3)
    check(ops.advance_, key()[::2], 1)
    check(ops.copy_key, key())
    check(ops.copy_key, key()[::2])
    check(ops.timesteps, key(), 1000)
    check(ops.timesteps, key()[::2], 1000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_randn(dtype):
    for place in (LAYOUTS["contiguous"], LAYOUTS["channels_last"], LAYOUTS["every_second"]):
        check(ops.randn_, place(torch.zeros(SHAPE, dtype=dtype)), key())


PLACES = {name: LAYOUTS[name] for name in ("contiguous", "channels_last", "every_second", "batch_last")}
PLACES["expanded"] = lambda x: x[:1, :1].expand(SHAPE)


@pytest.mark.parametrize("layout", PLACES)
def test_opcheck_noising(layout):
    for dtype in (torch.float32, torch.bfloat16):
        x, t = PLACES[layout](values(*SHAPE, dtype=dtype)), spread(3)
        rows = q_sample_rows(SCHEDULE, CPU, torch.float32)
        check(ops.noising, x, key(), t, rows)
        check(ops.noising, x, None, t.int(), rows)
        check(ops.noising_uniform, x, key(), rows)
        check(ops.noising, x, values(*SHAPE), torch.tensor(5), rows)


@pytest.mark.parametrize("layout", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck_mse(layout, dtype):
    out = PLACES[layout](values(*SHAPE, dtype=dtype))
    x_0, t = values(*SHAPE, seed=1), spread(3)
    rows = mse_rows(SCHEDULE, "v_prediction", None, CPU, tables(out))
    for reduction, upstream in ((ops.NONE, torch.ones(3)), (ops.MEAN, torch.tensor(2.0))):
        inputs = (out, key(), x_0, None, t, rows, reduction)
        check(ops.mse_loss, *inputs, False)
        check(ops.mse_loss, *inputs, True)
        check(ops.mse_loss_backward, *inputs, upstream.to(rows.dtype))
        check(ops.scale_grad_, torch.empty_like(out).fill_(0.5), upstream.to(rows.dtype))
    check(ops.mse_loss, out, None, x_0, x_0, t, mse_rows(SCHEDULE, "previous_from_x_t", None, CPU, tables(out)), ops.SUM, False)


@pytest.mark.parametrize("layout", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck_reverse(layout, dtype):
    place = PLACES[layout]
    out, x, t, rows = values(*SHAPE), place(values(*SHAPE, dtype=dtype)), spread(3), samplers.ddpm(SCHEDULE)
    table = rows.on(CPU, torch.float32)
    check(ops.reverse_step, out, x, key(), t, table, True)
    check(ops.reverse_step, out, x, None, t, table, False)
    check(ops.reverse_step, place(out), values(*SHAPE), values(*SHAPE), t[:1], table, True)
    grad = values(*SHAPE, dtype=dtype, seed=5)
    for pair in ((grad, grad), (grad, None), (None, place(grad))):
        check(ops.reverse_step_backward, *pair, place(out), x, None, t, table)
    both, learned = wider(place, values(*SHAPE, dtype=dtype)), samplers.ddpm(SCHEDULE, variance_type="learned_range")
    table = learned.on(CPU, torch.float32)
    check(ops.reverse_step, both, x, key(), t, table, True)
    check(ops.reverse_step_backward, grad, None, both, x, key(), t, table)
    own, table = (torch.rand(3), torch.rand(3)), every_column().on(CPU, torch.float32)
    check(ops.reverse_step, out, x, key(), t, table, True, place(out), *own, [place(out), x], True)
    check(ops.reverse_step, both, x, None, t, table, False, both, own[0].mean(), None, [x, x, out], True)
    check(ops.reverse_step_backward, None, None, both, x, key(), t, table, both, *own, place(grad))


def wider(place, x):
    """Of twice the channels, in such a place in memory."""
    both = torch.cat((x, x), 1)
    return both[:1, :1].expand(both.shape) if place is PLACES["expanded"] else place(both)


@pytest.mark.parametrize(("layout", "dtype"), [*((name, torch.float32) for name in PLACES), ("contiguous", torch.float16)])
def test_opcheck_vlb(layout, dtype):
    place, t, t_next = PLACES[layout], spread(3), spread(3).flip(0)
    x_0, x_t, fixed = place(values(*SHAPE, dtype=dtype)), values(*SHAPE, seed=2), place(values(*SHAPE, dtype=dtype, seed=1))
    learned = wider(place, values(*SHAPE, dtype=dtype, seed=1))
    cases = (
        (fixed, "fixed_small", False, x_t, ops.NONE, torch.ones(3)),
        (learned, "learned_range", True, None, ops.MEAN, torch.tensor(2.0)),
    )
    for out, variance_type, tanh, x, reduction, one in cases:
        rows = vlb_rows(SCHEDULE, "epsilon", variance_type, tanh, "posterior", None, CPU, torch.float32)
        inputs = (out, x_0, x, key(), t, rows, tanh)
        for with_grad in (False, True):
            check(ops.vlb_loss, *inputs, reduction, with_grad)
            check(ops.hybrid_loss, *inputs, 0.3, reduction, with_grad)
        check(ops.vlb_loss_backward, *inputs, reduction, one)
        for upstream in ((one, None, None), (None, one, one)):
            check(ops.hybrid_loss_backward, *inputs, 0.3, reduction, *upstream)
        check(ops.vlb_terms, out, x_0, x_t, None, t, rows, tanh, key(), t_next)
        check(ops.vlb_terms, out, x_0, None, key(), t, rows, tanh, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_adamw(dtype):
    params, grads = ([PLACES["channels_last"](values(*SHAPE, dtype=dtype, seed=seed + i)) for i in range(3)] for seed in (0, 3))
    moments, squares, averages = ([torch.ones_like(p, dtype=torch.float32) for p in params] for _ in range(3))
    grads[2] = grads[2].new_empty(0)
    rows = torch.tensor([[1e-3, 0.9, 0.99, 1e-8, 0.1, 1, 0, 0]] * 2, dtype=torch.float64)
    for last, average in ((None, averages), (1.0, [])):
        options = (torch.ones(()), torch.zeros(()), last, 0.9, 0, False, last is None)
        check(ops.adamw_, params, grads, moments, squares, average, [1, 2], rows, torch.zeros(3), *options)
    check(ops.total_norm, [*params, *moments])


def test_opcheck_empty_batch():
    empty, no_key, t = values(0, 3), noise_key(1, 2, 0), torch.zeros(0, dtype=torch.int64)
    check(ops.noising, empty, no_key, t, q_sample_rows(SCHEDULE, CPU, torch.float32))
    check(ops.timesteps, no_key, 10)


def test_opcheck_saw_every_op():
    """The last of this group: an op that is added to ops.py must be added above."""
    if not CHECKED:
        pytest.skip("the opcheck tests did not run in this process")
    registered = {op for op in vars(ops).values() if isinstance(op, torch._ops.OpOverload)}
    assert registered == set(CHECKED)


# ---- torch.compile ----


class Elementwise(torch.nn.Module):
    """A model whose compiled form rounds as its eager one."""

    def __init__(self, learns_variance=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.learns_variance = learns_variance

    def forward(self, x, t):
        return torch.cat((x, x), 1) * self.weight if self.learns_variance else x * self.weight


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def training_step(diffusion, model):
    """What is compiled; the backward is compiled with it, and run outside (a compiled region cannot call it)."""

    def step(x_0, key):
        loss = diffusion.training_loss(model, x_0, key)
        advance(key)  # before the backward, whose noise is the key's as the loss had it
        return loss

    return step


STEPS = [(1, 0), (1, 1), (1, 500), (2, 2**27), (-5, 3), (2**63, 9)]


def losses(diffusion, compile_with=None):
    """The loss of each of STEPS, and the gradient of their sum."""
    model = Elementwise(diffusion.learns_variance)
    if compile_with is not None:
        step = torch.compile(training_step(diffusion, model), fullgraph=True, backend=compile_with)
    results = []
    for seed, number in STEPS:
        x_0, step_key = values(*SHAPE, seed=number), noise_key(seed, number, SHAPE[0])
        loss = diffusion.training_loss(model, x_0, step_key) if compile_with is None else step(x_0, step_key)
        loss.backward()
        results.append(loss.detach())
    return torch.stack(results), model.weight.grad


TRAINED = [
    *itertools.product(PREDICTION_TYPES, (None,), (False,)),
    *itertools.product(("v_prediction",), ("min_snr", "table"), (True, False)),
]


@pytest.mark.parametrize(("prediction_type", "weight", "warm"), TRAINED)
def test_a_training_step_compiles_once(prediction_type, weight, warm):
    """Whether or not the schedule's tables were made before."""

    def make():
        table = torch.linspace(0.5, 2.0, 1000) if weight == "table" else weight
        return GaussianDiffusion(NoiseSchedule.linear(1000), prediction_type, weight=table)

    diffusion, counter = make(), CompileCounterWithBackend("aot_eager")
    expected = losses(diffusion if warm else make())
    got = losses(diffusion, counter)
    assert counter.frame_count == 1
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "variance_type", "weight"),
    [("hybrid", "learned_range", "min_snr"), ("hybrid", "learned", "table"), ("kl", "fixed_small", None)],
)
def test_a_training_step_of_the_bound_compiles_once(loss, variance_type, weight):
    def make():
        table = torch.linspace(0.5, 2.0, 1000) if weight == "table" else weight
        return GaussianDiffusion(NoiseSchedule.linear(1000), "v_prediction", variance_type, loss, table)

    counter = CompileCounterWithBackend("aot_eager")
    expected, got = losses(make()), losses(make(), counter)
    assert counter.frame_count == 1
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("given", ["tensor", "key"])
def test_the_bound_compiles_with_x_t_as_a_key_or_a_tensor(given):
    counter, x_0, t = CompileCounterWithBackend("aot_eager"), values(*SHAPE, seed=3), spread(3)

    def step(out, x_0, key):
        x_t = key if given == "key" else q_sample(x_0, t, SCHEDULE, key)
        parts = hybrid_loss(out, x_0, x_t, t, SCHEDULE, key)
        if torch.compiler.is_compiling():  # in eager code the backward would see it, and raise
            advance(key)
        return parts

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend=counter)):
        out = values(3, 8, 5, 6).requires_grad_()
        parts = run(out, x_0, key())
        results.append([*parts.values(), *(torch.autograd.grad(x, out, retain_graph=True)[0] for x in parts.values())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert counter.frame_count == 1


def test_a_respaced_training_step_compiles_once():
    diffusion, counter = GaussianDiffusion(SCHEDULE.respace(50)), CompileCounterWithBackend("aot_eager")
    expected = losses(diffusion)
    got = losses(diffusion, counter)
    assert counter.frame_count == 1
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)


def test_a_python_int_for_the_step_is_what_compiles_again():
    """The test of the tests above: with the step as an int the counter does count."""
    counter = CompileCounterWithBackend("aot_eager")

    def loss(x, number):
        return q_sample(x, 5, SCHEDULE, noise_key(1, number, 3))

    compiled = torch.compile(loss, backend=counter)
    for number in range(3):
        compiled(values(*SHAPE), number)
    assert counter.frame_count > 1


def test_the_key_advances_inside_the_graph():
    diffusion, counter = GaussianDiffusion(SCHEDULE), CompileCounterWithBackend("aot_eager")
    model, together, stepped = Elementwise(), noise_key(1, 10, 3), []
    step = torch.compile(training_step(diffusion, model), fullgraph=True, backend=counter)
    for _ in range(3):
        stepped.append(step(values(*SHAPE), together).detach())
    assert torch.equal(together, noise_key(1, 13, 3)) and len({float(x) for x in stepped}) == 3
    eager = [diffusion.training_loss(model, values(*SHAPE), noise_key(1, 10 + i, 3)).detach() for i in range(3)]
    torch.testing.assert_close(torch.stack(stepped), torch.stack(eager), rtol=1e-6, atol=0)


@pytest.mark.parametrize("return_x_0", [True, False])
@pytest.mark.parametrize("t", ["tensor", "int"])
def test_a_reverse_step_compiles_in_one_graph(t, return_x_0):
    rows, counter = samplers.ddpm(SCHEDULE), CompileCounterWithBackend("aot_eager")
    index = spread(3) if t == "tensor" else 7

    def step(out, x, key):
        return reverse_step(out, x, index, rows, key, return_x_0)

    for run in (step, torch.compile(step, fullgraph=True, backend=counter)):
        out, x = values(*SHAPE).requires_grad_(), values(*SHAPE, seed=1).requires_grad_()
        result = [r for r in run(out, x, key()) if r is not None]
        grads = torch.autograd.grad([r.square().sum() for r in result], (out, x))
        if run is step:
            expected = (*result, *grads)
    for a, b in zip((*result, *grads), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert counter.frame_count == 1


def test_a_reverse_step_with_every_option_compiles_in_one_graph():
    rows, counter = every_column(), CompileCounterWithBackend("aot_eager")

    def step(out, u, x, *history):
        return reverse_step(out, x, 7, rows, key(), uncond_output=u, guidance=2.5, history=history, return_kept=True)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    inputs = [values(*SHAPE, seed=n).requires_grad_() for n in range(6)]
    results = [run(*inputs) for run in (step, compiled)]
    grads = [torch.autograd.grad([r.square().sum() for r in result], inputs) for result in results]
    for eager, got in (results, grads):
        for a, b in zip(eager, got, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7)
    assert counter.frame_count == 1


def test_a_loop_that_begins_with_one_tensor_for_all_of_its_history_compiles():
    """As docs/samplers.md begins it; the guidance's other output may be the sample itself, too."""
    rows, counter = every_column(), CompileCounterWithBackend("aot_eager")

    def step(out, x):
        return reverse_step(out, x, 7, rows, key(), uncond_output=x, history=[x] * rows.history, return_kept=True)[0]

    inputs = [values(*SHAPE, seed=n).requires_grad_() for n in range(2)]
    eager, got = (run(*inputs) for run in (step, torch.compile(step, fullgraph=True, backend=counter)))
    torch.testing.assert_close(got, eager, rtol=1e-6, atol=1e-7)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (got, eager)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_history_with_a_negative_bit_is_read_as_what_it_is():
    rows, x = every_column(), values(*SHAPE)
    negative = values(*SHAPE, seed=1).to(torch.complex64).mul(1j).conj().imag

    def step(history):
        return reverse_step(x, x, 7, rows, key(), uncond_output=x, history=[history] * rows.history, return_kept=True)[0]

    expected = step(negative.resolve_neg())
    assert negative.is_neg() and torch.equal(step(negative), expected)
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(negative), expected)


def test_a_training_step_through_inductor():
    """The real compiler, once: needs a C++ compiler at run time."""
    diffusion = GaussianDiffusion(SCHEDULE)
    try:
        got = losses(diffusion, CompileCounterWithBackend("inductor"))
    except torch._inductor.exc.InductorError as error:
        if "compiler" in str(error):
            pytest.skip("inductor found no C++ compiler")
        raise
    for a, b in zip(got, losses(diffusion), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_compiled_graph_leaves_the_tables_alone():
    """A compiler writes into the memory of what an op returned, once that is dead: the lookup must not hand out the table."""
    schedule, weights = NoiseSchedule.linear(1000), torch.randn(1000, 1000)
    x, step_key, t = values(2, 1000), noise_key(0, 0, 2), torch.tensor([3, 500])
    rows = q_sample_rows(schedule, CPU, torch.float32)
    kept, expected = rows.clone(), q_sample(x, t, schedule, step_key)

    @torch.compile(fullgraph=True)
    def step(x):
        x_t = q_sample(x, t, schedule, step_key)
        return x_t, torch.mm(x_t, weights)  # of the size of the rows

    for _ in range(2):
        assert torch.equal(step(x)[0], expected)
    assert torch.equal(rows, kept)
