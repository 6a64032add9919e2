"""The noise that a method draws from torch's generators, the same bits sooner: `torch.randn` on a CPU makes its words one by
one on one thread. Where the C++ kernels have been seen to make torch's bits, here, they do; elsewhere torch draws."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Generator, Size, Tensor

from .. import _extension

LEAST = 2048  # normals: from here on it is sooner, on one thread too
CPU = torch.device("cpu")
STATE_BYTES = 5056  # of torch's generator on a CPU, as the kernel reads them
INSTRUCTION_SETS = ("avx512", "avx2")  # those that torch's own code is for, and that have a fused multiply-add


def randn_like(x: Tensor) -> Tensor:
    """`torch.randn_like(x)`."""
    if not _is_quick(x):
        return torch.randn_like(x)
    out = torch.empty_like(x)
    _kernel()(torch.default_generator, out.data_ptr(), out.numel())
    return out


def skip_randn_like(x: Tensor) -> None:
    """Leaves torch's generator where `torch.randn_like(x)` would, for a method that draws noise and multiplies it by 0."""
    if _is_quick(x):
        _kernel()(torch.default_generator, 0, x.numel())
    else:
        torch.randn_like(x)


def quick_normals(shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: Any = None) -> Tensor | None:
    """What `torch.randn(shape, generator=generator)` would draw, or a sample from each of a list of generators, one a sample;
    None where torch is to do it."""
    each = isinstance(generator, list)
    generators = generator[: shape[0]] if each else [torch.default_generator if generator is None else generator]
    n = Size(shape[1:] if each else shape).numel()
    if not _quick(n, dtype, device) or (each and len(generators) < shape[0]) or not all(map(_draws_here, generators)):
        return None
    out = torch.empty(shape, dtype=dtype, device=device)
    for i, one in enumerate(generators):
        _kernel()(one, out.data_ptr() + i * n * out.element_size(), n)
    return out


def _draws_here(generator: Any) -> bool:
    return type(generator) is Generator and generator.device == CPU


def _is_quick(x: Tensor) -> bool:
    dense = type(x) is Tensor and x.layout is torch.strided and x.is_contiguous()
    return dense and _quick(x.numel(), x.dtype, x.device)


def _quick(n: int, dtype: torch.dtype, device: torch.device) -> bool:
    if n < LEAST or dtype is not torch.float32 or device.type != "cpu":
        return False
    # a mode may count draws, or put others in their place, or let tensors without memory through
    return not torch._C._len_torch_dispatch_stack() and not torch._C._len_torch_function_stack() and _as_torch()


def _kernel() -> Callable[[Generator, int, int], None]:
    return _extension.module.torch_normals  # type: ignore[union-attr]


@cache
def _as_torch() -> bool:
    """Whether the kernel's normals are this torch's, and its generator's state after them: promised nowhere."""
    if _extension.module is None or _extension.module.isa not in INSTRUCTION_SETS:
        return False
    try:
        return Generator(CPU).get_state().numel() == STATE_BYTES and all(map(_agree, (16, 37, 1 << 16)))
    except RuntimeError:  # of a state that is laid out otherwise
        return False


def _agree(n: int) -> bool:
    theirs, ours = (Generator(CPU).manual_seed(n) for _ in range(2))
    wanted = torch.randn(n, generator=theirs, dtype=torch.float32, device=CPU)
    made = torch.empty_like(wanted)
    _kernel()(ours, made.data_ptr(), n)
    return torch.equal(made.view(torch.int32), wanted.view(torch.int32)) and torch.equal(ours.get_state(), theirs.get_state())
