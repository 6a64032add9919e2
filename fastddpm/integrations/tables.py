"""What a patched object's methods keep between calls."""

from collections.abc import Callable
from operator import is_
from typing import Any

from torch import Tensor

from .patch import Patch


def cached(patch: Patch, name: Any, seen: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, made again when something that it was made of is another object, or a tensor that was written into."""
    found = patch.tables.get(name)
    if found is None or not all(map(is_, found[0], seen)) or [x._version for x in found[1]] != found[2]:
        tensors = [x for x in seen if isinstance(x, Tensor) and not x.is_inference()]
        found = patch.tables[name] = (seen, tensors, [x._version for x in tensors], make())
    return found[3]
