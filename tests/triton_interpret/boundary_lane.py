"""float64, and the kernels behind the op boundary."""

import pytest
import torch
from helpers import spread, values
from interpreted import ON_CPU, SCHEDULE, calls, key, rows_q, same
from torch.library import opcheck

from fastddpm import _triton, autograd, coefficients, ops, reference


def test_float64_runs_the_reference():
    x, rows = values(2, 5, dtype=torch.float64), rows_q().double()
    given = (x, key(2), spread(2), rows)
    same(_triton.kernel("noising")(*given), reference.noising(*given))


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_opcheck(registered, exact):
    for name, arguments in calls():
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        opcheck(getattr(ops, name), arguments, test_utils=tests)


def test_a_training_step_through_the_ops(registered, exact):
    """Its gradient made in the forward, and in the backward: a loss of half precision waits for it."""
    x, rows = values(2, 40), coefficients.mse_rows(SCHEDULE, "epsilon", None, *ON_CPU)
    t = ops.timesteps(key(2), 1000)
    x_t = ops.noising(x, key(2), t, rows_q())
    same(x_t, reference.noising(x, key(2), reference.timesteps(key(2), 1000), rows_q()))
    for dtype in (torch.float32, torch.bfloat16):
        out = (0.7 * x_t).to(dtype).requires_grad_()
        target = (key(2), None, None, t, rows, ops.MEAN)
        loss = autograd.mse_loss(out, *target)
        loss.backward(torch.tensor(3.0))
        wanted, grad = reference.mse_loss(out.detach(), *target, True)
        torch.testing.assert_close(loss.detach(), wanted, rtol=2e-6, atol=0)
        torch.testing.assert_close(out.grad, 3 * grad, rtol=2 * torch.finfo(dtype).eps, atol=0)
