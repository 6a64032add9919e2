"""Whether a method is one that the replacements were written for, told by what it does and not by its package's version.

A digest is of a function's statements: its docstring, comments, annotations and layout change nothing that it computes.
tests/peer_sources.py writes known_sources.py, of those of checkouts and unpacked wheels.
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from .known_sources import KNOWN

NOT_COMPUTED = ("annotation", "returns", "type_comment", "kind", "ctx", "type_params")


def is_known(peers: Iterable[str], name: str, method: Callable[..., Any] | None) -> bool:
    """Whether a method is one that any of these classes has under that name."""
    return method is not None and any(digest(method) in KNOWN.get(f"{peer}.{name}", ()) for peer in peers)


@cache
def digest(method: Callable[..., Any]) -> str:
    """Of a function's statements and the names of its arguments; "" where there is no source."""
    while hasattr(method, "__wrapped__"):
        if not method.__globals__["__name__"].startswith("torch."):  # not no_grad, nor autocast: what it does is not known
            return ""
        method = method.__wrapped__
    try:
        source = textwrap.dedent(inspect.getsource(method))
    except (OSError, TypeError):
        return ""
    return digest_of(ast.parse(source).body[0])


def digest_of(function: ast.stmt) -> str:
    if not isinstance(function, ast.FunctionDef):
        return ""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return hashlib.sha256(repr(_shape([function.args, body])).encode()).hexdigest()[:16]


def _shape(node: Any) -> Any:
    """A syntax tree as tuples, without what the Python that parsed it adds or leaves out."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return (type(node).__name__, *((name, _shape(value)) for name, value in fields if name not in NOT_COMPUTED))
    return tuple(map(_shape, node)) if isinstance(node, list) else repr(node)
