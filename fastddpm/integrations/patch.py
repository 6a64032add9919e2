"""`patch`: an object of diffusers', OpenAI's or lucidrains' code gets the kernels for its own methods, and gives them back.

Methods are bound to one object: its class, its module and every other object of its class stay as they are. A method put in
another's place finds everything through `self`, so that a copy of a patched object is a patched object of its own.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from types import MethodType
from typing import Any

from ..checks import check_one_of
from .sources import is_known

MARK = "_fastddpm"
"""The attribute of a patched object that holds its `Patch`."""
NOISES = ("torch", "philox")
VALUES = re.compile(r" \[[^]]*\]|, got .*")
"""What a refusal says of one call alone: reasons are counted by kind."""


class Absent(Enum):
    """In the place of an attribute that an object did not have."""

    ABSENT = 0


ABSENT = Absent.ABSENT  # of an Enum: a copy of it is itself


@dataclass(frozen=True)
class Method:
    """A method of a peer's class, and what is called in its place."""

    function: Callable[..., Any]
    """Of the object and the method's own arguments. It has the method's name: pickles find it by that."""
    what: str
    """What it does better, for the summary."""
    instead_of: tuple[str, ...] = ()
    """The other methods of the class whose work it does, and which it therefore no longer calls."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, *self.instead_of


def _nothing(obj: Any) -> Iterable[Any]:
    return ()


@dataclass(frozen=True)
class Peer:
    """A class of somebody else's that `patch` knows."""

    name: str
    """Of the class, with its package: "diffusers.DDPMScheduler"."""
    module: str
    """Where it is defined: "diffusers.schedulers.scheduling_ddpm"."""
    methods: tuple[Method, ...] = ()
    left: tuple[str, ...] = ()
    """What is left to the original, and why: a line each, for the summary."""
    parts: Callable[[Any], Iterable[Any]] = _nothing
    """What else an object of this class holds that is patched with it."""
    attributes: Callable[[Any], Iterable[tuple[str, Any]]] = _nothing
    """What takes the place of an object's attributes that are no methods, by name."""
    what: str = ""
    """What these do better, for the summary."""
    bases: tuple[str, ...] = ()
    """The names of the peers whose methods this class inherits, or calls in its own."""
    functions: tuple[str, ...] = ()
    """What of their modules the methods call and the replacements do not: "mean_flat", "_WrappedModel.__call__"."""
    update: Callable[[Any], "Patch"] | None = None
    """`patch(.., update=True)` of a trainer: patches its optimizer."""

    @property
    def names(self) -> Iterable[str]:
        return dict.fromkeys(name for method in self.methods for name in method.names)


@dataclass(eq=False, repr=False)
class Patch:
    """What `patch` did to an object: a context manager, at whose end it is undone.

    Attributes:
        obj: the object.
        peer: its class, as `patch` knows it.
        noise, strict: as `patch` was given them.
        parts: what was patched with it (a pipeline's scheduler, a trainer's diffusion).
        fell_back: how often the original was called, by method and reason.
    """

    obj: Any
    peer: Peer
    noise: str = "torch"
    strict: bool = False
    parts: list["Patch"] = field(default_factory=list)
    fell_back: Counter[str] = field(default_factory=Counter)
    tables: dict[Any, Any] = field(default_factory=dict)
    """What the methods keep between calls."""
    _before: dict[str, Any] = field(default_factory=dict)

    def bind(self) -> None:
        """Puts the methods and attributes in place."""
        own, methods = vars(self.obj), self.peer.methods
        put = {MARK: self, **{method.name: MethodType(method.function, self.obj) for method in methods}}
        put.update(self.peer.attributes(self.obj))
        self._before = {name: ABSENT if _is_left(self.obj, name) else own.get(name, ABSENT) for name in put}
        own.update(put)

    def undo(self) -> None:
        """Gives the object its own methods and attributes back, and its parts theirs. What it did meanwhile stays done."""
        for part in reversed(self.parts):
            part.undo()
        own = vars(self.obj)
        for name, value in self._before.items():
            if value is ABSENT:
                own.pop(name, None)
            else:
                own[name] = value
        self._before = {}

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def summary(self) -> str:
        """What was replaced by what, what is left to the original and why, and what fell back so far."""
        lines = [f"{self.peer.name} (noise={self.noise!r}{', strict' if self.strict else ''})"]
        lines += [f"  {method.name}: {method.what}" for method in self.peer.methods]
        lines += [f"  {self.peer.what}"] if self.peer.what else []
        lines += [f"  left to the original: {left}" for left in self.peer.left]
        lines += [f"  fell back {count} times: {reason}" for reason, count in self.fell_back.items()]
        return "\n".join([*lines, *(part.summary() for part in self.parts)])

    def __repr__(self) -> str:
        return f"<fastddpm.Patch of a {self.peer.name}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Patch":
        """A copy of a patched object is patched: its methods are bound to it, and its patch is its own."""
        copied = memo[id(self)] = type(self)(None, self.peer, self.noise, self.strict)
        copied.obj, copied.parts = deepcopy(self.obj, memo), deepcopy(self.parts, memo)
        copied._before = deepcopy(self._before, memo)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds the names of methods, not whose they are: a patched object comes back with its class's own."""
        return Patch, (None, self.peer, self.noise, self.strict)


def class_of(obj: Any) -> type:
    """The class whose methods are the originals: an object's own, but for a subclass of ours."""
    return getattr(type(obj), "originals", type(obj))


def original(obj: Any, function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """The method of obj's class that `function` stands for, bound to obj. The reason is counted, for the summary."""
    kind = VALUES.sub("", reason)
    getattr(obj, MARK).fell_back[f"{function.__name__}: {kind}"] += 1
    return MethodType(getattr(class_of(obj), function.__name__), obj)


def apply(obj: Any, known: Callable[[Any], Peer], noise: str, strict: bool, force: bool, update: bool = False) -> Patch:
    """Checks an object and all its parts, then patches them: all or none."""
    check_one_of("noise", noise, NOISES)
    patches = [*_checked(obj, known, noise, strict, force)]
    if update:
        peer = patches[0].peer
        if peer.update is None:
            raise ValueError(f"update: expected False for {peer.name}, which has no optimizer, got True")
        patches[0].parts.append(peer.update(obj))
    for patch in patches:
        patch.bind()
    return patches[0]


def _checked(obj: Any, known: Callable[[Any], Peer], noise: str, strict: bool, force: bool) -> Iterable[Patch]:
    peer = known(obj)
    if is_patched(obj):
        already = "one that is patched already (its handle's undo() gives the original back)"
        raise ValueError(f"obj: expected an unpatched {peer.name}, got {already}")
    if not force:
        check_sources(obj, peer)
    patch = Patch(obj, peer, noise, strict)
    yield patch
    for part in peer.parts(obj):
        if is_patched(part) or class_of(part) is not type(part):  # by a handle of its own, or a subclass of ours
            continue
        below = [*_checked(part, known, noise, strict, force)]
        patch.parts.append(below[0])
        yield from below


def is_patched(obj: Any) -> bool:
    """Whether it is, and not only a copy of what is."""
    return getattr(vars(obj).get(MARK), "obj", None) is obj


def check_sources(obj: Any, peer: Peer) -> None:
    """Refuses an object that is not what the methods were written for."""
    cls = type(obj)
    what = f"obj: expected an unpatched {peer.name}"
    for name in peer.names:
        if name in vars(obj) and not _is_left(obj, name):
            raise ValueError(f"{what}, got one with a {name} of its own, which would be lost; force=True replaces it")
    name = unknown_source(cls, peer)
    if name:
        why = f"whose {name} is one that fastddpm does not know (a subclass's, or another version's)"
        raise ValueError(f"{what}, got a {cls.__module__}.{cls.__qualname__} {why}; force=True replaces it all the same")


def _is_left(obj: Any, name: str) -> bool:
    """Whether an attribute is what a patched object left in a copy of it: a mark or a method that is the other's (copy.copy),
    or the class's own method (a pickle)."""
    value = vars(obj).get(name)
    if not isinstance(value, MethodType):
        return isinstance(value, Patch) and value.obj is not obj
    return value.__self__ is not obj or value.__func__ is getattr(type(obj), name, None)


def unknown_source(cls: type, peer: Peer) -> str:
    """The first of the methods that are replaced, and of what they call, that is not a known one; "" where all are."""
    scopes = []
    for name in peer.names:
        defined = [vars(base)[name] for base in cls.__mro__ if name in vars(base)]
        if not defined or not all(is_known((peer.name, *peer.bases), name, method) for method in defined):
            return name
        scopes += [method.__globals__ for method in defined]
    for name in peer.functions:
        first, *rest = name.split(".")
        found: Any = next((scope[first] for scope in scopes if first in scope), None)
        for attribute in rest:
            found = getattr(found, attribute, None)
        if not is_known((peer.name, *peer.bases), name, found):
            return name
        scopes.append(found.__globals__)
    return ""
