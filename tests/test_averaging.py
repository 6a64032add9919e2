"""ema_update_: the formula in every dtype, by one call a group, without a host read; and its errors."""

import pytest
import torch
from helpers import DTYPES, same_bits, values
from torch.utils._python_dispatch import TorchDispatchMode

from fastddpm import ema_update_

META = torch.device("meta")


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def pairs(dtypes=(torch.float32,), seed=0):
    shapes = ((3, 4), (), (0, 2), (5,))
    return [values(*shape, dtype=dtype, seed=seed + n) for dtype in dtypes for n, shape in enumerate(shapes)]


@pytest.mark.parametrize("decay", [0.9, 0, 1, torch.tensor(0.9), torch.tensor(0.9, dtype=torch.float64)], ids=repr)
def test_each_average_moves_towards_its_parameter(decay):
    """Of several dtypes at once; in place, leaves and all."""
    averaged, params = pairs(DTYPES), pairs(DTYPES, seed=9)
    expected = [
        mine.double() * float(decay) + new.double() * (1 - float(decay)) for mine, new in zip(averaged, params, strict=True)
    ]
    leaves = [torch.nn.Parameter(x) for x in averaged]
    assert ema_update_(iter(leaves), iter(params), decay) is None
    for mine, leaf, true in zip(averaged, leaves, expected, strict=True):
        assert leaf.data_ptr() == mine.data_ptr() and leaf.grad_fn is None
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=4 * torch.finfo(mine.dtype).eps)


def test_it_is_torchs_lerp():
    averaged, params = pairs(), pairs(seed=9)
    expected = [mine.lerp(new, 1 - 0.999) for mine, new in zip(averaged, params, strict=True)]
    ema_update_(averaged, params, 0.999)
    assert all(map(same_bits, averaged, expected))


def test_bfloat16_weights_may_have_a_float32_average():
    averaged, params = pairs(), pairs((torch.bfloat16,), seed=9)
    expected = [mine.lerp(new.float(), 0.25) for mine, new in zip(averaged, params, strict=True)]
    ema_update_(averaged, params, 0.75)
    assert all(map(same_bits, averaged, expected))


@pytest.mark.parametrize("decay", [0.9, torch.tensor(0.9)], ids=["number", "tensor"])
def test_one_call_a_dtype_and_no_host_read(decay):
    averaged, params = pairs((torch.float32, torch.float64)), pairs((torch.float32, torch.float64), seed=9)
    with Ops() as ops:
        ema_update_(averaged, params, decay)
    assert ops.seen.count("_foreach_lerp_") == 2 and "_local_scalar_dense" not in ops.seen


def test_nothing_to_average():
    ema_update_([], [], 0.9)


X = torch.zeros(2, 3)
CASES = {
    "a module": (
        (torch.nn.Linear(1, 1), [X], 0.9),
        TypeError,
        r"averaged: expected tensors such as module.parameters\(\), got Linear",
    ),
    "a tensor": (([X], X, 0.9), TypeError, r"params: expected tensors such as module.parameters\(\), got float32 \[2, 3\]"),
    "a name": (([X], ["weight"], 0.9), TypeError, r"params\[0\]: expected a floating tensor, got str"),
    "a counter": (([X, X.long()], [X, X], 0.9), TypeError, r"averaged\[1\]: expected a floating tensor, got int64 \[2, 3\]"),
    "fewer": (([X, X], [X], 0.9), ValueError, r"params: expected 2 tensors \(one for each average\), got 1"),
    "another shape": (
        ([X], [X[0]], 0.9),
        ValueError,
        r"params\[0\]: expected its average's \[2, 3\] on cpu, got float32 \[3\]",
    ),
    "elsewhere": (([X], [X.to(META)], 0.9), ValueError, r"params\[0\]: expected its average's \[2, 3\] on cpu, got .* on meta"),
    "decay too large": (([X], [X], 1.5), ValueError, r"decay: expected a number in \[0, 1\], got 1.5"),
    "decay nan": (([X], [X], float("nan")), ValueError, r"decay: expected a number in \[0, 1\], got nan"),
    "decay a bool": (([X], [X], True), TypeError, "decay: expected a number or a floating tensor of no dimension, got bool"),
    "decay of each": (([X], [X], torch.ones(1)), TypeError, r"decay: expected a number or .*, got float32 \[1\]"),
    "decay an int": (([X], [X], torch.tensor(1)), TypeError, r"decay: expected a number or .*, got int64 \[\]"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    arguments, error, message = CASES[case]
    before = X.clone()
    with pytest.raises(error, match=message):
        ema_update_(*arguments)
    assert torch.equal(X, before)
