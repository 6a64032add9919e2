"""Any call is its formula in float64, as right as eager PyTorch is in float32: functions, shapes, dtypes, places in memory and
options as hypothesis draws them, the same in every run."""

import plain
import pytest
import torch
from drawn_calls import FUNCTIONS, SCHEDULE, calls
from helpers import of_size, poisoned, ulp
from hypothesis import given, settings

from fastddpm import noise_key, q_sample, randn

# ---- the numbers of a call ----

OPERANDS = ("x_0", "out", "x_t", "noise", "x_prev")


def numbers(name, shape, copy=0):
    """In [-1.5, 1.5]; the data's on the 8-bit grid of [-1, 1], both ends among them."""
    seed = OPERANDS.index(name) + len(OPERANDS) * copy
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).mul_(3).sub_(1.5)
    return (uniform.clamp_(-1, 1) * 127.5).round() / 127.5 if name == "x_0" else uniform


def operands_of(call):
    v = {name: operand.place(numbers(name, call.shape_of(name))) for name, operand in call.operands.items()}
    key = noise_key(1, 2, call.shape[0])
    if call.x_t_kind == "key" and call.bound:
        v["x_t"] = v["noise"] = key
    if call.noise_kind == "key":
        v["noise"] = key
    return v


def numbers_of(call, v, t):
    """What each operand stands for, in float64."""
    wide = {name: x.contiguous().double() for name, x in v.items() if x.dtype != torch.int64}
    if v["noise"].dtype == torch.int64:
        wide["noise"] = randn(v["noise"], call.shape).double()
    if "x_t" in v and v["x_t"].dtype == torch.int64:  # what q_sample makes of it, rounded to the data's dtype
        wide["x_t"] = q_sample(v["x_0"].to(call.arithmetic), t, SCHEDULE, v["x_t"]).to(v["x_0"].dtype).double()
    return wide


def among_others(x, name, copies):
    """The batch, and behind it others like it: what is eager's error on them all is no luck."""
    return torch.cat((x, *(numbers(name, x.shape, copy).double() for copy in range(1, copies))))


def towards_the_bound(call, wide, t, dtype):
    """The others' outputs, changed where one within [-1.5, 1.5] keeps x_0_hat off the clamp: where x_0_hat is the small
    difference of large terms few of any drawn are off it, and eager's error on few is luck."""
    if call.clip is None or call.function != "reverse_step":
        return wide["out"]
    x_t, batch = wide["x_t"], call.shape[0]
    mean, *variance = wide["out"].split(call.shape[1], 1)

    def x_0_hat(out, x_t):
        return plain.x_0_hat(out, x_t, t, SCHEDULE, call.prediction_type, torch.float64)

    zero, wanted = torch.zeros_like(mean), numbers("x_0", mean.shape)
    other = ((wanted - x_0_hat(zero, x_t)) / x_0_hat(torch.ones_like(mean), zero)).to(dtype).double()
    other[:batch] = torch.inf
    return torch.cat((torch.where(other.abs() <= 1.5, other, mean), *variance), 1)


def upstream_of(call, name):
    """Of an elementwise result; or of a loss, whatever its reduction, of one or of each sample."""
    if FUNCTIONS[call.function].like:
        return numbers(name, call.shape)
    factor = {"mse": -0.5, "vlb": 2.0}.get(name, 1.0)
    return torch.tensor(-1.7 * factor) if call.reduction != "none" else factor * torch.linspace(0.5, -3, call.shape[0])


# ---- results and gradients ----


def leaves_of(call):
    return FUNCTIONS[call.function].operands if FUNCTIONS[call.function].like else FUNCTIONS[call.function].operands[:1]


def results(call, function, v, upstream):
    """By name, and the gradient of each operand that has one."""
    leaves = leaves_of(call)
    v = {name: x.detach().requires_grad_(name in leaves) for name, x in v.items()}
    found = function(v)
    grads = torch.autograd.grad([*found.values()], [v[name] for name in leaves], [upstream(*item) for item in found.items()])
    return {name: x.detach() for name, x in found.items()}, dict(zip(leaves, grads, strict=True))


def ours(call, v, t):
    def function(v):
        return FUNCTIONS[call.function].call(call, v, t, call.reduction)

    with of_size(call.size), poisoned():
        return results(call, function, v, lambda name, x: upstream_of(call, name).to(x.dtype))


def formulas(call, wide, t, dtype, dtypes):
    """The upstream gradients as ours had them: rounded to the results' dtypes, and of a mean's or a sum's samples."""
    copies = len(t) // call.shape[0]

    def function(v):
        return FUNCTIONS[call.function].formula(call, v, t, dtype)

    def upstream(name, x):
        given = upstream_of(call, name).to(dtypes[name]).double()
        if FUNCTIONS[call.function].like:
            return among_others(given, name, copies).to(x.dtype)
        each = given / call.shape[0] if call.reduction == "mean" else given
        return each.expand(call.shape[0]).repeat(copies).to(x.dtype)

    return results(call, function, {name: x.to(dtype) for name, x in wide.items()}, upstream)


# ---- what counts as right ----


def away_from_the_clamp(call, wide, t, grad):
    """False where rounding decides whether x_0_hat is clamped, and with it the gradient."""
    if call.clip is None or not (call.bound or call.function == "reverse_step"):
        return torch.ones_like(grad, dtype=torch.bool)
    out = wide["out"][:, : call.shape[1]]
    x_0 = plain.x_0_hat(out, wide["x_t"], t, SCHEDULE, call.prediction_type, torch.float64)
    far = (x_0.abs() - call.clip).abs() > 0.05
    return far if far.shape == grad.shape else torch.cat((far, torch.ones_like(far)), 1)


def tolerances(call, exact, eager):
    """Of each sample: twice eager's largest error. A loss, whose elements may all round in one direction as those of an
    expanded operand do, and its gradient get at least 1e-6 of the largest; the bound 1e-5, since a coefficient's rounding goes
    the same way in a whole sample. float64, which has no truth above it, gets 1e-10."""
    largest, error = (x.view(-1, call.shape[0], exact[0].numel()).amax((0, 2)) for x in (exact.abs(), (eager - exact).abs()))
    if call.arithmetic == torch.float64:
        return 1e-10 * largest
    least = 1e-5 if call.bound else 0 if FUNCTIONS[call.function].like else 1e-6
    return torch.maximum(2 * error, least * largest)


def assert_near(name, got, exact, tolerance):
    most = torch.finfo(got.dtype).max
    exact = exact.clamp(-most, most)
    error, allowed = (got.double().clamp(-most, most) - exact).abs(), tolerance + ulp(exact, got.dtype)
    worst = (error - allowed).nan_to_num(nan=torch.inf).argmax()
    values = [float(x.flatten()[worst]) for x in (got, exact, error, allowed)]
    assert values[2] <= values[3], "{}: got {} for {}, an error of {} where {} is allowed".format(name, *values)


REDUCE = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}


def check(call):
    function, v = FUNCTIONS[call.function], operands_of(call)
    given_t, t = call.indices()
    got, grads = ours(call, v, given_t)
    for x in got.values():
        like = v[function.like] if function.like else torch.empty(call.shape[:1] if call.reduction == "none" else ())
        assert (x.shape, x.stride()) == (like.shape, torch.empty_like(like).stride())
        assert x.dtype == (like.dtype if function.like else call.arithmetic)
    for name, grad in grads.items():
        assert (grad.shape, grad.dtype) == (v[name].shape, v[name].dtype)
    if 0 in call.shape:
        return

    copies = max(4, min(64, 2000 // v[function.operands[0]].numel()))
    wide = {name: among_others(x, name, copies) for name, x in numbers_of(call, v, t).items()}
    t = t.repeat(copies)
    if "out" in wide:
        wide["out"] = towards_the_bound(call, wide, t, v["out"].dtype)
    dtypes = {name: x.dtype for name, x in got.items()}
    exact, exact_grads = formulas(call, wide, t, torch.float64, dtypes)
    eager, eager_grads = formulas(call, wide, t, torch.float32, dtypes)
    batch, of_each = call.shape[0], (-1, *[1] * (len(call.shape) - 1))
    for name, x in got.items():
        tolerance = tolerances(call, exact[name], eager[name])
        if function.like:
            assert_near(name, x, exact[name][:batch], tolerance.view(of_each))
        else:
            reduce = REDUCE[call.reduction]
            assert_near(name, x, reduce(exact[name][:batch]), reduce(tolerance))
    for name, x in grads.items():
        far = away_from_the_clamp(call, wide, t, exact_grads[name])
        true, theirs = (each[name].where(far, 0) for each in (exact_grads, eager_grads))
        tolerance = tolerances(call, true, theirs).view(of_each)
        assert_near(f"the gradient of {name}", x.where(far[:batch], 0), true[:batch], tolerance)


every_run = settings(derandomize=True, deadline=None, database=None, max_examples=2000)


@every_run
@given(calls())
def test_any_call_is_its_formula(call):
    check(call)


@pytest.mark.slow
@settings(every_run, max_examples=20000)
@given(calls())
def test_twenty_thousand_calls_are_their_formulas(call):
    check(call)
