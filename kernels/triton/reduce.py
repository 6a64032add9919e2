# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The end of a loss that spans programs: a tiny launch that adds their shares, always in the same order."""

from torch import Tensor

import triton
import triton.language as tl

from .tile import elements_of, launch

NONE, MEAN, SUM = 0, 1, 2
_PLANS = ((1 << 12, 8192, 8), (1 << 7, 1024, 4), (0, 128, 1))  # from how many shares on: a program's tile, its warps


@triton.jit
def _total(shares_ptr, count, TILE: tl.constexpr):
    """The sum of this program's shares, `count` of them."""
    lane = tl.arange(0, TILE)
    total = tl.zeros((TILE,), tl.float32)
    shares_ptr += tl.program_id(0).to(tl.int64) * count
    for start in range(0, count, TILE):
        total += tl.load(shares_ptr + start + lane, mask=lane < count - start, other=0.0)
    return tl.sum(total)


@triton.jit(do_not_specialize=["count", "divisor"])
def finish_kernel(loss_ptr, shares_ptr, count, divisor, TILE: tl.constexpr):
    """loss[b] = (sum of its shares) / divisor."""
    tl.store(loss_ptr + tl.program_id(0), tl.div_rn(_total(shares_ptr, count, TILE), divisor * 1.0))


@triton.jit(do_not_specialize=["count", "divisor", "vlb_weight"])
def finish_hybrid_kernel(
    loss_ptr, mse_ptr, vlb_ptr, mse_shares_ptr, vlb_shares_ptr, count, divisor, vlb_weight, TILE: tl.constexpr
):
    """mse and vlb so, and loss = mse + vlb_weight vlb."""
    program = tl.program_id(0)
    mse = tl.div_rn(_total(mse_shares_ptr, count, TILE), divisor * 1.0)
    vlb = tl.div_rn(_total(vlb_shares_ptr, count, TILE), divisor * 1.0)
    tl.store(mse_ptr + program, mse)
    tl.store(vlb_ptr + program, vlb)
    tl.store(loss_ptr + program, mse + vlb_weight * vlb)


def losses_of(batch: int, reduction: int) -> int:
    return batch if reduction == NONE else 1


def count_of(x: Tensor, reduction: int) -> float:
    """What a sample's sum of gradients is divided by."""
    return float(elements_of(x) * (x.shape[0] if reduction == MEAN else 1))


def shaped(loss: Tensor, reduction: int) -> Tensor:
    return loss if reduction == NONE else loss.view(())


def finish(shares: Tensor, batch: int, reduction: int) -> Tensor:
    """The loss of `reduction` from its programs' shares: these themselves where each is one loss."""
    losses = losses_of(batch, reduction)
    if len(shares) == losses:
        return shaped(shares, reduction)
    loss = shares.new_empty(losses)
    _launch(finish_kernel, losses, len(shares), (loss, shares), batch if reduction == MEAN else 1)
    return shaped(loss, reduction)


def finish_hybrid(mse_shares: Tensor, vlb_shares: Tensor, batch: int, reduction: int, vlb_weight: float) -> tuple[Tensor, ...]:
    """loss, mse and vlb, not yet shaped."""
    losses = losses_of(batch, reduction)
    made = tuple(mse_shares.new_empty(losses) for _ in range(3))
    tensors = (*made, mse_shares, vlb_shares)
    _launch(finish_hybrid_kernel, losses, len(mse_shares), tensors, batch if reduction == MEAN else 1, vlb_weight)
    return made


def _launch(kernel, losses: int, shares: int, tensors: tuple[Tensor, ...], *scalars: float) -> None:
    count = shares // losses
    size, warps = next((size, warps) for least, size, warps in _PLANS if count >= least)
    launch(tensors[0], kernel, (losses,), *tensors, count, *scalars, TILE=size, num_warps=warps)
