"""What a patched object's methods keep between calls."""

from collections.abc import Callable
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tables import real_tensors
from .patch import Patch

KEPT = 8
"""How many are kept of each name, the last used first: a script's loops may take turns with their numbers of steps."""


def cached(patch: Patch, name: Any, seen: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, made again when something that it was made of has another value, as far as that is known without a read from a
    device: there a tensor is another when it is another object, or was written into."""
    found = patch.tables.get(name)
    if found is not None and all(map(is_, found[0], seen)) and [x._version for x in found[1]] == found[2]:
        return found[4]
    with real_tensors(), torch.device("cpu"):
        kept = [] if found is None else [*found[3]]
        at = next((n for n, (values, _) in enumerate(kept) if all(map(_same, values, seen))), None)
        values, made = kept.pop(at) if at is not None else (tuple(map(_value, seen)), make())
        tensors = [x for x in seen if isinstance(x, Tensor) and not x.is_inference()]
        kept = [(values, made), *kept[: KEPT - 1]]
        patch.tables[name] = (seen, tensors, [x._version for x in tensors], kept, made)
    return made


def _value(now: Any) -> Any:
    return now.clone() if isinstance(now, Tensor) and now.is_cpu else now


def _same(kept: Any, now: Any) -> bool:
    if isinstance(now, Tensor):
        alike = isinstance(kept, Tensor) and now.is_cpu and kept.is_cpu and kept.dtype is now.dtype
        return alike and torch.equal(kept, now)
    if isinstance(now, (list, np.ndarray)):  # which may have been written into
        return False
    return kept is now or (isinstance(now, (int, float, str)) and type(kept) is type(now) and kept == now)
