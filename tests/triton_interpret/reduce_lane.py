"""The end of a loss: its shares are added in one launch or, where they are many, in two."""

import pytest
import torch
from fastddpm.kernels.reduce import finish, finish_hybrid
from helpers import ulp, values

from fastddpm import ops


@pytest.mark.parametrize("count", [2, 128, 129, 1025, 4096, 4097, 3 * 4096, 9000])
def test_every_share_is_added_once(count):
    shares = values(3, count) + 1
    each, mean, total = (finish(shares.view(-1), 3, r) for r in (ops.NONE, ops.MEAN, ops.SUM))
    exact = shares.double().sum(1)
    for got, wanted in ((each, exact), (mean, exact.mean()), (total, exact.sum())):
        assert got.shape == wanted.shape
        assert bool(((got - wanted).abs() <= 8 * ulp(wanted, torch.float32)).all())


@pytest.mark.parametrize("count", [300, 9000])
def test_a_loss_s_sum_has_the_same_bits_beside_any_other(count):
    shares = values(3, count)
    whole = finish(shares.view(-1), 3, ops.NONE)
    assert torch.equal(whole, torch.cat([finish(sample, 1, ops.NONE) for sample in shares]))


@pytest.mark.parametrize("count", [300, 9000])
def test_the_hybrid_s_parts_are_summed_as_one_alone(count):
    mse, vlb = values(2 * count), values(2 * count, seed=1)
    loss, *parts = finish_hybrid(mse, vlb, 2, ops.NONE, 0.5)
    assert torch.equal(torch.stack(parts), torch.stack([finish(x, 2, ops.NONE) for x in (mse, vlb)]))
    assert torch.equal(loss, parts[0] + 0.5 * parts[1])
