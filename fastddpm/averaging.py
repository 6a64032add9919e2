"""Moving averages of weights: in place, all tensors of a device and dtype in one call."""

from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor

from .checks import describe


@torch.no_grad()
def ema_update_(averaged: Iterable[Tensor], params: Iterable[Tensor], decay: float | Tensor) -> None:
    """averaged = decay averaged + (1 - decay) params, in place, as `torch.lerp` does it.

    `ema_update_(average.parameters(), model.parameters(), 0.999)`

    Args:
        averaged: the averages, floating tensors.
        params: as many tensors, of their shapes and devices. One of another floating dtype is cast to its average's: bfloat16
            weights may have a float32 average.
        decay: a number in [0, 1]; or a floating tensor of no dimension, which the host does not read: its range is not checked.

    Raises:
        TypeError, ValueError: tensors that do not go together, or a wrong decay, named.
    """
    averages, values = _tensors("averaged", averaged), _tensors("params", params)
    if len(averages) != len(values):
        raise ValueError(f"params: expected {len(averages)} tensors (one for each average), got {len(values)}")
    weight = 1 - _checked(decay)
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for number, (mine, new) in enumerate(zip(averages, values, strict=True)):
        if mine.shape != new.shape or mine.device != new.device:
            raise ValueError(
                f"params[{number}]: expected its average's {list(mine.shape)} on {mine.device}, got {describe(new)}"
            )
        some, others = groups.setdefault((mine.device, mine.dtype), ([], []))
        some.append(mine)
        others.append(new.to(mine.dtype))
    for (_, dtype), (some, others) in groups.items():
        if isinstance(weight, Tensor):
            torch._foreach_lerp_(some, others, [weight.to(dtype)] * len(some))
        else:
            torch._foreach_lerp_(some, others, weight)


def _tensors(name: str, given: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected tensors such as module.parameters(), got {describe(given)}")
    tensors = list(given)
    for number, x in enumerate(tensors):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name}[{number}]: expected a floating tensor, got {describe(x)}")
    return tensors


def _checked(decay: float | Tensor) -> float | Tensor:
    number = isinstance(decay, Real) and not isinstance(decay, bool)
    if not number and not (isinstance(decay, Tensor) and decay.dim() == 0 and decay.is_floating_point()):
        raise TypeError(f"decay: expected a number or a floating tensor of no dimension, got {describe(decay)}")
    if number and not 0 <= decay <= 1:
        raise ValueError(f"decay: expected a number in [0, 1], got {decay}")
    return decay
