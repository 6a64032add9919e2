"""What a training step may add: noise that a channel shares, noise on what the network is given, its own estimate of x_0.

Nothing of it is in a kernel: it is a few calls round those of a plain step, of the training key in streams of their own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import autograd, ops
from .checks import as_finite, check_noise
from .coefficients import perturbation_rows, x_0_rows
from .functional import arithmetic, number_or_index
from .noise import randn, with_stream
from .process import Process


def as_strength(name: str, value: float) -> float:
    strength = as_finite(name, value)
    if strength < 0:
        raise ValueError(f"{name}: expected 0 or more, got {value}")
    return strength


def with_offset(noise: Tensor, x_0: Tensor, key: Tensor, strength: float) -> Tensor:
    """z + strength n, n one normal for each sample and channel (Guttenberg 2023, "Diffusion with offset noise"). A tensor."""
    if x_0.dim() < 2:
        raise ValueError(f"x_0: expected [B, C, ...], whose channels share an offset, got {list(x_0.shape)}")
    check_noise(noise, "x_0", x_0)
    dtype = arithmetic(x_0)
    n = randn(with_stream(key, "offset_noise"), x_0.shape[:2], dtype).view(*x_0.shape[:2], *(1,) * (x_0.dim() - 2))
    if noise.is_floating_point():
        return noise.add(n, alpha=strength)
    z = torch.empty_like(x_0, dtype=dtype)
    ops.randn_(z, noise)
    return z.add_(n, alpha=strength)


def perturbed(x_t: Tensor, t: Tensor, schedule: Process, key: Tensor, strength: float) -> Tensor:
    """a x_0 + s (z + strength z') of x_t, z' the noise of another stream (Ning et al. 2023, "Input perturbation")."""
    number, index = number_or_index("t", t, x_t, schedule)
    rows = perturbation_rows(schedule, strength, x_t.device, arithmetic(x_t), number)
    return autograd.noising(x_t, with_stream(key, "input_perturbation"), index, rows)


def own_estimate(
    output_of: Callable[[Tensor], Tensor], x_t: Tensor, t: Tensor, schedule: Process, prediction_type: str, key: Tensor
) -> Tensor:
    """x_0_hat of a first call, in every second sample by chance; 0 in the others (Chen et al. 2022, "Analog bits", 2.2).

    Which samples is not known here, so the call is made of all.
    """
    with torch.no_grad(), _uncached_autocast(x_t.device.type):
        output = output_of(torch.zeros_like(x_t))
        mean = output if output.shape == x_t.shape else output[:, : x_t.shape[1]]
        number, index = number_or_index("t", t, x_t, schedule)
        rows = x_0_rows(schedule, prediction_type, x_t.device, arithmetic(x_t), number)
        x_0_hat = ops.noising(x_t, mean, index, rows)
        left_out = randn(with_stream(key, "self_conditioning"), x_t.shape[:1]) >= 0
        return x_0_hat.masked_fill(left_out.view(-1, *(1,) * (x_t.dim() - 1)), 0.0)


def _uncached_autocast(device: str) -> torch.autocast:
    """Autocast as it is, but that it keeps no weights that it has cast: torch before 2.11 may take those made here, without a
    gradient, for the next call's."""
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, torch.get_autocast_dtype(device), enabled, cache_enabled=False)
