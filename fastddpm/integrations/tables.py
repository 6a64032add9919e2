"""What a patched object's methods keep between calls."""

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..tables import real_tensors
from .patch import Patch


def cached(patch: Patch, name: Any, seen: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, made again when something that it was made of has another value, as far as that is known without a read from a
    device: there a tensor is another when it is another object, or was written into."""
    found = patch.tables.get(name)
    if found is not None and all(map(is_, found[0], seen)) and [x._version for x in found[1]] == found[2]:
        return found[4]
    with real_tensors(), torch.device("cpu"):
        made = found[4] if found is not None and all(map(_same, found[3], seen)) else make()
        tensors = [x for x in seen if isinstance(x, Tensor) and not x.is_inference()]
        values = tuple(x.clone() if isinstance(x, Tensor) and x.is_cpu else x for x in seen)
        patch.tables[name] = (seen, tensors, [x._version for x in tensors], values, made)
    return made


def _same(kept: Any, now: Any) -> bool:
    if isinstance(now, Tensor):
        alike = isinstance(kept, Tensor) and now.is_cpu and kept.is_cpu and kept.dtype is now.dtype
        return alike and torch.equal(kept, now)
    return kept is now or (isinstance(now, (int, float, str)) and type(kept) is type(now) and kept == now)
