"""Every function takes its operands as they come: t in every form, mixed dtypes, batches empty or split, NaN."""

import itertools

import pytest
import torch
from helpers import DTYPES, KINDS, LAYOUTS, assert_unread, noise_of, same_bits, spread, threads, values

from fastddpm import (
    NoiseSchedule,
    hybrid_loss,
    mse_loss,
    noise_key,
    ops,
    q_sample,
    q_step,
    reference,
    reverse_step,
    samplers,
    vlb_loss,
)

T = 1000
SCHEDULE = NoiseSchedule.linear(T)


# ---- every way of giving t ----


def calls(shape, t, dtype=torch.float32, noise=None):
    """Each function once: its elementwise outputs by name, and its loss."""
    noise = noise_key(1, 2, shape[0]) if noise is None else noise
    out, x = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    return _calls(out, x, t, noise)


LOSS_NAMES = ("loss", "vlb", "hybrid")
"""Of the outputs of `_calls` those that are `[B]`: their sums run in memory's order."""


def _calls(out, x, t, noise):
    x_prev, x_0 = reverse_step(out, x, t, samplers.ddpm(SCHEDULE), noise)
    both, learned = torch.cat((out, out), 1), samplers.ddpm(SCHEDULE, variance_type="learned_range")
    x_t = noise if noise.dtype == torch.int64 else q_sample(x, t, SCHEDULE, noise)
    kwargs = {"prediction_type": "v_prediction", "reduction": "none"}
    return {
        "q_sample": q_sample(x, t, SCHEDULE, noise),
        "q_step": q_step(x, t, SCHEDULE, noise),
        "x_prev": x_prev,
        "x_0": x_0,
        "learned": reverse_step(both, x, t, learned, noise)[0],
        "loss": mse_loss(out, t, SCHEDULE, noise, x, weight="min_snr", **kwargs),
        "vlb": vlb_loss(out, x, x_t, t, SCHEDULE, variance_type="fixed_large", **kwargs),
        "hybrid": hybrid_loss(both, x, x_t, t, SCHEDULE, noise, variance_type="learned_range", **kwargs)["loss"],
    }


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert not [name for name in a if not same_bits(a[name], b[name])]


@pytest.mark.parametrize("value", [0, 1, 500, T - 1])
def test_t_as_any_integer_tensor_or_int(value):
    expected = calls((3, 2, 5), torch.full((3,), value))
    narrow = torch.full((6,), value, dtype=torch.int32)
    for t in (
        value,
        torch.tensor(value),
        torch.tensor([value]),
        narrow[:3],
        narrow[::2],
        torch.tensor([value]).expand(3),
    ):
        assert_same(calls((3, 2, 5), t), expected)


def test_every_sample_has_its_own_t():
    t = torch.tensor([T - 1, 0, 17, 500, 1])
    together = calls((5, 33), t)
    for b in range(5):
        with_one_t = calls((5, 33), int(t[b]))
        assert all(same_bits(together[name][b], with_one_t[name][b]) for name in together)


@pytest.mark.parametrize("bad", [-1, T, 2**31 - 1, -(2**31)])
def test_t_out_of_range_is_an_index_error(bad):
    for dtype, form in itertools.product((torch.int32, torch.int64), ("batch", "one", "int")):
        t = {"batch": torch.tensor([0, bad, 5], dtype=dtype), "one": torch.tensor([bad], dtype=dtype), "int": bad}[form]
        x, key = values(3, 5), noise_key(1, 2, 3)
        for call in (
            lambda x=x, t=t, key=key: q_sample(x, t, SCHEDULE, key),
            lambda x=x, t=t, key=key: q_step(x, t, SCHEDULE, key),
            lambda x=x, t=t, key=key: mse_loss(x, t, SCHEDULE, key),
            lambda x=x, t=t, key=key: mse_loss(x.clone().requires_grad_(), t, SCHEDULE, key),
            lambda x=x, t=t, key=key: reverse_step(x, x, t, samplers.ddpm(SCHEDULE), key),
            lambda x=x, t=t, key=key: vlb_loss(x, x, key, t, SCHEDULE),
            lambda x=x, t=t, key=key: hybrid_loss(x, x, key, t, SCHEDULE, variance_type="fixed_small"),
        ):
            with pytest.raises(IndexError, match=rf"expected 0 .. 999, got {bad}$"):
                call()


# ---- dtypes, and the layout of keys and t ----


MIXED_DTYPES = list(itertools.product(DTYPES, DTYPES, (torch.float32, torch.bfloat16, "key")))


@pytest.mark.parametrize(("out", "x", "z"), MIXED_DTYPES)
def test_operands_of_mixed_dtypes(out, x, z):
    """Each is widened to the arithmetic of the first (float64 or float32), and the result is cast to the first's dtype."""
    shape, t = (3, 130), spread(3)
    out, x = values(*shape, dtype=out), values(*shape, dtype=x, seed=1)
    noise = noise_key(1, 2, 3) if z == "key" else values(*shape, dtype=z, seed=2)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if wide == torch.float64 else {"rtol": 0, "atol": 0}
    x_t = q_sample(x, t, SCHEDULE, noise)
    expected = q_sample(x.to(wide), t, SCHEDULE, noise if z == "key" else noise.to(wide)).to(x.dtype)
    torch.testing.assert_close(x_t, expected, **tolerance)
    x_prev, x_0 = reverse_step(out, x, t, samplers.ddpm(SCHEDULE), noise)
    widened = reverse_step(out.to(wide), x.to(wide), t, samplers.ddpm(SCHEDULE), noise)
    torch.testing.assert_close(x_prev, widened[0].to(x.dtype), **tolerance)
    torch.testing.assert_close(x_0, widened[1].to(x.dtype), **tolerance)
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    loss = mse_loss(out, t, SCHEDULE, noise, x, prediction_type="v_prediction")
    widened = mse_loss(out.to(wide), t, SCHEDULE, noise, x.to(wide), prediction_type="v_prediction")
    torch.testing.assert_close(loss, widened, rtol=1e-12 if wide == torch.float64 else 0, atol=0)
    assert (x_t.dtype, x_prev.dtype, x_0.dtype, loss.dtype) == (x.dtype, x.dtype, x.dtype, wide)


def test_a_key_or_a_t_in_strided_memory():
    keys, ts = noise_key(1, 2, 6), torch.arange(0, 12)
    got = calls((3, 33), ts[::4], noise=keys[::2])
    assert_same(got, calls((3, 33), ts[::4].contiguous(), noise=keys[::2].contiguous()))
    turned = noise_key(1, 2, 3).t().contiguous().t()
    assert_same(calls((3, 33), ts[:3], noise=turned), calls((3, 33), ts[:3]))


# ---- batches ----


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,), (0, 3, 8, 8), (2, 0, 4, 4)], ids=str)
def test_empty_batches_and_empty_samples(shape):
    for dtype, kind in itertools.product(DTYPES, KINDS):
        x, t = values(*shape, dtype=dtype).requires_grad_(), torch.zeros(shape[0], dtype=torch.int64)
        noise, _ = noise_of(kind, shape, dtype)
        assert q_sample(x, t, SCHEDULE, noise).shape == shape
        x_prev, x_0 = reverse_step(x, x, t, samplers.ddpm(SCHEDULE), noise)
        assert x_prev.shape == x_0.shape == shape
        loss = mse_loss(x, t, SCHEDULE, noise, reduction="none")
        assert loss.shape == shape[:1]
        bound = hybrid_loss(x, x.detach(), x.detach(), t, SCHEDULE, noise, variance_type="fixed_small", reduction="none")
        assert all(part.shape == shape[:1] for part in bound.values())
        for reduction in ("mean", "sum"):
            assert mse_loss(x, t, SCHEDULE, noise, reduction=reduction).shape == ()
            assert vlb_loss(x, x.detach(), x.detach(), t, SCHEDULE, reduction=reduction).shape == ()
        (loss.sum() + bound["loss"].sum() + q_sample(x, t, SCHEDULE, noise).sum() + x_prev.sum()).backward()
        assert x.grad.shape == shape


def test_an_empty_batchs_loss_is_torchs():
    empty, key = values(0, 3, 4), noise_key(1, 2, 0)
    t = torch.zeros(0, dtype=torch.int64)
    assert mse_loss(empty, t, SCHEDULE, key).isnan() and float(mse_loss(empty, t, SCHEDULE, key, reduction="sum")) == 0


@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 17, 9), (12, 2500)], ids=str)
def test_a_batch_split_in_two_computes_the_same(shape):
    """To the bit, the loss of each sample too."""
    out, x, t, key = values(*shape), values(*shape, seed=1), spread(12), noise_key(1, 2, 12)
    whole = _calls(out, x, t, key)
    parts = [_calls(out[s], x[s], t[s], key[s]) for s in (slice(0, 5), slice(5, 12))]
    assert_same(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_has_the_same_bits_on_any_number_of_threads(reduction):
    out, key = values(7, 30001), noise_key(1, 2, 7)
    losses = []
    for count in (1, 2, 5):
        with threads(count):
            losses.append(mse_loss(out, spread(7), SCHEDULE, key, reduction=reduction))
    assert same_bits(losses[0], losses[1]) and same_bits(losses[0], losses[2])


# ---- NaN and infinity ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_nan_stays_in_its_sample(bad, layout, dtype):
    shape, t, key = (3, 2, 5, 3), spread(3), noise_key(1, 2, 3)
    out, x = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    place = LAYOUTS[layout]
    clean = _calls(place(out), place(x), t, key)
    x[1, 1, 2, 0] = bad
    dirty = _calls(place(out), place(x), t, key)
    for name, value in dirty.items():
        assert same_bits(value[[0, 2]], clean[name][[0, 2]]), name
        if name in LOSS_NAMES:
            assert not value[1].isfinite()
        else:
            touched = torch.zeros(shape, dtype=torch.bool)
            touched[1, 1, 2, 0] = True
            assert same_bits(value[~touched], clean[name][~touched])
            if bad != bad:
                assert value[touched].isnan().all(), name
    if bad == bad:
        assert not dirty["q_sample"][1, 1, 2, 0].isfinite()


@pytest.mark.parametrize("k", [ops, reference], ids=["kernel", "reference"])
def test_an_operand_whose_coefficients_are_0_may_hold_anything(k):
    assert_unread(k)


def test_a_nan_in_the_output_is_not_clipped_away():
    out, x = values(2, 9), values(2, 9, seed=1)
    out[0, 8] = torch.nan
    x_prev, x_0 = reverse_step(out, x, 500, samplers.ddpm(SCHEDULE), noise_key(1, 2, 2))
    assert x_prev[0, 8].isnan() and x_0[0, 8].isnan() and int(x_prev.isnan().sum() + x_0.isnan().sum()) == 2
