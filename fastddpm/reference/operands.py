"""What the ops are given: rows, noise, the halves of a network's output, and results like their operands."""

import math

import torch
from torch import Tensor

from ..rows import Columns, unpack
from .philox import fma, normals


def transformed(*tensors: Tensor | None) -> bool:
    """Whether torch.func's transforms are at work, or these are batches of gradients: there are no values to look at then, and
    no memory to write into."""
    return torch._C._are_functorch_transforms_active() or any(map(_batched, tensors))


def _batched(x: Tensor | None) -> bool:
    """Under torch.autograd.grad's is_grads_batched, which no compiler looks into."""
    return x is not None and not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(x)


def has_batches(x: Tensor) -> bool:
    """Whether vmap goes over a tensor's values, under whatever other transforms."""
    functorch = torch._C._functorch
    while torch._C._are_functorch_transforms_active() and functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def elements(x: Tensor) -> int:
    """Of one sample."""
    return math.prod(x.shape[1:])


def row_of(kind: type[Columns], rows: Tensor, index: Tensor, x: Tensor, name: str = "t") -> Columns:
    """Each sample's row, its columns shaped to broadcast over x. On the CPU an index out of range is an IndexError; elsewhere,
    where reading it would wait for the device, it makes that sample's row NaN."""
    index = index.long().reshape(-1).expand(x.shape[0])
    outside = (index < 0) | (index >= len(rows))
    if x.device.type == "cpu" and not transformed():
        if bool(outside.any()):
            raise IndexError(f"{name}: expected 0 .. {len(rows) - 1}, got {int(index[outside][0])}")
        chosen = rows[index]
    else:
        chosen = rows[index.clamp(0, len(rows) - 1)].masked_fill(outside[:, None], math.nan)
    return unpack(kind, chosen.view(-1, *[1] * (x.dim() - 1), rows.shape[1]))


def noise_of(noise: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A key's normals, or the tensor given, of x's shape."""
    if noise.dtype == torch.int64:
        noise = normals(noise, elements(x)).view(x.shape)
    return noise.to(dtype)


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c, with one rounding in float32."""
    plain = b.dtype != torch.float32 or b.device.type == "mps" or _batched(b)
    return a * b + c if plain else fma(a, b, c)


def like(values: Tensor, x: Tensor) -> Tensor:
    """x's dtype and its layout in memory."""
    return values.to(x.dtype) if transformed(values) else torch.empty_like(x).copy_(values)


def halves(model_output: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The network's mean channels and, where it has twice x's, its variance channels v."""
    values = model_output.to(dtype)
    if model_output.shape == x.shape:
        return values, None
    return values[:, : x.shape[1]], values[:, x.shape[1] :]


def each_sample(values: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """One value or `[B]`, shaped to broadcast over x."""
    return values.reshape(-1, *[1] * (x.dim() - 1)).to(dtype)


def count_of(x: Tensor, reduction: int) -> int:
    """What a sample's sum is divided by: D, and B for the mean."""
    return max(elements(x) * (x.shape[0] if reduction == 1 else 1), 1)


def reduced(loss: Tensor, reduction: int) -> Tensor:
    return (loss, loss.mean(), loss.sum())[reduction]


def mean_of(values: Tensor) -> Tensor:
    """`[B]`: over the elements of each sample."""
    return values.reshape(values.shape[0], elements(values)).mean(1)
