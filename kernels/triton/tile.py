# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""A program's tile: which elements it works on, their noise and their row, and how the host cuts a tensor into tiles.

A program works on up to BLOCK elements that lie next to each other in one sample's memory, so that its accesses are 16
bytes wide. With CHANNELS = 0 memory order is logical order. Otherwise (channels_last, noise from a key) a sample lies as
[spatial, CHANNELS] and its element e = c * spatial + s: the tile is a run of positions with all their channels. Each
channel's Philox blocks run along the positions, so that all four normals of a block are used, and a gather through shared
memory brings the normals into memory order. A channel's first block may begin up to three positions before the tile, so
each channel gets one block more. With more than _MAX_CHANNELS a tile would hold too few positions: there each element makes
a Philox call of its own and uses one normal of its four, which costs arithmetic and no copy. Without a key no order of
elements matters, and channels_last is walked as CHANNELS = 0.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

import triton
import triton.language as tl

from .launcher import launch
from .philox import cos_sin, four_normals, radius, words

_MAX_CHANNELS = 64

# ---- on the device ----

_GATHERED = tl.constexpr(_MAX_CHANNELS)


@triton.constexpr_function
def positions_of(block, channels):
    """Positions in a channels_last tile: a multiple of 8, so that tiles begin at 16 bytes in bfloat16 too."""
    return (4 * (block // 4 // channels) - 3) // 8 * 8


@triton.jit
def _place(elements, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's sample, and its first element or, in channels_last, its first position."""
    program = tl.program_id(0)
    if CHANNELS == 0 or CHANNELS > _GATHERED:
        step: tl.constexpr = BLOCK
        tiles = (elements - 1) // step + 1
    else:
        step: tl.constexpr = positions_of(BLOCK, CHANNELS)
        tiles = (elements // CHANNELS - 1) // step + 1
    sample = program // tiles
    return sample.to(tl.int64), (program - sample * tiles) * step


@triton.jit
def tile(elements, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """(sample, place); a place is (where in the tensors' memory the tile starts, offsets from there, mask)."""
    sample, start = _place(elements, CHANNELS, BLOCK)
    offsets = tl.arange(0, BLOCK)
    if CHANNELS == 0 or CHANNELS > _GATHERED:
        first = sample * elements + start
        mask = offsets < elements - start
    else:
        first = sample * elements + start * CHANNELS
        length: tl.constexpr = positions_of(BLOCK, CHANNELS) * CHANNELS
        mask = (offsets < elements - start * CHANNELS) & (offsets < length)
    return sample, (first, offsets, mask)


@triton.jit
def halves(sample, place, elements, LEARNED: tl.constexpr, CHANNELS: tl.constexpr):
    """The places of the tile's mean channels and of its variance channels in the network's output: of an output that has only
    the first, the tile's own."""
    first, offsets, mask = place
    if not LEARNED:
        mean, variance = first, first
    elif CHANNELS == 0:
        mean, variance = first + sample * elements, first + (sample + 1) * elements
    else:  # [spatial, 2 CHANNELS]
        begin = first - sample * elements
        if CHANNELS > _GATHERED:
            mean = first + sample * elements
            offsets += (begin.to(elements.dtype) + offsets) // CHANNELS * CHANNELS
        else:
            mean = first + sample * elements + begin
            offsets += (offsets.to(tl.uint32) // CHANNELS * CHANNELS).to(tl.int32)
        variance = mean + CHANNELS
    return (mean, offsets, mask), (variance, offsets, mask)


@triton.jit
def read(ptr, place):
    first, offsets, mask = place
    return tl.load(ptr + first + offsets, mask=mask).to(tl.float32)


@triton.jit
def write(ptr, place, values):
    first, offsets, mask = place
    tl.store(ptr + first + offsets, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def tile_normals(key_ptr, elements, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """float32 [BLOCK]: the normals of the tile's elements. Four neighbours in the logical order come of one Philox call."""
    sample, start = _place(elements, CHANNELS, BLOCK)
    seed, subsequence = tl.load(key_ptr + sample * 2), tl.load(key_ptr + sample * 2 + 1)
    if CHANNELS > _GATHERED:
        z = _wide_normals(start + tl.arange(0, BLOCK), elements, seed, subsequence, CHANNELS)
    else:
        z = _block_normals(start, elements, seed, subsequence, CHANNELS, BLOCK)
    return z


@triton.jit
def _block_normals(start, elements, seed, subsequence, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """All four normals of each Philox call, brought into memory order."""
    lane = tl.arange(0, BLOCK // 4)
    if CHANNELS == 0:
        # BLOCK is a power of two, so a tile's blocks never straddle 2^32: their upper half is one value
        block = (start >> 2).to(tl.uint32) + lane.to(tl.uint32)
        upper = (start.to(tl.int64) >> 34).to(tl.uint32)
    else:
        spatial = elements // CHANNELS
        run: tl.constexpr = BLOCK // 4 // CHANNELS  # blocks a channel
        block = ((lane // run * spatial + start) >> 2) + lane % run
        upper = (block >> 32).to(tl.uint32) if block.dtype == tl.int64 else tl.zeros((BLOCK // 4,), tl.uint32)
        block = block.to(tl.uint32)
    z0, z1, z2, z3 = four_normals(block, upper, seed, subsequence)
    z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK,))
    if CHANNELS != 0:
        offsets = tl.arange(0, BLOCK).to(tl.uint32)  # unsigned: a division by a constant is one multiplication
        s = offsets // CHANNELS
        c = offsets - s * CHANNELS
        skipped = (c * (spatial & 3).to(tl.uint32)) & 3
        index = (c * (4 * run) + s + skipped) & (BLOCK - 1)  # beyond the tile's end: anywhere inside it
        z = tl.gather(z, index.to(tl.int32), 0)
    return z


@triton.jit
def _wide_normals(position, elements, seed, subsequence, CHANNELS: tl.constexpr):
    """The normal of each memory position of a channels_last sample, by a Philox call of its own."""
    s = position // CHANNELS
    element = (position - s * CHANNELS) * (elements // CHANNELS) + s
    upper = (element.to(tl.int64) >> 34).to(tl.uint32)
    w0, w1, w2, w3 = words((element >> 2).to(tl.uint32), upper, seed, subsequence)
    second = (element & 2) != 0
    cos, sin = cos_sin(tl.where(second, w3, w1))
    return radius(tl.where(second, w2, w0)) * tl.where((element & 1) != 0, sin, cos)


@triton.jit
def tile_noise(noise_ptr, elements, place, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The tile's noise in float32: made from a key (int64), or read; 0 where there is none."""
    z = tl.zeros((BLOCK,), tl.float32)
    if noise_ptr is not None:
        is_key: tl.constexpr = noise_ptr.dtype.element_ty == tl.int64
        z = tile_normals(noise_ptr, elements, CHANNELS, BLOCK) if is_key else read(noise_ptr, place)
    return z


@triton.jit
def row_of(sample, t_ptr, rows_ptr, num_rows, T_STRIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """(t, row): the sample's index, and where its row begins and whether there is one. To be read with `column`."""
    t = tl.load(t_ptr + sample * T_STRIDE).to(tl.int64)
    return t, (rows_ptr + t * COLUMNS, (t >= 0) & (t < num_rows))


@triton.jit
def column(row, N: tl.constexpr):
    """A coefficient, N of columns.py (by a name of its own: no cache's key holds an attribute's value). A t out of range reads
    nothing and gives NaN, which poisons its sample."""
    start, exists = row
    return tl.load(start + N, mask=exists, other=float("nan"))


@triton.jit
def upstream_of(upstream_ptr, sample, STRIDE: tl.constexpr, OTHERWISE: tl.constexpr):
    """A loss's upstream gradient at this sample in float32, and what stands for one that is not given."""
    upstream = OTHERWISE
    if upstream_ptr is not None:
        upstream = tl.load(upstream_ptr + sample * STRIDE).to(tl.float32)
    return upstream


# ---- on the host ----

# Elements a thread, by the tensor's elements: more of them amortise a program's scalar work, fewer fill the processors.
_PER_THREAD = ((1 << 22, 32), (1 << 20, 16), (0, 8))
# By a sample's, where the batch must not matter: it is taken to be large enough from a CIFAR image's size on.
_PER_THREAD_ANY_BATCH = ((3072, 32), (0, 8))
_WARPS = (4, 2, 1)
_PADDING = 1.125  # accept that many lanes for each element; beyond it try fewer warps
_WIDE_PER_THREAD = 8  # a Philox call an element keeps four times the words

VIEWS = (
    "t_ptr", "next_t_ptr", "rows_ptr", "upstream_ptr", "mse_upstream_ptr", "vlb_upstream_ptr", "guidance_ptr", "bound_ptr"
)  # fmt: skip
"""Read a scalar at a time, and views of tables in a loop (`indices[t]`): a kernel specialised on their alignment to 16 bytes
would be compiled again for every second of them. The data keep it, for their accesses by 16 bytes."""


class Plan(NamedTuple):
    programs: int
    block: int
    num_warps: int


def plan(batch: int, elements: int, channels: int, any_batch: bool = False, most: int = 32) -> Plan:
    """How many programs of what size.

    Args:
        any_batch: the cut of a sample does not depend on how many there are.
        most: elements a thread, where a kernel has not the registers for more.
    """
    if channels > _MAX_CHANNELS:
        block = 32 * _WARPS[0] * _WIDE_PER_THREAD
        return Plan(batch * max(1, -(-elements // block)), block, _WARPS[0])
    size, sizes = (elements, _PER_THREAD_ANY_BATCH) if any_batch else (batch * elements, _PER_THREAD)
    per_thread = next(n for at_least, n in sizes if size >= at_least)
    per_thread = min(max(per_thread, triton.next_power_of_2(channels) // 2), most)
    best, least = None, None
    for warps in _WARPS:
        block = 32 * warps * per_thread
        length = positions_of(block, channels) * channels if channels else block
        if length == 0:
            break
        tiles = max(1, -(-elements // length))
        if least is None or tiles * block < least:
            best, least = Plan(batch * tiles, block, warps), tiles * block
        if least <= _PADDING * elements:
            break
    return best


class Tiles(NamedTuple):
    """How an op cuts its data, and the launch of its kernels."""

    layout: torch.memory_format
    channels: int
    elements: int
    plan: Plan

    def launch(
        self, kernel, written: tuple, data: tuple, t: Tensor, rows: Tensor, others: tuple = (), constants: tuple[int, ...] = ()
    ) -> None:
        """A kernel's arguments are what it writes, its data, `t_ptr, rows_ptr, num_rows, elements`, what others it has, its
        constants, and `T_STRIDE, CHANNELS, BLOCK`.

        The data are brought into the tiles' layout; what is written is in it already (see `result`).
        """
        layout, channels, elements, (programs, block, num_warps) = self
        t, stride = per_sample(t)
        data = operands(data, layout)
        arguments = (*written, *data, t, rows.contiguous(), rows.shape[0], elements, *others)
        launch(rows, kernel, programs, num_warps, arguments, (*constants, stride, channels, block))


def tiles_of(
    x: Tensor,
    *noises: Tensor | None,
    learned: bool = False,
    walks: Tensor | None = None,
    any_batch: bool = False,
    most: int = 32,
) -> Tiles:
    """Tiles of x.

    Args:
        noises: what noise the kernel takes.
        learned: whether the network's output has variance channels too.
        walks: whose layout the tiles go along, where it isn't x's.
        any_batch, most: as in `plan`.
    """
    layout = memory_format(x if walks is None else walks)
    by_channels = layout is not torch.contiguous_format and (learned or any(is_key(noise) for noise in noises))
    return cut(layout, x.shape, by_channels, any_batch, most)


@lru_cache(maxsize=1024)
def cut(layout: torch.memory_format, shape: torch.Size, by_channels: bool, any_batch: bool, most: int) -> Tiles:
    channels, elements = shape[1] if by_channels else 0, math.prod(shape[1:])
    return Tiles(layout, channels, elements, plan(shape[0], elements, channels, any_batch, most))


def is_learned(output: Tensor, x: Tensor) -> bool:
    """Whether a network's output has variance channels beside the mean's, which are x's."""
    return output.numel() != x.numel()


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout that a launch walks: x's where it can be."""
    if not x.is_contiguous():
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
        if last is not None and x.is_contiguous(memory_format=last):
            return last
    return torch.contiguous_format  # where x is not contiguous, it is copied, and so is the result


def is_key(noise: Tensor | None) -> bool:
    return noise is not None and noise.dtype is torch.int64


def operands(data: tuple, layout: torch.memory_format) -> list:
    """The tensors that lie in the launch's layout, copies in it of the others. A key is read as it is."""
    flat, laid_out = layout is torch.contiguous_format, []
    for x in data:
        if x is not None:
            x = x.contiguous() if flat or is_key(x) else x.contiguous(memory_format=layout)
        laid_out.append(x)
    return laid_out


def result(x: Tensor, layout: torch.memory_format, wanted: bool = True) -> Tensor | None:
    """Where a kernel writes what shall be like x: the result itself, but for a layout of x's that no launch walks."""
    if not wanted:
        return None
    return torch.empty_like(x) if x.is_contiguous(memory_format=layout) else torch.empty_like(x, memory_format=layout)


def like(out: Tensor | None, x: Tensor, layout: torch.memory_format) -> Tensor:
    """What a kernel wrote, with the strides of `torch.empty_like(x)`, which the op's fake promises; `unwanted` where None."""
    if out is None:
        return unwanted(x.dtype, x.device)[0]
    return out if x.is_contiguous(memory_format=layout) else torch.empty_like(x).copy_(out)


@lru_cache(maxsize=1024)
def unwanted(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """[0] for results that nobody wants, kept: to make one anew is a good part of a small call. Two, since no result of a call
    may be another. An inference tensor would be of no use elsewhere."""
    with torch.inference_mode(False):
        return torch.empty(0, dtype=dtype, device=device), torch.empty(0, dtype=dtype, device=device)


def per_sample(values: Tensor) -> tuple[Tensor, int]:
    """One value a sample, or one for all, and the stride to read them with."""
    if values.numel() == 1:
        return values, 0
    if values.is_contiguous():
        return values, 1
    return (values, 0) if values.stride(0) == 0 else (values.contiguous(), 1)


def elements_of(x: Tensor) -> int:
    return math.prod(x.shape[1:])
