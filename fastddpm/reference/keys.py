"""The ops on keys, and the noise alone (twins: kernels/cpu/keys.h, kernels/triton/keys.py)."""

import torch
from torch import Tensor

from .operands import elements
from .philox import normals, philox

_STREAM_SHIFT, _STEP_SHIFT = 60, 32
STEP_MASK = (1 << 28) - 1
TIMESTEP_STREAM = 3


def fill_key_(key: Tensor, seed: int, subsequence: int) -> None:
    key[:, 0] = seed
    key[:, 1] = subsequence + torch.arange(key.shape[0], device=key.device)


def advance_(key: Tensor, steps: int) -> None:
    moved = ((key[:, 1] >> _STEP_SHIFT) & STEP_MASK) + steps
    if key.device.type == "cpu" and bool(((moved < 0) | (moved > STEP_MASK)).any()):
        raise OverflowError(f"steps: expected every step to stay in 0 .. 2^28 - 1, got {steps} more than the key's")
    key[:, 1] = (key[:, 1] & ~(STEP_MASK << _STEP_SHIFT)) | ((moved & STEP_MASK) << _STEP_SHIFT)


def copy_key(key: Tensor) -> Tensor:
    """A copy that no compiler removes, as it does a clone whose original it does not see change."""
    return key.clone()


def randn_(out: Tensor, key: Tensor) -> None:
    out.copy_(normals(key, elements(out)).view(out.shape))


def timesteps(key: Tensor, num_timesteps: int) -> Tensor:
    sub = (key[:, 1] & ((1 << _STREAM_SHIFT) - 1)) | (TIMESTEP_STREAM << _STREAM_SHIFT)
    return (philox(torch.zeros_like(sub), key[:, 0], sub)[0] * num_timesteps) >> 32
