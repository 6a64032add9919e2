# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The end of a loss that spans programs: a tiny launch that adds their shares, always in the same order.

One program adds up to _RUN of them; where a loss has more, a launch before it adds runs of that length, each by a program of
its own. The runs depend on a loss's shares alone.
"""

from functools import lru_cache

from torch import Tensor

import triton
import triton.language as tl

from .launcher import launch
from .tile import elements_of

NONE, MEAN = 0, 1
_TILES = ((128, 1), (1024, 4), (4096, 8))  # a program's shares at most, its warps
_RUN = _TILES[-1][0]


@triton.jit
def _total(shares_ptr, first, count, TILE: tl.constexpr):
    """The sum of this program's shares: those up to TILE from its `first` on, of a loss's `count`."""
    lane = tl.arange(0, TILE)
    return tl.sum(tl.load(shares_ptr + first + lane, mask=lane < count, other=0.0))


@triton.jit(do_not_specialize=["count"])
def runs_kernel(sums_ptr, shares_ptr, count, TILE: tl.constexpr):
    """sums[b, n] = sum of run n of loss b's shares."""
    program = tl.program_id(0)
    runs = (count - 1) // TILE + 1
    loss = program // runs
    start = (program - loss * runs) * TILE
    tl.store(sums_ptr + program, _total(shares_ptr, loss.to(tl.int64) * count + start, count - start, TILE))


@triton.jit(do_not_specialize=["count", "divisor"])
def finish_kernel(loss_ptr, shares_ptr, count, divisor, TILE: tl.constexpr):
    """loss[b] = (sum of its shares) / divisor."""
    program = tl.program_id(0)
    total = _total(shares_ptr, program.to(tl.int64) * count, count, TILE)
    tl.store(loss_ptr + program, tl.div_rn(total, divisor * 1.0))


@triton.jit(do_not_specialize=["count", "divisor", "vlb_weight"])
def finish_hybrid_kernel(
    loss_ptr, mse_ptr, vlb_ptr, mse_shares_ptr, vlb_shares_ptr, count, divisor, vlb_weight, TILE: tl.constexpr
):
    """mse and vlb so, and loss = mse + vlb_weight vlb."""
    program = tl.program_id(0)
    first = program.to(tl.int64) * count
    mse = tl.div_rn(_total(mse_shares_ptr, first, count, TILE), divisor * 1.0)
    vlb = tl.div_rn(_total(vlb_shares_ptr, first, count, TILE), divisor * 1.0)
    tl.store(mse_ptr + program, mse)
    tl.store(vlb_ptr + program, vlb)
    tl.store(loss_ptr + program, mse + vlb_weight * vlb)


def losses_of(batch: int, reduction: int) -> int:
    return batch if reduction == NONE else 1


def count_of(x: Tensor, reduction: int) -> float:
    """What a sample's sum of gradients is divided by."""
    return float(x.numel() if reduction == MEAN else elements_of(x))


def shape_of(losses: int, reduction: int) -> tuple[int, ...]:
    return (losses,) if reduction == NONE else ()


def shaped(loss: Tensor, reduction: int) -> Tensor:
    return loss if reduction == NONE else loss.view(())


def finish(shares: Tensor, batch: int, reduction: int) -> Tensor:
    """The loss of `reduction` from its programs' shares: these themselves where each is one loss."""
    losses = losses_of(batch, reduction)
    if shares.numel() == losses:
        return shaped(shares, reduction)
    shares, count = _runs(shares, losses)
    loss = shares.new_empty(shape_of(losses, reduction))
    _launch(finish_kernel, losses, (loss, shares), count, batch if reduction == MEAN else 1)
    return loss


def finish_hybrid(mse_shares: Tensor, vlb_shares: Tensor, batch: int, reduction: int, vlb_weight: float) -> tuple[Tensor, ...]:
    """loss, mse and vlb."""
    losses = losses_of(batch, reduction)
    (mse_shares, count), (vlb_shares, _) = _runs(mse_shares, losses), _runs(vlb_shares, losses)
    made = tuple(mse_shares.new_empty(shape_of(losses, reduction)) for _ in range(3))
    tensors = (*made, mse_shares, vlb_shares)
    _launch(finish_hybrid_kernel, losses, tensors, count, batch if reduction == MEAN else 1, vlb_weight)
    return made


def _runs(shares: Tensor, losses: int) -> tuple[Tensor, int]:
    """The losses' shares, and how many each has: no more than a program adds."""
    count = shares.numel() // losses
    while count > _RUN:
        runs = triton.cdiv(count, _RUN)
        sums = shares.new_empty(losses * runs)
        _launch(runs_kernel, losses * runs, (sums, shares), count)
        shares, count = sums, runs
    return shares, count


@lru_cache(maxsize=1024)
def _tile(count: int) -> tuple[int, int]:
    return next(tile for tile in _TILES if tile[0] >= min(count, _RUN))


def _launch(kernel, programs: int, tensors: tuple[Tensor, ...], count: int, *scalars: float) -> None:
    tile, warps = _tile(count)
    launch(tensors[0], kernel, programs, warps, (*tensors, count, *scalars), (tile,))
