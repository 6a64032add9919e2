"""`q_sample` and the `predict_*` methods: each is out = a x + s z."""

from typing import Any

import torch
from torch import Tensor

from ...autograd import noising
from ...checks import FLOAT_DTYPES, HALF_DTYPES
from ...noise import randn
from ..compiled import but_compiled
from ..draws import drawn_key
from ..patch import MARK, Method, Patch, original
from ..torch_normals import randn_like
from .rows import NOISE_OF_X_0, X_0_OF_NOISE, X_0_OF_V, X_T, Rows, Table, V, rows_of

STRICT = "strict, in half precision"


@but_compiled
def q_sample(self: Any, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
    rows = rows_of(self, X_T)
    why = why_not(self, rows, x_start, noise) or why_not_at(t, x_start)
    if why:
        return original(self, q_sample, why)(x_start, t, noise)
    return noised(self, rows, x_start, t, drawn(self, x_start, self.immiscible) if noise is None else noise)


def noised(self: Any, rows: Rows, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    if self.immiscible:
        with torch.autocast("cuda", enabled=False):
            noise = noise[self.noise_assignment(x_start, noise)]
    return _applied(rows, x_start, t, noise)


@but_compiled
def predict_start_from_noise(self: Any, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    rows, why = _checked(self, X_0_OF_NOISE, x_t, t, noise)
    return original(self, predict_start_from_noise, why)(x_t, t, noise) if why else _applied(rows, x_t, t, noise)


@but_compiled
def predict_noise_from_start(self: Any, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    rows, why = _checked(self, NOISE_OF_X_0, x_t, t, x0)
    return original(self, predict_noise_from_start, why)(x_t, t, x0) if why else _applied(rows, x_t, t, x0)


@but_compiled
def predict_v(self: Any, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    rows, why = _checked(self, V, x_start, t, noise)
    return original(self, predict_v, why)(x_start, t, noise) if why else _applied(rows, x_start, t, noise)


@but_compiled
def predict_start_from_v(self: Any, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    rows, why = _checked(self, X_0_OF_V, x_t, t, v)
    return original(self, predict_start_from_v, why)(x_t, t, v) if why else _applied(rows, x_t, t, v)


def _checked(self: Any, table: Table, x: Tensor, t: Tensor, z: Tensor) -> tuple[Rows, str]:
    rows = rows_of(self, table)
    return rows, why_not(self, rows, x, z) or why_not_at(t, x)


def _applied(rows: Rows, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    dtype = promoted(rows.dtype, x, x if z.dtype is torch.int64 else z)
    try:
        return noising(x.to(dtype), z, t, rows.on(arithmetic(dtype)))
    except IndexError as out_of_range:  # of t, on the CPU
        raise RuntimeError(str(out_of_range)) from None


def drawn(self: Any, like: Tensor, as_tensor: bool = False) -> Tensor:
    """What stands for the original's `randn_like`: that, or a key; or a key's normals, where they are read more than once."""
    if getattr(self, MARK).noise == "torch":
        return randn_like(like)
    key = drawn_key(len(like), like.device)
    return randn(key, like.shape, like.dtype) if as_tensor else key


def promoted(dtype: torch.dtype, *tensors: Tensor) -> torch.dtype:
    for x in tensors:
        if x.dtype is not dtype:
            dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def why_not(self: Any, rows: Rows, x: Tensor, z: Tensor | None = None) -> str:
    """Why a call is the original's, of its tensors; "" where it is ours."""
    patch = getattr(self, MARK)
    if not isinstance(x, Tensor) or x.dtype not in FLOAT_DTYPES or not x.dim() or x.device != rows.device:
        return "an x that is no floating tensor [B, ...] on the buffers' device"
    if z is not None:
        if not isinstance(z, Tensor) or z.dtype not in FLOAT_DTYPES or z.shape != x.shape or z.device != x.device:
            return "a second tensor of another shape or device, or that is no floating one"
        if z.requires_grad and torch.is_grad_enabled():
            return "a gradient through the second tensor"
    if patch.strict and (x.dtype in HALF_DTYPES or (z is not None and z.dtype in HALF_DTYPES)):
        return STRICT
    return why_not_rows(patch, rows)


def why_not_rows(patch: Patch, rows: Rows) -> str:
    return rows.why_not or (STRICT if patch.strict and rows.dtype in HALF_DTYPES else "")


def why_not_at(t: Tensor, x: Tensor) -> str:
    if isinstance(t, Tensor) and t.dtype is torch.int64 and t.shape in ((len(x),), (1,)) and t.device == x.device:
        return ""
    return "a t that is no int64 tensor [B] on the data's device"


METHODS = (
    Method(q_sample, "one pass"),
    Method(predict_start_from_noise, "one pass"),
    Method(predict_noise_from_start, "one pass"),
    Method(predict_v, "one pass"),
    Method(predict_start_from_v, "one pass"),
)
