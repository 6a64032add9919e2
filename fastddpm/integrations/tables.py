"""What a patched object's methods keep between calls."""

from collections.abc import Callable
from operator import is_
from typing import Any

from torch import Tensor

from .patch import Patch


def cached(patch: Patch, name: Any, seen: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, made again when something that it was made of is another object, or a tensor that was written into."""
    found = patch.tables.get(name)
    if found is not None:
        before, tensors, versions, made = found
        if all(map(is_, before, seen)) and [x._version for x in tensors] == versions:
            return made
    made = make()
    tensors = [x for x in seen if isinstance(x, Tensor) and not x.is_inference()]
    patch.tables[name] = (seen, tensors, [x._version for x in tensors], made)
    return made
