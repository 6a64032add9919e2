"""The mean squared error and its gradient."""

import pytest
import torch
from helpers import LAYOUTS, spread, ulp, values
from interpreted import DTYPES, IMAGE, ON_CPU, SCHEDULE, SIZES, changed, noise_of, same

from fastddpm import coefficients, kernels, ops, reference
from fastddpm.rows import MseRow

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
    rows = coefficients.mse_rows(SCHEDULE, name, None, *ON_CPU)
    rows = changed(MseRow, rows, w=torch.linspace(0.5, 2, len(rows)))
    x_0, x_t = (place(values(*shape, seed=n)) if needed else None for n, needed in ((2, needs_x_0), (3, needs_x_t)))
    return place(values(*shape, dtype=dtype)), noise_of(kind, shape), x_0, x_t, spread(shape[0]), rows


def check_mse(inputs, reduction):
    (loss, grad), (wanted, wanted_grad) = (k.mse_loss(*inputs, reduction, True) for k in (kernels, reference))
    double = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    exact, _ = reference.mse_loss(*double, reduction, False)
    assert loss.shape == wanted.shape and loss.dtype == torch.float32
    finite = exact.isfinite()
    assert torch.equal(loss.isfinite(), finite)
    allowed = 2 * (wanted - exact).abs()[finite] + 2 * ulp(exact, torch.float32)[finite]
    assert bool(((loss - exact).abs()[finite] <= allowed).all())
    same(grad, wanted_grad)
    upstream = torch.rand(exact.shape) + 0.5
    same(*(k.mse_loss_backward(*inputs, reduction, upstream) for k in (kernels, reference)))


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
        same(*(k.mse_loss_backward(*inputs, ops.NONE, upstream) for k in (kernels, reference)))


def test_a_loss_without_its_gradient_is_the_same():
    inputs = mse_inputs("epsilon", (3, 300), torch.bfloat16)
    (loss, grad), (with_grad, _) = (kernels.mse_loss(*inputs, ops.NONE, wanted) for wanted in (False, True))
    assert torch.equal(loss, with_grad) and grad.shape == (0,) and grad.dtype == torch.bfloat16


def test_a_loss_has_the_same_bits_in_any_batch():
    """Of so many samples that their cut would be coarser than one's, did it depend on them (2^20 elements)."""
    out, noise, _, _, t, rows = mse_inputs("epsilon of a tensor", (64, 16_400))

    def of(part):
        return kernels.mse_loss(out[part], noise[part], None, None, t[part], rows, ops.NONE, False)[0]

    whole = of(slice(None))
    assert torch.equal(whole[[0, 63]], torch.cat((of(slice(0, 1)), of(slice(63, 64)))))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_is_scaled_in_place(exact, layout, dtype):
    for upstream in (torch.tensor(1.0), torch.tensor(0.3), torch.tensor([1.0, 2.5, float("nan")]), torch.rand(6)[::2]):
        grad, wanted = (LAYOUTS[layout](values(*IMAGE, dtype=dtype)) for _ in range(2))
        memory = grad.data_ptr()
        kernels.scale_grad_(grad, upstream)
        reference.scale_grad_(wanted, upstream)
        same(grad, wanted)
        assert grad.data_ptr() == memory


def test_a_gradient_made_with_the_loss_and_scaled_is_the_backward_s(exact):
    inputs, upstream = mse_inputs("v", (3, 300)), torch.rand(3) + 0.5
    grad = kernels.mse_loss(*inputs, ops.NONE, True)[1]
    kernels.scale_grad_(grad, upstream)
    same(grad, kernels.mse_loss_backward(*inputs, ops.NONE, upstream))
