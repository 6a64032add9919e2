"""Checks of arguments, shared by the public functions. Each error names the argument, what was expected and what came."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, cast

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def describe(value: object) -> str:
    """A tensor's dtype, shape and device in one phrase; anything else's type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    return type(value).__name__


def check_float_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64, got {dtype}")


def as_int(name: str, value: Any, expected: str = "an int") -> int:
    """An int, numpy's among them; no bool."""
    if type(value) is int:
        return value
    if isinstance(value, torch.SymInt):
        return cast(int, value)  # a size under a tracer is to stay one
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {describe(value)}")
    return int(value)


def as_finite(name: str, value: Any, expected: str = "a finite number") -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return float(value)


def as_shape(name: str, shape: object) -> tuple[int, ...]:
    """(B, ...) of sizes that are 0 or more, from any sequence."""
    sizes = tuple(as_int(name, n, "(B, ...)") for n in shape) if isinstance(shape, Sequence) else ()
    if not sizes or min(sizes) < 0:
        raise ValueError(f"{name}: expected (B, ...), got {shape}")
    return sizes


def check_no_grad(name: str, x: Tensor) -> None:
    """No function is differentiable in its noise, nor a loss in the data or its weights: better refused than dropped."""
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: expected a tensor that does not require grad, since no gradient flows to it here; detach it")


def check_data(name: str, x: Tensor) -> None:
    """A floating tensor [B, ...]."""
    if not isinstance(x, Tensor) or x.dtype not in FLOAT_DTYPES or x.dim() == 0:
        raise TypeError(f"{name}: expected a float32, bfloat16, float16 or float64 tensor [B, ...], got {describe(x)}")


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """A floating tensor of another's shape and device."""
    if not isinstance(x, Tensor) or x.dtype not in FLOAT_DTYPES:
        hint = " (a key is int64)" if name == "noise" else ""
        raise TypeError(f"{name}: expected a float32, bfloat16, float16 or float64 tensor{hint}, got {describe(x)}")
    if x.shape != other.shape:
        raise ValueError(f"{name}: expected {other_name}'s shape {list(other.shape)}, got {list(x.shape)}")
    if x.device != other.device:
        raise ValueError(f"{name}: expected {other_name}'s device {other.device}, got {x.device}")


def check_output(output: Tensor, variance_type: str, x_name: str, x: Tensor, name: str = "model_output") -> None:
    """A network's output: of x's shape, or of twice its channels where the variance is learned (the mean's come first)."""
    if not variance_type.startswith("learned"):
        check_like(name, output, x_name, x)
        return
    if not isinstance(output, Tensor) or output.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected a float32, bfloat16, float16 or float64 tensor, got {describe(output)}")
    if x.dim() < 2:
        raise ValueError(f"{x_name}: expected [B, C, ...] for variance_type {variance_type!r}, got {list(x.shape)}")
    shape = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    if output.shape != shape:
        raise ValueError(
            f"{name}: expected [B, 2C, ...] = {list(shape)} for variance_type {variance_type!r} (the mean's channels, then "
            f"the variance's), got {list(output.shape)}"
        )
    if output.device != x.device:
        raise ValueError(f"{name}: expected {x_name}'s device {x.device}, got {output.device}")


def check_key(name: str, key: Tensor) -> None:
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.dim() != 2 or key.shape[1] != 2:
        raise TypeError(f"{name}: expected an int64 key [B, 2] from noise_key, got {describe(key)}")


def check_index(name: str, t: Tensor, x: Tensor) -> None:
    """int32 or int64, one value a sample or one for all. The kernel checks its range: a GPU's values are not read here."""
    if t.dtype is not torch.int64 and t.dtype is not torch.int32:
        raise TypeError(f"{name}: expected an int32 or int64 tensor [B], got {describe(t)}")
    if t.dim() > 1 or (t.numel() != 1 and t.numel() != x.shape[0]):
        raise ValueError(f"{name}: expected shape [{x.shape[0]}] (one a sample) or one value, got {list(t.shape)}")
    if t.device != x.device:
        raise ValueError(f"{name}: expected the data's device {x.device}, got {t.device}")


def check_samples(name: str, values: Tensor, batch: int, device: torch.device) -> None:
    """A floating number a sample, or one for all, that no gradient is wanted of."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"{name}: expected a floating tensor [B], got {describe(values)}")
    if values.shape not in ((), (batch,)):
        raise ValueError(f"{name}: expected shape [{batch}] (one a sample) or one value, got {list(values.shape)}")
    if values.device != device:
        raise ValueError(f"{name}: expected the data's device {device}, got {values.device}")
    check_no_grad(name, values)


def as_samples(name: str, value: Any, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same, of a finite number too."""
    if isinstance(value, Tensor):
        check_samples(name, value, batch, device)
        return value.to(dtype)
    number = as_finite(name, value, "a finite number or a floating tensor [B]")
    return torch.full((), number, dtype=dtype, device=device)  # filled there: an upload would wait


def check_noise(noise: Tensor, x_name: str, x: Tensor, name: str = "noise") -> None:
    """A key for x's batch, or a tensor of x's shape."""
    if not isinstance(noise, Tensor) or noise.dtype is not torch.int64:
        check_like(name, noise, x_name, x)
        check_no_grad(name, noise)
        return
    shape, batch = noise.shape, x.shape[0]
    if len(shape) != 2 or shape[1] != 2:
        raise TypeError(
            f"{name}: expected an int64 key [{batch}, 2] from noise_key, or a floating tensor, got {describe(noise)}"
        )
    if shape[0] != batch:
        raise ValueError(f"{name}: expected a key of {batch} rows (the batch of {x_name}), got {shape[0]}")
    if noise.device != x.device:
        raise ValueError(f"{name}: expected {x_name}'s device {x.device}, got {noise.device}")


def check_one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
