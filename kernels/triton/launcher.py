"""The launch of a kernel, without what triton's own way costs the host at each.

Triton binds the arguments to what it specialises on (dtypes, alignment, values), looks the kernel up by a string of that and of
its options, reads what may watch it, and calls the kernel's launcher. Here its binder is asked, so that the answer is triton's
in every detail, and the rest is one look into a dictionary. Not yet run on a GPU.
"""

import torch
from torch import Tensor

import triton
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

FLAGS = {"enable_fp_fusion": False}
"""Compile options of every launch: no contraction of a mul and an add into an fma that the contract does not name."""

_KNOWN = (3, 6) <= tuple(int(n) for n in triton.__version__.split(".")[:2]) <= (3, 8)
"""Whether `_short_cut` is what this triton's JITFunction.run does."""


def launch(on: Tensor, kernel, grid: tuple[int], *arguments, **constants: int) -> None:
    """A launch on a tensor's GPU, which is made the current one; free where it is already."""
    device = on.get_device()
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(on, kernel, grid, *arguments, **constants)
    elif _KNOWN and isinstance(kernel, JITFunction) and not _watched():  # an interpreted kernel is of another kind
        _short_cut(device, kernel, grid, arguments, constants)
    else:
        kernel[grid](*arguments, **constants, **FLAGS)


def _short_cut(device: int, kernel, grid: tuple[int], arguments: tuple, constants: dict[str, int]) -> None:
    compiled_kernels, *_, binder = kernel.device_caches[device]
    bound, specialization, options = binder(*arguments, **constants)
    key = (*specialization, *options.values(), knobs.runtime.debug, knobs.compilation.instrumentation_mode)
    compiled = compiled_kernels.get(key)  # triton's keys are strings
    if compiled is None:
        compiled_kernels[key] = kernel[grid](*arguments, **constants, **FLAGS)
    else:
        stream = driver.active.get_current_stream(device)
        compiled.run(grid[0], 1, 1, stream, compiled.function, compiled.packed_metadata, None, None, None, *bound.values())


def _watched() -> bool:
    """Whether a profiler wants to hear of launches, or someone to see how a kernel is compiled."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook  # chains of hooks, or a hook in a chain's place
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave) or runtime.add_stages_inspection_hook)
