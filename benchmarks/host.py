"""What a call costs the host, and memory: ops dispatched, values read back, the peak of what it allocates."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fastddpm import _extension

from . import machine

READS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2", "bincount"}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias"}
"""Allocations and other names for a tensor: no work on a device."""


class Dispatched(TorchDispatchMode):
    """Counts the ops that compute (a launch each, at least), and those that read a value back."""

    launches = reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if name in READS:
            self.reads += 1
        elif name not in FREE and not view:
            self.launches += 1
        return func(*args, **(kwargs or {}))


def dispatched(call: Callable) -> dict[str, int]:
    """Of a warm call; not of a compiled one, whose kernels no dispatcher sees."""
    call()
    with Dispatched() as mode:
        call()
    return {"launches": mode.launches, "host_reads": mode.reads}


@contextmanager
def _no_pages():
    """Large results of fastddpm's lie in memory of its own; inside, they do not."""
    module = _extension.module
    former = module and module.set_thresholds(1 << 62, 1 << 62)
    try:
        yield
    finally:
        if module:
            module.set_thresholds(*former)


def peak_bytes(call: Callable, forget: Callable = lambda: None) -> int:
    """The most that the call holds at a time of what it allocates from torch, its results with it. `forget` drops what an
    earlier call has left.

    On a CPU torch's allocator is recorded, from which all comes meanwhile.
    """
    call()
    forget()
    if machine.DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _no_pages(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
