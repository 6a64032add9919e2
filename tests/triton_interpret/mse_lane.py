"""The mean squared error and its gradient."""

import pytest
import torch
from helpers import LAYOUTS, spread, ulp, values
from interpreted import CPU, DTYPES, IMAGE, SCHEDULE, SIZES, noise_of, same

from fastddpm import kernels, ops, reference

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
