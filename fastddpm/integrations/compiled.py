"""Under a compiler the original is what is compiled: it fuses that itself, and cannot look into tables that are kept."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from .patch import class_of


def but_compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *given: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():
            return getattr(class_of(self), method.__name__)(self, *given, **named)
        return method(self, *given, **named)

    return call
