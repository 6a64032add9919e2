"""The optimizer's ops, `adamw_` and `total_norm`, against the reference, on any number of threads."""

import math

import pytest
import torch
from helpers import same_bits, threads

from fastddpm import ops, reference

SHAPES = ((3,), (33, 67), (16, 3, 3, 3), (0,), (7, 5), (17001,))


def operands(dtype, place=lambda x: x):
    torch.manual_seed(5)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    params, grads = ([place(torch.randn(shape).to(dtype)) for shape in SHAPES] for _ in range(2))
    moments, squares, averages = ([torch.rand_like(p, dtype=wide) for p in params] for _ in range(3))
    grads[4] = grads[4].new_empty(0)  # only its average moves
    rows = torch.tensor([[1e-3, 0.9, 0.999, 1e-8, 0.01, 1, 0, 0], [1e-2, 0.95, 0.99, 1e-6, 0.1, -1, 0, 0]], dtype=torch.float64)
    return params, grads, moments, squares, averages, [3, 3], rows, torch.tensor([4.0, 4, 7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("found_inf", [None, 0.0, 1.0])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_the_kernel_is_the_reference(dtype, found_inf, max_norm):
    """To an ulp; a step that is skipped to the bit, and its gradients are zeroed too."""
    found_inf = None if found_inf is None else torch.tensor([found_inf])
    options = (torch.tensor(3.0), found_inf, max_norm, 0.99, 2, True, True)
    mine, theirs = operands(dtype), operands(dtype)
    norm, expected = ops.adamw_(*mine, *options), reference.adamw_(*theirs, *options)
    torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
    for some, others in zip((*mine[:5], [mine[7]]), (*theirs[:5], [theirs[7]]), strict=True):
        for x, y in zip(some, others, strict=True):
            if found_inf is not None and found_inf:
                assert same_bits(x, y)
            torch.testing.assert_close(x, y, rtol=torch.finfo(x.dtype).eps, atol=2 * torch.finfo(x.dtype).eps)
    assert not any(g.any() for g in mine[1])


def test_no_order_of_threads_shows():
    results = []
    for count in (1, 2, 3):
        given = operands(torch.float32)
        with threads(count):
            norm = ops.adamw_(*given, None, None, 1.0, 0.99, 0, False, False)
        results.append([norm, *(x for tensors in given[:5] for x in tensors)])
    assert all(same_bits(x, y) for others in results[1:] for x, y in zip(results[0], others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_norm_of_all_tensors(dtype):
    """Of any layout: sums of squares in float64, in one order on any number of threads."""
    torch.manual_seed(6)
    big = torch.randn(3, 5, 160, 170).to(dtype)
    tensors = [big, big[:, :0], big.mT, big[:, ::2], big[0, 0, 0, 0], big[:1, :1, :1, :3].expand(4, 2, 7, 3)]
    for these in (tensors, tensors[4:], tensors[1:2]):
        exact = math.sqrt(sum(float(x.double().square().sum()) for x in these))
        assert ops.total_norm(these).dtype is torch.float64
        for given in (ops, reference):
            assert float(given.total_norm(these)) == pytest.approx(exact, rel=1e-12)
    norms = []
    for count in (1, 2, 3):
        with threads(count):
            norms.append(ops.total_norm(tensors))
    assert same_bits(norms[0], norms[1]) and same_bits(norms[0], norms[2])
