"""float64, and the kernels behind the op boundary."""

import pytest
import torch
from helpers import same_bits, spread, values
from interpreted import ON_CPU, SCHEDULE, calls, key, rows_q, same
from torch.library import opcheck

from fastddpm import coefficients, kernels, ops, reference


def test_float64_runs_the_reference():
    x, rows = values(2, 5, dtype=torch.float64), rows_q().double()
    same(kernels.noising(x, key(2), spread(2), rows), reference.noising(x, key(2), spread(2), rows))


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_opcheck(registered, exact):
    for name, arguments in calls():
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        opcheck(getattr(ops, name), arguments, test_utils=tests)


def test_a_training_step_through_the_ops(registered, exact):
    x, w, rows = values(2, 40), torch.tensor(0.7), coefficients.mse_rows(SCHEDULE, "epsilon", None, *ON_CPU)
    results = []
    for run in (ops, reference):
        t = run.timesteps(key(2), 1000)
        x_t = run.noising(x, key(2), t, rows_q())
        loss, grad = run.mse_loss(w * x_t, key(2), None, None, t, rows, ops.MEAN, True)
        results.append((x_t, loss, (grad * x_t).sum()))
    (x_t, *rest), (wanted_x_t, *wanted) = results
    assert same_bits(x_t, wanted_x_t)
    torch.testing.assert_close(rest, wanted, rtol=2e-6, atol=0)
