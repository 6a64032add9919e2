# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The norm of all gradients, then clipping, AdamW and the moving average in one pass (twin: kernels/cpu/adamw.h).

    sum += g g                                                     squares_kernel, a program's share of all blocks
    g' = scale g                                                   clipping's factor, the loss scale's inverse, maximize's sign
    m = m + (1 - beta_1)(g' - m);   v = beta_2 v + (1 - beta_2)(g' g')
    p = (1 - lr weight_decay) p - step m / (root sqrt(v) + eps)    step = lr / (1 - beta_1^n), root = 1 / sqrt(1 - beta_2^n)
    e = e + (1 - decay)(p - e)

Two launches for weights of one dtype, however many: a table holds their addresses, another cuts them into blocks. The first
launch also counts the steps and makes what follows from their number, so that nothing is baked into a graph. The shares are as
many whatever the device, and each program of the second adds them in the same order: no atomics, the same bits. (The squares
are float32: a norm from 1.8e19 on is infinite. C++ adds them in float64.)
Moves, of float32: the first reads 4 bytes an element, the second reads 20 and writes 16.
Not yet run on a GPU.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import reference
from ..checks import describe
from .columns import ADAMW, ADAMW_BETA_1, ADAMW_BETA_2, ADAMW_EPS, ADAMW_LR, ADAMW_SIGN, ADAMW_WEIGHT_DECAY
from .launcher import launch

uploads = 0
"""How many tables of addresses have been sent to a device: a loop whose gradients move each step sends one each step."""

_SHARES = 1024
_BLOCK, _WARPS = 1024, 4
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_WEIGHT = tl.constexpr(8)  # a weight's numbers: the addresses of p, g, m, v and e, its elements, its part, one unused
_SIZE = tl.constexpr(8)  # a part's: 1 - beta_1, beta_2, 1 - beta_2, what is kept, step, root, eps, sign; behind all of them
_KEPT = 8  # those of the last steps: a loop needs one, or one for each set of weights that have gradients in turn


@triton.jit
def _sizes(sizes_ptr, steps_ptr, settings_ptr, parts, taken, away, update_after, WARMUP: tl.constexpr):
    """What follows from the number of each part's steps, counted where it is taken; last the average's weight and `taken`.
    away: 1 - decay, of which a decay near 1 has lost three digits in float32."""
    for part in range(parts):
        row = settings_ptr + part * ADAMW
        n = tl.load(steps_ptr + 1 + part) + taken
        tl.store(steps_ptr + 1 + part, n)
        beta_1, beta_2 = tl.load(row + ADAMW_BETA_1), tl.load(row + ADAMW_BETA_2)
        lr, wide = tl.load(row + ADAMW_LR), n.to(tl.float64)
        size = sizes_ptr + part * _SIZE
        tl.store(size, (1.0 - beta_1).to(tl.float32))
        tl.store(size + 1, beta_2.to(tl.float32))
        tl.store(size + 2, (1.0 - beta_2).to(tl.float32))
        tl.store(size + 3, (1.0 - lr * tl.load(row + ADAMW_WEIGHT_DECAY)).to(tl.float32))
        tl.store(size + 4, (lr / (1.0 - tl.exp(wide * tl.log(beta_1)))).to(tl.float32))
        tl.store(size + 5, (1.0 / tl.sqrt(1.0 - tl.exp(wide * tl.log(beta_2)))).to(tl.float32))
        tl.store(size + 6, tl.load(row + ADAMW_EPS).to(tl.float32))
        tl.store(size + 7, tl.load(row + ADAMW_SIGN).to(tl.float32))
    n = tl.load(steps_ptr) + taken
    tl.store(steps_ptr, n)
    since = n - 1.0 - update_after
    now = since * 0.0 + away
    first = since < 0.0
    if WARMUP:
        now = tl.maximum(now, tl.div_rn(9.0, 10.0 + since))  # 1 - (1 + since) / (10 + since)
        first = since < 1.0
    tl.store(sizes_ptr + parts * _SIZE, tl.where(first, 1.0, now))
    tl.store(sizes_ptr + parts * _SIZE + 1, taken)


@triton.jit
def _at(weight, number: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """A weight's tensor of that number."""
    if KIND == 0:
        pointer = tl.load(weight + number).to(tl.pointer_type(tl.float32))
    elif KIND == 1:
        pointer = tl.load(weight + number).to(tl.pointer_type(tl.bfloat16))
    else:
        pointer = tl.load(weight + number).to(tl.pointer_type(tl.float16))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit(do_not_specialize=["blocks", "parts", "away", "update_after"])
def squares_kernel(
    shares_ptr, sizes_ptr, steps_ptr, settings_ptr, found_ptr, weights_ptr, blocks_ptr, blocks, parts, away, update_after,
    WARMUP: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """This program's share of the squares, and once in a step the sizes."""
    program = tl.program_id(0)
    if shares_ptr is not None:
        total = 0.0
        for number in range(program, blocks, SHARES):
            weight = weights_ptr + tl.load(blocks_ptr + 2 * number) * _WEIGHT
            first, count = tl.load(blocks_ptr + 2 * number + 1) * BLOCK, tl.load(weight + 5)
            offset = first + tl.arange(0, BLOCK)
            if tl.load(weight + 1) != 0:
                grad = _at(weight, 1, KIND, ALIGNED)
                if first + BLOCK <= count:  # without a mask, by 16 bytes
                    g = tl.load(grad + offset).to(tl.float32)
                else:
                    g = tl.load(grad + offset, mask=offset < count, other=0.0).to(tl.float32)
                total += tl.sum(g * g)
        tl.store(shares_ptr + program, total)
    if sizes_ptr is not None:  # noqa: SIM102 (the one is known when it is compiled)
        if program == 0:
            taken = 1.0
            if found_ptr is not None:
                taken = tl.where(tl.load(found_ptr) == 0.0, 1.0, 0.0)
            _sizes(sizes_ptr, steps_ptr, settings_ptr, parts, taken, away, update_after, WARMUP)


@triton.jit
def _norm(shares_ptr, unscale, KINDS: tl.constexpr, SHARES: tl.constexpr):
    total = 0.0
    for kind in tl.static_range(KINDS):
        total += tl.sum(tl.load(shares_ptr + kind * SHARES + tl.arange(0, SHARES)))
    return tl.sqrt_rn(total) * unscale


@triton.jit
def _update(weight, size, offset, mask, scale, away, AVERAGE: tl.constexpr, ZERO: tl.constexpr, KIND: tl.constexpr,
            ALIGNED: tl.constexpr):  # fmt: skip
    param = _at(weight, 0, KIND, ALIGNED) + offset
    p = tl.load(param, mask=mask).to(tl.float32)
    if tl.load(weight + 1) != 0:
        grad, moment, square = (
            _at(weight, 1, KIND, ALIGNED) + offset,
            _at(weight, 2, 0, ALIGNED) + offset,
            _at(weight, 3, 0, ALIGNED) + offset,
        )
        g = scale * tl.load(size + 7) * tl.load(grad, mask=mask).to(tl.float32)
        m, v = tl.load(moment, mask=mask), tl.load(square, mask=mask)
        m = m + tl.load(size) * (g - m)
        v = tl.load(size + 1) * v + tl.load(size + 2) * (g * g)
        below = tl.load(size + 5) * tl.sqrt_rn(v) + tl.load(size + 6)
        p = tl.load(size + 3) * p - tl.load(size + 4) * tl.div_rn(m, below)
        tl.store(param, p.to(param.dtype.element_ty), mask=mask)
        tl.store(moment, m, mask=mask)
        tl.store(square, v, mask=mask)
        if ZERO:
            tl.store(grad, tl.zeros_like(g).to(grad.dtype.element_ty), mask=mask)
    if AVERAGE:
        average = _at(weight, 4, 0, ALIGNED) + offset
        e = tl.load(average, mask=mask)
        tl.store(average, e + away * (p.to(param.dtype.element_ty).to(tl.float32) - e), mask=mask)


@triton.jit
def _zero(weight, offset, mask, KIND: tl.constexpr):
    if tl.load(weight + 1) != 0:
        grad = _at(weight, 1, KIND, False) + offset
        tl.store(grad, tl.zeros_like(offset).to(grad.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["parts", "max_norm"])
def adamw_kernel(
    norm_ptr, shares_ptr, sizes_ptr, scale_ptr, weights_ptr, blocks_ptr, parts, max_norm,
    AVERAGE: tl.constexpr, ZERO: tl.constexpr, KIND: tl.constexpr, KINDS: tl.constexpr, ALIGNED: tl.constexpr,
    SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of a weight; the first program stores the norm too."""
    scale = 1.0
    if scale_ptr is not None:
        scale = tl.div_rn(1.0, tl.load(scale_ptr))
    if norm_ptr is not None:
        norm = _norm(shares_ptr, scale, KINDS, SHARES)
        if tl.program_id(0) == 0:
            tl.store(norm_ptr, norm)
        factor = tl.div_rn(max_norm, norm + 1e-6)
        scale = scale * tl.where(factor > 1.0, 1.0, factor)  # a norm that is no number stays one
    block = blocks_ptr + 2 * tl.program_id(0)
    weight = weights_ptr + tl.load(block) * _WEIGHT
    first, count = tl.load(block + 1) * BLOCK, tl.load(weight + 5)
    offset = first + tl.arange(0, BLOCK)
    size, away = sizes_ptr + tl.load(weight + 6) * _SIZE, tl.load(sizes_ptr + parts * _SIZE)
    if tl.load(sizes_ptr + parts * _SIZE + 1) != 0.0:
        if first + BLOCK <= count:
            _update(weight, size, offset, None, scale, away, AVERAGE, ZERO, KIND, ALIGNED)
        else:
            _update(weight, size, offset, offset < count, scale, away, AVERAGE, ZERO, KIND, ALIGNED)
    elif ZERO:
        _zero(weight, offset, offset < count, KIND)


def adamw_(
    params, grads, exp_avgs, exp_avg_sqs, averages, counts, rows, steps, grad_scale, found_inf, max_grad_norm, decay,
    update_after, warmup, zero_grads,
) -> Tensor:  # fmt: skip
    if not any(p.numel() for p in params) or any(p.dtype not in _KINDS for p in params):
        return reference.adamw_(
            params, grads, exp_avgs, exp_avg_sqs, averages, counts, rows, steps, grad_scale, found_inf, max_grad_norm, decay,
            update_after, warmup, zero_grads,
        )  # fmt: skip
    laid = [_laid(g, p) for g, p in zip(grads, params, strict=True)]
    tables = _tables(params, laid, exp_avgs, exp_avg_sqs, averages, counts)
    clips, parts = max_grad_norm is not None, len(counts)
    norm = steps.new_empty(() if clips else 0)
    shares = steps.new_empty(len(tables), _SHARES) if clips else None
    sizes = steps.new_empty(parts + 1, _SIZE.value)
    for number, table in enumerate(tables if clips else tables[:1]):
        once = (None, None, None, None) if number else (sizes, steps, rows, found_inf)
        mine = None if shares is None else shares[number]
        arguments = (mine, *once, table.weights, table.blocks, len(table.blocks), parts, 1.0 - decay, update_after)
        constants = (int(warmup), table.kind, int(table.aligned), _SHARES, _BLOCK)
        launch(steps, squares_kernel, _SHARES if clips else 1, _WARPS, arguments, constants)
    for table in tables:
        arguments = (norm if clips else None, shares, sizes, grad_scale, table.weights, table.blocks, parts)
        constants = (int(bool(averages)), int(zero_grads), table.kind, len(tables), int(table.aligned), _SHARES, _BLOCK)
        launch(steps, adamw_kernel, len(table.blocks), _WARPS, (*arguments, float(max_grad_norm or 0)), constants)
    if zero_grads:
        copied = [g for g, mine in zip(grads, laid, strict=True) if g is not mine]
        if copied:
            torch._foreach_zero_(copied)
    return norm


# ---- tables ----


class _Table(NamedTuple):
    """Of the weights of one dtype."""

    kind: int
    weights: Tensor  # int64 [N, 8]
    blocks: Tensor  # int64 [M, 2]: a weight, and which of its blocks
    aligned: bool  # all addresses to 16 bytes


_made: OrderedDict[tuple, list[_Table]] = OrderedDict()
_captured: list[list[_Table]] = []
"""What graphs read is never freed."""


def _laid(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient as its weight lies: autograd nearly always has it so."""
    return grad if not grad.numel() or grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)


def _tables(params, grads, exp_avgs, exp_avg_sqs, averages, counts) -> list[_Table]:
    """Those that the device has already, or new ones, where an address is another than at the last steps."""
    lists = (params, grads, exp_avgs, exp_avg_sqs, averages)
    shapes = [(p.shape, p.dtype) for p in params]  # of others that lay there before, too
    key = (*counts, *shapes, *((x.data_ptr(), x.stride()) if x.numel() else 0 for tensors in lists for x in tensors))
    tables = _made.get(key)
    if tables is None:
        tables = _made[key] = _new_tables(lists, counts)
        if len(_made) > _KEPT:
            _made.popitem(last=False)
    _made.move_to_end(key)
    if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        _captured.append(tables)
    return tables


def _new_tables(lists: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> list[_Table]:
    global uploads
    params, device = lists[0], lists[0][0].device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("adamw_: expected tables from before the capture (make_static(), then a step), got tensors without")
    _check(lists)
    part_of = [part for part, count in enumerate(counts) for _ in range(count)]
    made = []
    for dtype, kind in _KINDS.items():
        these = [i for i, p in enumerate(params) if p.dtype is dtype and p.numel()]
        if not these:
            continue
        places = [[tensors[i].data_ptr() if tensors and tensors[i].numel() else 0 for tensors in lists] for i in these]
        weights = [[*place, params[i].numel(), part_of[i], 0] for place, i in zip(places, these, strict=True)]
        blocks = _blocks(tuple(params[i].numel() for i in these), device)
        aligned = all(address % 16 == 0 for place in places for address in place)
        uploads += 1
        made.append(_Table(kind, _sent(torch.tensor(weights, dtype=torch.int64, device="cpu"), device), blocks, aligned))
    return made


@lru_cache(maxsize=_KEPT)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """[M, 2]: a weight, and which of its blocks."""
    counts = torch.tensor([triton.cdiv(size, _BLOCK) for size in sizes], device="cpu")
    weight = torch.repeat_interleave(counts)
    return _sent(
        torch.stack((weight, torch.arange(len(weight), device="cpu") - (counts.cumsum(0) - counts)[weight]), 1), device
    )


def _sent(table: Tensor, device: torch.device) -> Tensor:
    return (table.pin_memory() if device.type == "cuda" else table).to(device, non_blocking=True)


def _check(lists: Sequence[Sequence[Tensor]]) -> None:
    for name, tensors in zip(("grads", "exp_avgs", "exp_avg_sqs", "averages"), lists[1:], strict=True):
        for x, p in zip(tensors, lists[0], strict=bool(tensors)):
            own = p.dtype if name == "grads" else torch.float32
            if x.numel() and (x.stride() != p.stride() or x.dtype is not own):
                raise ValueError(f"{name}: expected a tensor like its param, of {own} and its strides, got {describe(x)}")
