"""Noise that is a pure function of (seed, step, sample, element): keys, normals, timesteps, levels.

The contract, with its known answers, is docs/noise.md. A key is an int64 tensor `[B, 2]` of (seed, subsequence), one row a
sample, where `subsequence = stream << 60 | step << 32 | sample`.
"""

import math
import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from . import ops
from .autograd import NEVER
from .checks import as_int, as_shape, check_float_dtype, check_key, check_one_of, describe
from .densities import WORDS, Density, LogNormal, check_density
from .reference.keys import TIMESTEP_STREAM
from .reference.operands import has_batches
from .reference.philox import normals

BELOW_1 = 1 - 2**-24
"""The last float32."""

STREAMS = {
    "training": 0,
    "reverse": 1,
    "initial": 2,
    "timestep": TIMESTEP_STREAM,
    "evaluation": 4,
    "label_dropping": 5,
    "image_to_image": 6,
    "inpainting": 7,
    "offset_noise": 8,
    "input_perturbation": 9,
    "churn": 10,
    "condition_dropout": 11,
    "data_order": 12,
    "self_conditioning": 13,
    "user": 14,
    "user_2": 15,
}
"""What each stream of a run's noise is for (docs/noise.md)."""

MAX_STEP = 1 << 28
MAX_SAMPLE = 1 << 32
MAX_STREAM = 1 << 4

_HAS_RANKS = dist.is_available()
_warned = False
"""That a first_sample was left out where there are ranks."""


def noise_key(
    seed: int | Tensor,
    step: int = 0,
    batch_size: int | None = None,
    first_sample: int | None = None,
    stream: str | int = "training",
    device: torch.device | str | None = None,
) -> Tensor:
    """A key for each sample of a batch.

    Args:
        seed: an int, taken modulo 2^64, or an integer tensor `[B]` of one seed a sample. With a tensor every sample index is
            `first_sample`: an image then depends on its own seed and not on its place in the batch.
        step: the training step, or the position in a sampling loop; 0 <= step < 2^28.
        batch_size: B. Needed with an int seed (default 1); with a tensor of seeds it must agree or be left out.
        first_sample: the index of the batch's first sample, from which samples are numbered: rank * B on rank `rank`, and each
            micro-batch of a step has its own. With one for all of them, all draw the same noise and the same t. None is 0,
            which is warned of once where torch.distributed has more than one rank (not with seeds).
        stream: which of a run's streams of noise this is, a name of `STREAMS` or its number: "training", a loop's "initial" x_T
            and its steps' "reverse", .., and "user" and "user_2" for whatever you like.
        device: where the key lives; it must be the data's device. Default: the seeds' device, or torch's default device.

    Returns:
        int64 `[B, 2]`.

    Raises:
        ValueError: a step, sample index or stream out of its range, or an unknown stream.
        TypeError: a seed that is neither an int nor an integer tensor.
    """
    step = as_int("step", step)
    if first_sample is None:
        first_sample = 0
        if _HAS_RANKS and not _warned and dist.is_initialized() and not isinstance(seed, Tensor):
            _warn_of_ranks()
    else:
        first_sample = as_int("first_sample", first_sample)
    if batch_size is not None:
        batch_size = as_int("batch_size", batch_size)
    if not 0 <= step < MAX_STEP:
        raise ValueError(f"step: expected 0 <= step < 2^28, got {step}")
    stream = _stream(stream)
    if isinstance(seed, Tensor):
        return _key_of_seeds(seed, step, batch_size, first_sample, stream, device)
    seed = as_int("seed", seed, "an int or an integer tensor [B]")
    size = 1 if batch_size is None else batch_size
    if size < 0:
        raise ValueError(f"batch_size: expected 0 or more, got {size}")
    if not 0 <= first_sample <= MAX_SAMPLE - max(size, 1):
        raise ValueError(f"first_sample: expected every sample index in 0 .. 2^32 - 1, got {first_sample} with {size} samples")
    key = torch.empty((size, 2), dtype=torch.int64, device=device)
    ops.fill_key_(key, _signed64(seed), _subsequence(stream, step, first_sample))
    return key


def _warn_of_ranks() -> None:
    global _warned
    if dist.get_world_size() == 1 or torch.compiler.is_compiling():
        return
    _warned = True
    warnings.warn(
        f"first_sample: left out, in a process group of {dist.get_world_size()} ranks: with 0 on each of them all draw the "
        "same noise and the same t. Give rank * batch_size (or 0, where that is meant)",
        RuntimeWarning,
        stacklevel=3,
    )


def _stream(stream: str | int) -> int:
    if isinstance(stream, str):
        check_one_of("stream", stream, tuple(STREAMS))
        return STREAMS[stream]
    number = as_int("stream", stream, "a name of STREAMS or its number")
    if not 0 <= number < MAX_STREAM:
        raise ValueError(f"stream: expected 0 <= stream < 16, got {number}")
    return number


def _key_of_seeds(
    seeds: Tensor, step: int, batch_size: int | None, sample: int, stream: int, device: torch.device | str | None
) -> Tensor:
    if seeds.is_floating_point() or seeds.is_complex() or seeds.dtype == torch.bool or seeds.dim() != 1:
        raise TypeError(f"seed: expected an int or an integer tensor [B], got {describe(seeds)}")
    if batch_size is not None and batch_size != seeds.shape[0]:
        raise ValueError(f"batch_size: expected {seeds.shape[0]} (the number of seeds) or None, got {batch_size}")
    if not 0 <= sample < MAX_SAMPLE:
        raise ValueError(f"first_sample: expected 0 .. 2^32 - 1, got {sample}")
    seeds = seeds.to(device=device, dtype=torch.int64)
    return torch.stack((seeds, torch.full_like(seeds, _subsequence(stream, step, sample))), dim=1)


def _signed64(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _subsequence(stream: int, step: int, sample: int) -> int:
    return _signed64(stream << 60 | step << 32 | sample)


def with_stream(key: Tensor, stream: str) -> Tensor:
    """A key of the same seeds, steps and samples in another stream."""
    rest = _subsequence(0, MAX_STEP - 1, MAX_SAMPLE - 1)
    return torch.stack((key[:, 0], key[:, 1] & rest | _subsequence(STREAMS[stream], 0, 0)), 1)


def advance(key: Tensor, steps: int = 1) -> Tensor:
    """Adds `steps` to the step of every row of a key, in place and on its device, and returns the key.

    Inside a captured CUDA graph it makes each replay draw fresh noise; inside `torch.compile` it is how the step moves without
    a recompilation. A backward that is still to come sees the key as its forward did. (Not under checkpointing, which runs the
    forward again: advance after the backward there.)

    Raises:
        OverflowError: on the CPU, where a step would leave 0 .. 2^28 - 1 (nothing is changed then). Other devices are not
            asked, since that would wait for them; the step wraps inside its 28 bits there.
    """
    check_key("key", key)
    steps = as_int("steps", steps)
    if key.shape[0] > 1 and key.stride(0) == 0:
        raise ValueError(
            "key: expected rows of their own, got an expanded tensor, whose one row would advance for each; clone it"
        )
    ops.advance_(key, steps)
    if not torch.compiler.is_compiling():  # for a backward that is still to come
        torch.autograd.graph.increment_version(key)
        calls, moved = getattr(key, "_advanced", NEVER)
        key._advanced = calls + 1, moved + steps  # type: ignore[attr-defined]
    return key


def randn(
    key: Tensor,
    shape: tuple[int, ...] | torch.Size,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """The standard normals that the kernels make from a key: Philox4x32-10 (Salmon et al. 2011) and Box-Muller (1958).

    Args:
        key: int64 `[B, 2]`, see `noise_key`.
        shape: the shape wanted; its first size is B.
        dtype: float32, bfloat16, float16 or float64: the float32 normal, cast.
        memory_format: how the result lies in memory (not under vmap over keys). It does not change which element gets which
            normal.

    Returns:
        A tensor of that shape and dtype on the key's device.
    """
    check_key("key", key)
    check_float_dtype("dtype", dtype)
    shape = as_shape("shape", shape)
    if shape[0] != key.shape[0]:
        raise ValueError(f"shape: expected a first size of {key.shape[0]} (the key's rows), got {shape}")
    if has_batches(key):  # vmap's, of which no memory can be handed over
        return normals(key, math.prod(shape[1:])).reshape(shape).to(dtype)
    out = torch.empty(shape, dtype=dtype, device=key.device, memory_format=memory_format)
    ops.randn_(out, key)
    return out


def timesteps(key: Tensor, num_timesteps: int, density: Density | None = None) -> Tensor:
    """A timestep index for each sample, uniform or of another density, from the first word of the key's block 0 in stream 3.

    Args:
        key: int64 `[B, 2]`; the stream it names is replaced by 3, so the training noise's own key serves.
        num_timesteps: T, 1 <= T < 2^31.
        density: one of `fastddpm.densities`, e.g. `LogitNormal()`; None is uniform, `mulhi(w[0], T)`. Two small launches more.

    Returns:
        int64 `[B]`, values 0 .. T-1, on the key's device: the same bits on all of them.
    """
    check_key("key", key)
    num_timesteps = as_int("num_timesteps", num_timesteps)
    if not 1 <= num_timesteps < 1 << 31:
        raise ValueError(f"num_timesteps: expected 1 <= T < 2^31, got {num_timesteps}")
    if density is None:
        return ops.timesteps(key, num_timesteps)
    check_density(density)
    return chosen(key, density.bounds_on(num_timesteps, key.device))


def chosen(key: Tensor, bounds: Tensor) -> Tensor:
    """The t whose words, of 2^30, the key's is one of: a search among whole numbers, the same everywhere."""
    return torch.searchsorted(bounds, ops.timesteps(key, WORDS), right=True)


def levels(key: Tensor, density: Density | None = None) -> Tensor:
    """A level of continuous time for each sample, by the very word that `timesteps` has: floor(T level) is its index, but for
    rounding.

    Args:
        key: as `timesteps` takes it.
        density: one of `fastddpm.densities` but `Discrete`; None is uniform on (0, 1). Those of `LogNormal` are sigmas.

    Returns:
        float32 `[B]` on the key's device, made in float64 there; where rounding would give 1 the float32 before it (not of
        `LogNormal`). Equal to rounding from one device to another.
    """
    check_key("key", key)
    share = (ops.timesteps(key, WORDS).double() + 0.5) / WORDS
    if density is None:
        return share.float().clamp(max=BELOW_1)
    check_density(density)
    level = density.quantile(share).float()
    return level if isinstance(density, LogNormal) else level.clamp(max=BELOW_1)
