"""Between a forward and its backward: a second backward, changes in place, keys that were advanced, second derivatives,
recomputation, and what is recorded."""

import re
import weakref

import pytest
import torch
from helpers import DTYPES, FLOATS, LAYOUTS, leaf, same_bits, spread, values, wide
from torch.autograd import gradgradcheck
from torch.utils.checkpoint import checkpoint

from fastddpm import (
    NoiseSchedule,
    advance,
    hybrid_loss,
    mse_loss,
    noise_key,
    q_sample,
    q_step,
    reverse_step,
    samplers,
    vlb_loss,
)
from fastddpm.functional import REDUCTIONS

SCHEDULE = NoiseSchedule.linear(1000)
ROWS = samplers.ddpm(SCHEDULE)
CHANGED_IN_PLACE = "modified by an inplace operation|changed in place"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("upstream", [1.0, 0.37])
def test_a_second_backward_gives_the_same_bits(dtype, upstream):
    out, t, key, x_0 = leaf(3, 2, 5, 5, dtype=dtype), spread(3), noise_key(1, 2, 3), values(3, 2, 5, 5, seed=1)
    loss = mse_loss(out, t, SCHEDULE, key, x_0, prediction_type="v_prediction", weight="min_snr") * upstream
    first, second, third = (torch.autograd.grad(loss, out, retain_graph=True)[0].clone() for _ in range(3))
    assert same_bits(first, second) and same_bits(first, third)


def test_a_second_backward_leaves_the_first_gradient_alone():
    out, t, key = leaf(3, 33), spread(3), noise_key(1, 2, 3)
    loss = mse_loss(out, t, SCHEDULE, key)
    (first,) = torch.autograd.grad(loss, out, torch.tensor(2.0), retain_graph=True)
    before = first.clone()
    torch.autograd.grad(loss, out, torch.tensor(5.0))
    assert same_bits(first, before)


def test_gradients_accumulate():
    out, t, key = leaf(3, 33), spread(3), noise_key(1, 2, 3)
    loss = mse_loss(out, t, SCHEDULE, key)
    (one,) = torch.autograd.grad(loss, out, retain_graph=True)
    one = one.clone()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    mse_loss(out, t, SCHEDULE, key).backward()
    torch.testing.assert_close(out.grad, 3 * one, rtol=1e-6, atol=0)


def right_or_refused(loss, weight, expected):
    """The gradient of the loss as it was, or an error: never another gradient."""
    try:
        (grad,) = torch.autograd.grad(loss, weight, retain_graph=True)
    except RuntimeError as error:
        assert re.search(CHANGED_IN_PLACE, str(error))
    else:
        assert same_bits(grad, expected)


@pytest.mark.parametrize("changed", ["model_output", "x_0", "t", "noise", "key"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_an_input_changed_in_place_gives_no_wrong_gradient(changed, dtype):
    """Neither in the first backward nor in a second one."""
    weight = leaf(3, 33, dtype=dtype)
    inputs = {"model_output": weight * 1, "t": spread(3) // 2, "x_0": values(3, 33, dtype=dtype)}
    inputs["noise"] = values(3, 33, seed=2) if changed == "noise" else noise_key(1, 2, 3)

    def loss_now():
        return mse_loss(**inputs, schedule=SCHEDULE, prediction_type="v_prediction")

    (expected,) = torch.autograd.grad(loss_now(), weight, retain_graph=True)
    twice, once = loss_now(), loss_now()
    torch.autograd.grad(twice, weight, retain_graph=True)
    inputs["noise" if changed == "key" else changed].detach().add_(1)
    right_or_refused(once, weight, expected)
    right_or_refused(twice, weight, expected)
    assert not torch.equal(torch.autograd.grad(loss_now(), weight)[0], expected), "the change changed nothing"


def test_a_loss_that_is_kept_keeps_nothing_else():
    """Its backward lets go of the network's output and of the data, as torch's own losses do."""
    weight, x_0 = leaf(3, 33), values(3, 33)
    out = weight * 1
    kept = [weakref.ref(out), weakref.ref(x_0)]
    loss = mse_loss(out, spread(3), SCHEDULE, noise_key(1, 2, 3), x_0, prediction_type="v_prediction")
    del out, x_0
    loss.backward()
    assert loss.isfinite() and not any(ref() is not None for ref in kept)


def test_a_reverse_steps_input_changed_in_place_is_an_error():
    weight = leaf(3, 33)
    out, x = weight * 1, values(3, 33, seed=1)
    x_prev, _ = reverse_step(out, x, 5, ROWS, noise_key(1, 2, 3))
    x.add_(1)
    with pytest.raises(RuntimeError, match=CHANGED_IN_PLACE):
        x_prev.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("loss", ["mse", "vlb", "hybrid"])
def test_a_backward_sees_the_key_as_its_forward_did(loss, dtype):
    """Whoever advances it between: the first backward and a second one."""
    out, x_0, x_t, t = leaf(3, 4, 5, dtype=dtype), values(3, 2, 5, dtype=dtype, seed=1), values(3, 2, 5, seed=2), spread(3)

    def loss_now(key):
        if loss == "mse":
            return mse_loss(out[:, :2], t, SCHEDULE, key)
        if loss == "vlb":
            return vlb_loss(out, x_0, key, t, SCHEDULE, variance_type="learned_range")
        return hybrid_loss(out, x_0, x_t, t, SCHEDULE, key)["loss"]

    (expected,) = torch.autograd.grad(loss_now(noise_key(1, 2, 3)), out)
    key = noise_key(1, 2, 3)
    result = loss_now(key)
    advance(key)
    first, second = (torch.autograd.grad(result, out, retain_graph=True)[0].clone() for _ in range(2))
    assert same_bits(first, expected)
    torch.testing.assert_close(second, expected, rtol=1e-6 if dtype is torch.float32 else 0, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_reverse_steps_backward_sees_the_key_as_its_forward_did(dtype):
    out, x, key = leaf(3, 4, 5, dtype=dtype), leaf(3, 2, 5, seed=1, dtype=dtype), noise_key(1, 2, 3, stream="reverse")
    rows = samplers.ddpm(SCHEDULE, variance_type="learned_range")
    expected = torch.autograd.grad(reverse_step(out, x, 5, rows, key)[0].sum(), (out, x))
    x_prev, _ = reverse_step(out, x, 5, rows, key)
    advance(key)
    assert all(map(same_bits, torch.autograd.grad(x_prev.sum(), (out, x)), expected))


# ---- second derivatives (a gradient penalty wants them) ----


def test_gradgradcheck_mse_loss():
    out, t, key = leaf(3, 5, **wide), spread(3), noise_key(1, 2, 3)
    for reduction in REDUCTIONS:
        assert gradgradcheck(lambda out, r=reduction: mse_loss(out, t, SCHEDULE, key, reduction=r), out)


def test_gradgradcheck_noising():
    x, t, key = leaf(3, 5, **wide), spread(3), noise_key(1, 2, 3)
    assert gradgradcheck(lambda x: q_sample(x, t, SCHEDULE, key), x)
    assert gradgradcheck(lambda x: q_step(x, t, SCHEDULE, key), x)


@pytest.mark.parametrize("variance_type", ["fixed_large", "learned_range"])
def test_gradgradcheck_reverse_step(variance_type):
    out, x = leaf(3, 4 if variance_type == "learned_range" else 2, 3, **wide), leaf(3, 2, 3, seed=1, **wide)
    rows = samplers.ddpm(SCHEDULE, "v_prediction", variance_type)
    t, key = torch.tensor([0, 200, 400]), noise_key(1, 2, 3)
    assert gradgradcheck(lambda out, x: reverse_step(out, x, t, rows, key), (out, x))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_second_derivatives_in_every_dtype(dtype):
    """Of a sum of squares' gradient: 2 w / D, and a^2 for noising."""
    out, t, key = leaf(3, 8, dtype=dtype), spread(3), noise_key(1, 2, 3)
    (grad,) = torch.autograd.grad(mse_loss(out, t, SCHEDULE, key, reduction="sum"), out, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), out)
    torch.testing.assert_close(second, torch.full_like(out, 0.25))
    (grad,) = torch.autograd.grad(q_sample(out, t, SCHEDULE, key).float().square().sum(), out, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), out)
    expected = 2 * SCHEDULE.alphas_cumprod[t, None].expand(3, 8)
    torch.testing.assert_close(second.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


# ---- what is recorded, and where a gradient lies ----


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_recorded(context):
    out, t, key = leaf(3, 33), spread(3), noise_key(1, 2, 3)
    with context():
        quiet = mse_loss(out, t, SCHEDULE, key), q_sample(out, t, SCHEDULE, key), *reverse_step(out, out, 5, ROWS, key)
    plain_inputs = out.detach()
    unasked = mse_loss(plain_inputs, t, SCHEDULE, key), q_sample(plain_inputs, t, SCHEDULE, key)
    assert not any(result.requires_grad for result in (*quiet, *unasked))
    recorded = mse_loss(out, t, SCHEDULE, key), q_sample(out, t, SCHEDULE, key)
    for a, b, c in zip(quiet, unasked, recorded, strict=False):
        assert same_bits(a, b) and same_bits(a, c.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_key_made_in_inference_mode_trains(dtype):
    with torch.inference_mode():
        made = noise_key(1, 2, 3)
    grads = []
    for key in (made, noise_key(1, 2, 3)):
        out = leaf(3, 33, dtype=dtype)
        mse_loss(out, spread(3), SCHEDULE, key).backward()
        grads.append(out.grad)
    assert same_bits(*grads)


def test_x_0_left_out_needs_no_gradient():
    out = leaf(3, 33)
    x_prev, nothing = reverse_step(out, out, 5, ROWS, noise_key(1, 2, 3), return_x_0=False)
    (grad,) = torch.autograd.grad(x_prev.sum(), out)
    both, _ = reverse_step(out, out, 5, ROWS, noise_key(1, 2, 3))
    assert nothing is None and same_bits(grad, torch.autograd.grad(both.sum(), out)[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_gradient_lies_in_memory_as_its_input(layout):
    out = LAYOUTS[layout](values(2, 3, 4, 4)).requires_grad_()
    for result in (
        mse_loss(out, 5, SCHEDULE, noise_key(1, 2, 2)),
        reverse_step(out, out.detach(), 5, ROWS, "none")[0].square().sum(),
    ):
        assert torch.autograd.grad(result, out)[0].stride() == out.stride()


def test_gradients_under_checkpointing():
    """The forward runs twice; the noise is the same both times, being the key's."""
    weight, t, key = leaf(33), spread(3), noise_key(1, 2, 3)

    def loss_of(weight):
        x_t = q_sample(weight.expand(3, 33), t, SCHEDULE, key)
        return mse_loss(x_t * weight, t, SCHEDULE, key)

    (expected,) = torch.autograd.grad(loss_of(weight), weight)
    (got,) = torch.autograd.grad(checkpoint(loss_of, weight, use_reentrant=False), weight)
    assert same_bits(got, expected)
