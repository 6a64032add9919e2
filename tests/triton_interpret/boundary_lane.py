"""float64, and the kernels behind the op boundary."""

import pytest
import torch
from helpers import LAYOUTS, same_bits, spread, values
from interpreted import CPU, SCHEDULE, key, rows_q, same
from torch.library import opcheck

from fastddpm import autograd, kernels, ops, reference, samplers


def test_float64_runs_the_reference():
    x, rows = values(2, 5, dtype=torch.float64), rows_q().double()
    same(kernels.noising(x, key(2), spread(2), rows), reference.noising(x, key(2), spread(2), rows))


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_opcheck(registered, exact):
    x, out = (LAYOUTS["channels_last"](values(2, 3, 2, 2, seed=n)) for n in range(2))
    both = LAYOUTS["channels_last"](values(2, 6, 2, 2, seed=3))
    t, noise, mse = spread(2), key(2), SCHEDULE.mse_rows("v_prediction", None, CPU, torch.float32)
    bound = SCHEDULE.vlb_rows("epsilon", "learned_range", True, "posterior", None, CPU, torch.float32)
    terms = (both, x, None, noise, t, bound, False)
    rows = samplers.ddpm(SCHEDULE).on(CPU, torch.float32)
    learned = samplers.ddpm(SCHEDULE, variance_type="learned").on(CPU, torch.float32)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for op, arguments in (
        (ops.fill_key_, (torch.empty(3, 2, dtype=torch.int64), 7, 1 << 40)),
        (ops.advance_, (key(2), 3)),
        (ops.timesteps, (key(2), 1000)),
        (ops.randn_, (torch.empty_like(x), noise)),
        (ops.noising, (x, noise, t, rows_q())),
        (ops.mse_loss, (out, noise, x, None, t, mse, ops.MEAN)),
        (ops.mse_loss_backward, (torch.ones(2), out, noise, x, None, t, mse, ops.NONE)),
        (ops.reverse_step, (out, x.contiguous(), noise, t, rows, True)),
        (ops.reverse_step_backward, (x, None, out, x.contiguous(), None, t, rows)),
        (ops.reverse_step_backward, (x, None, both, x.contiguous(), noise, t, learned)),
        (ops.vlb_loss, (*terms, ops.MEAN)),
        (ops.vlb_loss_backward, (torch.ones(2), *terms, ops.NONE)),
        (ops.hybrid_loss, (*terms, 1e-3, ops.NONE)),
        (ops.hybrid_loss_backward, (torch.ones(()), None, torch.ones(()), *terms, 1e-3, ops.SUM)),
        (ops.vlb_terms, (*terms, noise, t)),
        (ops.vlb_terms, (*terms, None, None)),
    ):
        opcheck(op, arguments, test_utils=tests)


def test_a_training_step_through_the_ops(registered, exact):
    x, weight = values(2, 40), torch.tensor(0.7)
    results = []
    for run in (ops, reference):
        w = weight.clone().requires_grad_()
        t = run.timesteps(key(2), 1000)
        x_t = run.noising(x, key(2), t, rows_q())
        inputs = (w * x_t, key(2), None, None, t, SCHEDULE.mse_rows("epsilon", None, CPU, torch.float32))
        if run is ops:
            loss = autograd.MseLoss.apply(*inputs, ops.MEAN)
            loss.backward()
            results.append((x_t, loss.detach(), w.grad))
        else:
            out = inputs[0].detach()
            grad = run.mse_loss_backward(torch.ones(()), out, *inputs[1:], ops.MEAN)
            results.append((x_t, run.mse_loss(out, *inputs[1:], ops.MEAN), (grad * x_t).sum()))
    (x_t, *rest), (wanted_x_t, *wanted) = results
    assert same_bits(x_t, wanted_x_t)
    torch.testing.assert_close(rest, wanted, rtol=2e-6, atol=0)
