"""The optimizer's step: the reference's to an ulp or two, its norm and its sizes by a launch before."""

import pytest
import torch
from fastddpm.kernels import adamw
from helpers import values

from fastddpm import kernels, reference

SHAPES = ((3,), (2, 1500), (4, 3, 5, 5), (0,), (7,))


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter runs them one by one."""
    monkeypatch.setattr(adamw, "_SHARES", 2)
    adamw._made.clear()


def operands(dtypes):
    params = [values(*shape, dtype=dtype, seed=i) for i, (shape, dtype) in enumerate(zip(SHAPES, dtypes, strict=True))]
    grads = [values(*p.shape, seed=9 + i).to(p.dtype) for i, p in enumerate(params)]
    params[2], grads[2] = (x[2].to(memory_format=torch.channels_last) for x in (params, grads))
    moments, squares, averages = ([torch.rand_like(p, dtype=torch.float32) for p in params] for _ in range(3))
    grads[4] = grads[4].new_empty(0)  # only its average moves
    rows = torch.tensor([[1e-3, 0.9, 0.999, 1e-8, 0.01, 1, 0, 0], [1e-2, 0.95, 0.99, 1e-6, 0.1, -1, 0, 0]], dtype=torch.float64)
    return params, grads, moments, squares, averages, [2, 3], rows, torch.tensor([4.0, 4, 7])


@pytest.mark.parametrize(
    "dtypes, found_inf, max_norm, average, update_after, warmup, zero",
    [
        ([torch.float32] * 5, None, 1.0, True, 0, False, False),
        ([torch.bfloat16] * 5, 0.0, None, True, 2, True, True),
        ([torch.float32, torch.bfloat16, torch.float16, torch.float32, torch.float32], None, 1.0, False, 0, False, True),
        ([torch.float32] * 5, 1.0, 1.0, True, 9, True, True),
    ],
    ids=["float32", "bfloat16", "several dtypes", "skipped"],
)
def test_a_step_is_the_references(dtypes, found_inf, max_norm, average, update_after, warmup, zero):
    torch.manual_seed(0)
    mine = operands(dtypes)
    theirs = [[x.clone() for x in given] if isinstance(given[0], torch.Tensor) else given for given in mine[:6]]
    theirs += [x.clone() for x in mine[6:]]
    if not average:
        mine[4].clear(), theirs[4].clear()
    found = None if found_inf is None else torch.tensor([found_inf])
    scale = torch.tensor(2.0) if zero else None
    options = (scale, found, max_norm, 0.99, update_after, warmup, zero)
    norm, expected = kernels.adamw_(*mine, *options), reference.adamw_(*theirs, *options)
    torch.testing.assert_close(norm, expected, rtol=2e-6, atol=0)
    for number, (some, others) in enumerate(zip((*mine[:5], [mine[7]]), (*theirs[:5], [theirs[7]]), strict=True)):
        for i, (x, y) in enumerate(zip(some, others, strict=True)):
            eps = torch.finfo(dtypes[i] if number == 4 else x.dtype).eps  # the interpreter's cast to bfloat16 truncates
            torch.testing.assert_close(x, y, rtol=0 if found_inf else 4 * eps, atol=0 if found_inf else 4 * eps)


@pytest.mark.parametrize("warmup, n", [(False, 4.0), (True, 70000.0)])
def test_the_average_moves_by_one_less_a_decay_near_1_to_float32s_rounding(warmup, n):
    average, none, rows = torch.zeros(3), torch.empty(0), torch.full((1, 8), 0.5, dtype=torch.float64)
    weights = [torch.ones(3)], [none], [none], [none], [average]
    kernels.adamw_(*weights, [1], rows, torch.tensor([n, 4.0]), None, None, None, 0.9999, 0, warmup, False)
    wanted = max(1e-4, 9 / (10 + n)) if warmup else 1e-4
    torch.testing.assert_close(average, torch.full((3,), wanted), rtol=3e-7, atol=0)


def test_tables_are_sent_where_an_address_has_moved():
    given = operands([torch.float32] * 5)
    options = (None, None, None, 0.99, 0, False, False)
    before = adamw.uploads
    kernels.adamw_(*given, *options)
    kernels.adamw_(*given, *options)
    assert adamw.uploads == before + 1
    given[1][0] = given[1][0].clone()
    kernels.adamw_(*given, *options)
    assert adamw.uploads == before + 2
    given[2][1] = given[2][1].t().contiguous().t()
    with pytest.raises(ValueError, match=r"exp_avgs: expected a tensor like its param, of torch\.float32 and its strides"):
        kernels.adamw_(*given, *options)
