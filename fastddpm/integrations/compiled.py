"""Where the original is called without a word: under a compiler, which fuses it itself and cannot look into what is kept,
under a tracer and torch.func's transforms, and by a bound method that was kept over `undo`."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from .patch import MARK, class_of


def but_compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *given: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling() or _transformed() or not hasattr(self, MARK):
            return getattr(class_of(self), method.__name__)(self, *given, **named)
        return method(self, *given, **named)

    return call


def _transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or torch._C._is_tracing()
