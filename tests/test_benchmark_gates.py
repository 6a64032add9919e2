"""No figure without a passing check: each part of each op's result is broken alone, and the suite's gates must see it."""

import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the suite is no part of the package

from benchmarks import gates, inputs, ops, peers, plan, solvers

FUSED, OWN_NOISE = ops.FUSED, "eager"
PARTS = {
    "noise": ("the noise",),
    "noising": ("x_t",),
    "mse": ("loss", "gradient"),
    "chain": ("x_t", "loss", "gradient"),
    "reverse": ("x_prev", "x_0_hat"),
    "hybrid": ("loss", "gradient"),
    "kl": ("loss", "gradient"),
    "bits_per_dim": ("vb", "mse", "the next x_t"),
    "flow": ("x_t", "loss", "gradient"),
    "edm": ("x_t", "loss", "gradient"),
    "guided": ("x_prev", "x_0_hat"),
    **dict.fromkeys(solvers.FORMULAS, ("x_prev without noise", "x_0_hat")),
}
NOISY = {"the noise", "x_t", "x_prev", "the next x_t"}
"""Of a provider with noise of its own, a little more of one is another draw and no mistake."""


def one_element(value):
    def change(x):
        x.view(-1)[-1] = value

    return change


def more(factor, of=lambda x: x):
    return lambda x: of(x).mul_(factor)


def smallest_sample(x):
    return x[x.abs().reshape(*x.shape[:1], -1).amax(-1).argmin()] if x.dim() else x


NOT_FINITE = {"a NaN": one_element(torch.nan), "an Inf": one_element(torch.inf), "a -Inf": one_element(-torch.inf)}
A_THOUSANDTH = {
    "0.1 % more": more(1.001),
    "0.1 % less": more(0.999),
    "0.1 % of its scale more": lambda x: x.add_(1e-3 * x.abs().max()),
    "its smallest sample 0.1 % more": more(1.001, smallest_sample),
}
A_TENTH = {"10 % more": more(1.1), "10 % less": more(0.9)}


def changes(table):
    return pytest.mark.parametrize("change", table.values(), ids=table)


def parts_of(*providers, without=frozenset()):
    found = [(op, part, who) for op, parts in PARTS.items() for part in parts for who in providers if part not in without]
    return pytest.mark.parametrize("op, part, provider", found)


half = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


@lru_cache
def batch(dtype="float32"):
    b = inputs.Batch((8, 3, 16, 16), dtype)
    b.t = torch.tensor([0, 1, 2, 50, 300, 600, 900, 999], device=b.device)  # samples of very different noise and gradient
    return b


@lru_cache
def right(op, provider, dtype="float32"):
    """The parts of a right result."""
    torch.manual_seed(0)
    result = ops.providers(op)[provider](batch(dtype))()
    return tuple(x.clone() for x in (result if isinstance(result, tuple) else (result,)))


def check(op, parts, provider, dtype="float32"):
    gates.check(op, parts if len(parts) > 1 else parts[0], batch(dtype), known_noise=provider != OWN_NOISE)


def must_be_seen(op, part, provider, change, dtype="float32"):
    parts = [x.clone() for x in right(op, provider, dtype)]
    change(parts[PARTS[op].index(part)])
    with pytest.raises(AssertionError):
        check(op, tuple(parts), provider, dtype)


def test_every_part_of_every_gate_is_here():
    assert {op: len(parts) for op, parts in PARTS.items()} == {op: len(right(op, FUSED)) for op in gates.GATES}


@pytest.mark.parametrize("provider", [FUSED, "eager", *peers.installed()])
@pytest.mark.parametrize("op", PARTS)
def test_what_is_timed_is_right(op, provider):
    if plan.has(op, provider):
        ops.make(op, provider, inputs.Batch((8, 3, 16, 16)))


@pytest.mark.parametrize("provider, dtype", [*((FUSED, dtype) for dtype in inputs.DTYPES), (OWN_NOISE, "float32")])
@pytest.mark.parametrize("op", PARTS)
def test_a_right_result_passes(op, provider, dtype):
    check(op, right(op, provider, dtype), provider, dtype)


@parts_of(FUSED)
@changes(A_THOUSANDTH)
def test_a_thousandth_is_seen(op, part, provider, change):
    must_be_seen(op, part, provider, change)


@parts_of(OWN_NOISE, without=NOISY)
@changes(A_THOUSANDTH)
def test_a_thousandth_is_seen_beside_noise_of_ones_own(op, part, provider, change):
    must_be_seen(op, part, provider, change)


@parts_of(FUSED)
@half
@changes(A_TENTH)
def test_a_tenth_is_seen_in_half_precision(op, part, provider, change, dtype):
    must_be_seen(op, part, provider, change, dtype)


@parts_of(FUSED, OWN_NOISE)
@changes(NOT_FINITE)
def test_a_value_that_is_not_finite_is_seen(op, part, provider, change):
    must_be_seen(op, part, provider, change)


@parts_of(FUSED)
@half
@changes(NOT_FINITE)
def test_a_value_that_is_not_finite_is_seen_in_half_precision(op, part, provider, change, dtype):
    must_be_seen(op, part, provider, change, dtype)


@pytest.mark.parametrize("op", ["noising", "chain"])
def test_noise_that_is_but_a_hundredth_of_its_x_t_is_seen(op):
    b = batch()
    added = (1 - b.schedule.alphas_cumprod[0]).sqrt() * b.noise[0]
    assert added.abs().max() < 0.05 * b.x_t[0].abs().max()
    must_be_seen(op, "x_t", FUSED, lambda x_t: x_t[0].add_(1e-3 * added))


def test_a_nan_in_what_is_expected_is_seen():
    b = inputs.Batch((8, 3, 16, 16))
    made = b.noise.clone()
    b.noise[0, 0, 0, 0] = torch.nan
    with pytest.raises(AssertionError):
        gates.check("noise", made, b, known_noise=True)


def test_a_gradient_of_few_steps_of_float16_is_right_to_a_step():
    b, step = inputs.Batch((512, 4, 64, 64), "float16"), 2.0**-24
    loss, grad = ops.make("mse", FUSED, b)()
    assert 2e-2 * float(grad.abs().max()) < step / 2  # rounding alone is beyond the tolerance
    with pytest.raises(AssertionError, match="the gradient"):
        gates.check("mse", (loss, grad + 2 * step), b, known_noise=True)


# ---- large batches, looked at in parts ----


@pytest.fixture
def three_samples_at_a_time(monkeypatch):
    monkeypatch.setattr(gates, "ELEMENTS", 3 * 3 * 16 * 16)


@pytest.mark.parametrize("provider", [FUSED, OWN_NOISE])
@pytest.mark.parametrize("op", PARTS)
def test_a_right_result_of_a_large_batch_passes(op, provider, three_samples_at_a_time):
    check(op, right(op, provider), provider)


@parts_of(FUSED)
@changes({"0.1 % more": more(1.001), **NOT_FINITE})
def test_a_wrong_part_of_a_large_batch_is_seen(op, part, provider, change, three_samples_at_a_time):
    must_be_seen(op, part, provider, change)


# ---- noise of a provider's own ----


@pytest.mark.parametrize("draw", [lambda z: z + 0.2, lambda z: 1.2 * z, lambda z: 0.8 * z], ids=["mean", "wider", "narrower"])
@pytest.mark.parametrize("op", [op for op, parts in PARTS.items() if NOISY & {*parts}])
def test_noise_that_is_not_normal_is_seen(op, draw, monkeypatch):
    torch.manual_seed(0)
    randn_like = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda x: draw(randn_like(x)))
    with pytest.raises(AssertionError, match="the noise has mean"):
        ops.make(op, "eager", inputs.Batch((8, 3, 16, 16)))


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_draw_may_be_off_by_five_standard_errors(sign):
    b = inputs.Batch((64, 4, 64, 64))
    z = (b.noise - b.noise.mean()) / b.noise.std()
    error = sign / b.elements**0.5
    for near, far in ((z + 4.5 * error, z + 5.5 * error), (z * (1 + 8 * error) ** 0.5, z * (1 + 9 * error) ** 0.5)):
        gates.check("noise", near, b, known_noise=False)
        with pytest.raises(AssertionError, match="the noise has mean"):
            gates.check("noise", far, b, known_noise=False)
