"""What a patched object's methods keep between calls."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .patch import Patch


def cached(patch: Patch, name: Any, seen: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, made again when something that it was made of is another object, or a tensor that was written into."""
    versions = [x._version for x in seen if isinstance(x, Tensor) and not x.is_inference()]
    found = patch.tables.get(name)
    if found is not None and found[1] == versions and all(a is b for a, b in zip(found[0], seen, strict=True)):
        return found[2]
    made = make()
    patch.tables[name] = (seen, versions, made)
    return made
