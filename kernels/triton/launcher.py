"""The launch of a kernel, without what triton's own way costs the host at each.

Triton binds the arguments to what it specialises on (dtypes, alignment, values), looks the kernel up by a string of that and of
its options, reads what may watch it, and calls the kernel's launcher. Here what it found is kept under a key of our own, finer
than its (`_specialized`): one that is new asks triton, one that is known is a look into a dictionary. This relies on what a
triton of `_KNOWN` specialises on, and on its launchers, which take an address for a tensor. Not yet run on a GPU.
"""

from functools import lru_cache

import torch
from torch import Tensor

import triton
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

FLAGS = {"enable_fp_fusion": False}
"""Compile options of every launch: no contraction of a mul and an add into an fma that the contract does not name."""

_KNOWN = (3, 6) <= tuple(int(n) for n in triton.__version__.split(".")[:2]) <= (3, 8)
"""Whether `_short_cut` does what this triton's JITFunction.run does."""

_AMD = torch.version.hip is not None


def launch(on: Tensor, kernel, programs: int, num_warps: int, arguments: tuple, constants: tuple[int, ...]) -> None:
    """A launch on a tensor's GPU, which is made the current one; free where it is already. A kernel has its constants last."""
    device = on.get_device()
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(on, kernel, programs, num_warps, arguments, constants)
    elif _KNOWN and isinstance(kernel, JITFunction) and not _watched():  # an interpreted kernel is of another kind
        _short_cut(device, kernel, programs, num_warps, arguments, constants)
    else:
        kernel[(programs,)](*arguments, *constants, num_warps=num_warps, **FLAGS)


def _short_cut(device: int, kernel, programs: int, num_warps: int, arguments: tuple, constants: tuple[int, ...]) -> None:
    seen, sent = _specialized(arguments)
    key = *seen, num_warps, constants, knobs.runtime.debug, knobs.compilation.instrumentation_mode  # triton's are strings
    compiled_kernels = kernel.device_caches[device][0]
    compiled = compiled_kernels.get(key)
    if compiled is None:
        compiled_kernels[key] = kernel[(programs,)](*arguments, *constants, num_warps=num_warps, **FLAGS)
    else:
        stream = driver.active.get_current_stream(device)
        metadata = compiled.packed_metadata, None, None, None
        compiled.run(programs, 1, 1, stream, compiled.function, *metadata, *sent, *constants)


def _specialized(arguments: tuple) -> tuple[list, list]:
    """All that triton may specialise on, whether it does or not: a tensor's dtype, its address modulo 16 and, for AMD, whether
    its storage has 2 GiB; whether an int is 1, a multiple of 16, and of what type; of a float nothing but that it is one. Then
    what a launcher takes: addresses in the place of tensors."""
    key, sent, places = [], [], 0
    for x in arguments:
        if x is None:
            key.append(None)
        elif type(x) is int:
            key.append(_kind(x))
        elif type(x) is float:
            key.append(float)
        else:
            key.append(x.dtype)
            x = x.data_ptr()
            places = places << 4 | x & 15
        sent.append(x)
    key.append(places)
    if _AMD:
        key += [x.untyped_storage().nbytes() >= 1 << 31 for x in arguments if isinstance(x, Tensor)]
    return key, sent


@lru_cache(maxsize=1024)
def _kind(x: int) -> tuple[bool, ...]:
    return x == 1, x % 16 == 0, -(1 << 31) <= x < 1 << 31, x < 1 << 63


def _watched() -> bool:
    """Whether a profiler wants to hear of launches, or someone to see how a kernel is compiled."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook  # chains of hooks, or a hook in a chain's place
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave) or runtime.add_stages_inspection_hook)
