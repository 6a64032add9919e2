"""Registers the Triton kernels for the "CUDA" dispatch key, which NVIDIA and AMD (ROCm) share, and says why when it cannot.

Nothing is compiled here, nor is triton imported: that is left to the first call. A device that has no kernels runs the eager
reference, and says so once. float64 runs it on every GPU: the Triton kernels compute in float32.
"""

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable

import torch

from . import reference

OPS = (
    "fill_key_",
    "advance_",
    "randn_",
    "timesteps",
    "noising",
    "noising_uniform",
    "mse_loss",
    "mse_loss_backward",
    "scale_grad_",
    "vlb_loss",
    "vlb_loss_backward",
    "hybrid_loss",
    "hybrid_loss_backward",
    "vlb_terms",
    "reverse_step",
    "reverse_step_backward",
    "adamw_",
)
"""The ops with a Triton kernel: all but copy_key, a copy already, and total_norm, torch's `_foreach_norm`."""

WITHOUT_KERNELS = ("MPS", "XPU")
"""Dispatch keys that run the reference and announce it. (So does "CUDA" where triton is missing.)"""

reason = ""
"""Why the kernels are not registered; empty where they are."""

_library: torch.library.Library | None = None


def load() -> None:
    """Registers what this installation can run. To be called after the schemas are defined; a second call does nothing."""
    global _library, reason
    if _library is not None:
        return
    reason = _why_not()
    _library = torch.library.Library("fastddpm", "IMPL")
    for name in OPS:
        _library.impl(name, _announced(name, reason) if reason else kernel(name), "CUDA")
        for key in WITHOUT_KERNELS:
            _library.impl(name, _announced(name, "fastddpm has no kernels for it"), key)


def serves(device: str) -> str:
    """What runs the ops of OPS on a type of device other than the CPU: "Triton", or "reference (why)"."""
    if device != "cuda":
        return "reference (fastddpm has no kernels for it)"
    return f"reference ({reason})" if reason else "Triton"


def kernel(name: str) -> Callable:
    """The kernel of an op, imported at its first call: triton takes a good part of a second. In an arithmetic other than
    float32, and where there is nothing to do, the op's reference; what works in place decides for itself."""
    run, otherwise = None, getattr(reference, name)
    names = [] if name.endswith("_") else list(inspect.signature(otherwise).parameters)
    rows, x = (names.index(n) if n in names else 0 for n in ("rows", "model_output"))  # a noising's x is its first

    def call(*arguments):
        nonlocal run
        if rows and (arguments[rows].dtype is not torch.float32 or not arguments[x].numel()):
            return otherwise(*arguments)
        if run is None:
            run = getattr(importlib.import_module("fastddpm.kernels"), name)
        return run(*arguments)

    return call


def _why_not() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA and ROCm"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return ""


_announcements: set[str] = set()


def _announced(name: str, why: str) -> Callable:
    """The reference, preceded by one warning for each type of device."""
    run = getattr(reference, name)

    def call(*arguments):
        device = next(x.device.type for x in arguments if isinstance(x, torch.Tensor))
        if device not in _announcements:
            _announcements.add(device)
            warnings.warn(f"fastddpm runs its eager reference on {device}: {why}", RuntimeWarning, stacklevel=2)
        return run(*arguments)

    return call
