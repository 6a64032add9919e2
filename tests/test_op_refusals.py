"""The ops refuse what would read or write past memory in plain words: the argument, what was expected, what came."""

import pytest
import torch
from helpers import INSTRUCTION_SETS, NOT_BUILT

from fastddpm import ops
from fastddpm.ops import MEAN, NONE

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason=NOT_BUILT)

X, BOTH = torch.zeros(4, 3, 5), torch.zeros(4, 6, 5)
T, KEY = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64)
NOISING, MSE, VLB, STEP = (torch.zeros(10, columns) for columns in (2, 4, 16, 16))
G = torch.zeros(())


def noising(x=X, noise=KEY, t=T, rows=NOISING):
    return ops.noising(x, noise, t, rows)


def mse(output=X, noise=KEY, x_0=X, x_t=X, t=T, rows=MSE, grad_loss=G):
    return ops.mse_loss_backward(output, noise, x_0, x_t, t, rows, MEAN, grad_loss)


def hybrid(output=BOTH, x_0=X, x_t=X, noise=KEY, t=T, rows=VLB, grad_loss=G, grad_mse=G, grad_vlb=G):
    return ops.hybrid_loss_backward(output, x_0, x_t, noise, t, rows, False, 1.0, NONE, grad_loss, grad_mse, grad_vlb)


def terms(next_noise=KEY, next_t=T, x_t=X, noise=KEY):
    return ops.vlb_terms(X, X, x_t, noise, T, VLB, False, next_noise, next_t)


def step(output=X, x_t=X, noise=KEY, i=T, rows=STEP, u=None, guidance=None, bound=None, history=None):
    return ops.reverse_step(output, x_t, noise, i, rows, True, u, guidance, bound, history)


def large(elements):
    """One sample that takes no memory."""
    x = torch.zeros(1).expand(1, elements)
    return ops.mse_loss(x, None, None, None, T[:1], MSE, NONE, False)


SHAPE, FLOATS = r"expected \[4, 3, 5\] on the CPU, got", "expected a float32, float64, bfloat16 or float16 tensor, got"
ROWS = r"rows: expected contiguous float32 or float64 \[T, {}\] on the CPU, got"
INDEX = r"expected int32 or int64 \[4\], or one value, on the CPU, got"
KEYS, UPSTREAM = r"expected an int64 key \[4, 2\] on the CPU, got", r"expected float32 \[\] or \[4\] on the CPU, got"
CASES = {
    "rows of nine columns": (lambda: step(rows=torch.zeros(10, 9)), ROWS.format(16) + r" float32 \[10, 9\]"),
    "rows of the loss for a step": (lambda: step(rows=MSE), ROWS.format(16) + r" float32 \[10, 4\]"),
    "rows of one dimension": (lambda: noising(rows=torch.zeros(2)), ROWS.format(2) + r" float32 \[2\]"),
    "rows that are a number": (lambda: noising(rows=G), ROWS.format(2) + r" float32 \[\]"),
    "rows of halves": (lambda: mse(rows=MSE.half()), ROWS.format(4) + r" float16 \[10, 4\]"),
    "rows with gaps": (lambda: hybrid(rows=torch.zeros(16, 10).t()), ROWS.format(16) + r" float32 \[10, 16\]"),
    "t of floats": (lambda: noising(t=T.float()), rf"t: {INDEX} float32 \[4\]"),
    "t of another batch": (lambda: mse(t=T[:3]), rf"t: {INDEX} int64 \[3\]"),
    "t of two dimensions": (lambda: hybrid(t=T[:, None]), rf"t: {INDEX} int64 \[4, 1\]"),
    "i of bytes": (lambda: step(i=T.to(torch.uint8)), rf"i: {INDEX} Byte \[4\]"),
    "next_t of another batch": (lambda: terms(next_t=T[:2]), rf"next_t: {INDEX} int64 \[2\]"),
    "no next_t": (lambda: terms(next_t=None), "next_t: expected a tensor where next_noise is given, got None"),
    "no x_t and no noise": (lambda: terms(x_t=None, noise=None), "x_t: expected a tensor, or the noise .*, got neither"),
    "x of integers": (lambda: noising(x=X.int()), rf"x: {FLOATS} int32 \[4, 3, 5\]"),
    "x_0 of integers": (lambda: mse(x_0=X.bool()), rf"x_0: {FLOATS} Bool \[4, 3, 5\]"),
    "x_t of another shape": (lambda: mse(x_t=X[..., 0]), rf"x_t: {SHAPE} float32 \[4, 3\]"),
    "output of another batch": (lambda: step(output=X[:3]), rf"model_output: {SHAPE} float32 \[3, 3, 5\]"),
    "output of 7 channels": (
        lambda: hybrid(output=torch.zeros(4, 7, 5)),
        r"model_output: expected \[4, 6, 5\] on the CPU, got float32 \[4, 7, 5\]",
    ),
    "noise of another shape": (lambda: noising(noise=X[:, :1]), rf"noise: {SHAPE} float32 \[4, 1, 5\]"),
    "a key of another batch": (lambda: step(noise=KEY[:3]), rf"noise: {KEYS} int64 \[3, 2\]"),
    "next noise": (lambda: terms(next_noise=KEY[0]), rf"next_noise: {KEYS} int64 \[2\]"),
    "a key of one dimension": (lambda: ops.timesteps(T, 10), rf"key: {KEYS} int64 \[4\]"),
    "a key of none": (lambda: ops.advance_(T[0], 1), r"key: expected an int64 key \[1, 2\] on the CPU, got int64 \[\]"),
    "a key of floats": (lambda: ops.fill_key_(KEY.float(), 1, 1), rf"key: {KEYS} float32 \[4, 2\]"),
    "out of integers": (lambda: ops.randn_(X.long(), KEY), rf"out: {FLOATS} int64 \[4, 3, 5\]"),
    "an upstream of another batch": (lambda: mse(grad_loss=torch.zeros(3)), rf"grad_loss: {UPSTREAM} float32 \[3\]"),
    "an upstream of halves": (lambda: hybrid(grad_vlb=G.half()), rf"grad_vlb: {UPSTREAM} float16 \[\]"),
    "an upstream of integers": (lambda: ops.scale_grad_(X, T), rf"grad_loss: {UPSTREAM} int64 \[4\]"),
    "u without its variance": (
        lambda: step(output=BOTH, u=X),
        r"uncond_output: expected \[4, 6, 5\] on the CPU, got float32 \[4, 3, 5\]",
    ),
    "guidance of another batch": (lambda: step(guidance=torch.zeros(3)), rf"guidance: {UPSTREAM} float32 \[3\]"),
    "a bound of doubles": (lambda: step(bound=G.double()), rf"bound: {UPSTREAM} float64 \[\]"),
    "history of another shape": (lambda: step(history=[X, X[:1]]), rf"history: {SHAPE} float32 \[1, 3, 5\]"),
    "history of integers": (lambda: step(history=[X.int()]), rf"history: {FLOATS} int32 \[4, 3, 5\]"),
    "a longer history than a row's": (lambda: step(history=[X] * 4), "history: expected at most 3 tensors, got 4"),
    "seventeen dimensions": (lambda: noising(torch.zeros([1] * 17), None, T[:1]), "x: expected 1 to 16 dimensions, got 17"),
    "no dimensions": (lambda: ops.randn_(G, KEY), "out: expected 1 to 16 dimensions, got 0"),
    "a sample too large": (
        lambda: large(2**34 + 1),
        "model_output: expected at most 2\\^34 elements a sample, got 17179869185",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_op_refuses(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=rf"^{message}$"):
        call()


def test_sixteen_dimensions_are_taken():
    x = torch.ones([1] * 16)
    assert torch.equal(noising(x, None, T[:1], torch.ones(1, 2)), x)
