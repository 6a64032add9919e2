"""Tables of coefficients on devices: made once in float64, uploaded once, and found again without a trace.

Under `torch.compile` a cache that fills itself is a change that the compiler guards on: the second call would compile
everything again. There the lookup is an op, which the compiler does not look into.
"""

import itertools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

_library = torch.library.Library("fastddpm", "FRAGMENT")
_library.define(
    "table(int owner, str name, int[] shape, ScalarType dtype, Device device) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_owners: weakref.WeakValueDictionary[int, "Tables"] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Tables:
    """Named tables, each made on the CPU at its first use and kept on every device and dtype that asked for it."""

    def __init__(self, make: Callable[[str], Tensor]):
        self._make = make
        self._made: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self._number = next(_numbers)
        _owners[self._number] = self

    def get(self, name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_compiling():
            return torch.ops.fastddpm.table(self._number, name, shape, dtype, device)
        key = (name, device, dtype)
        table = self._made.get(key)
        if table is None:
            with torch.inference_mode(False):  # a tensor made inside could not be saved for a backward later
                table = self._made[key] = self._make(name).to(dtype=dtype, copy=True).to(device)
        return table

    def __reduce__(self):
        return Tables, (self._make,)  # a copy in another process, or by deepcopy, makes its own


def _table(owner: int, name: str, shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy: a compiler takes what an op returns for its own, and writes into its memory when it is done with it."""
    return _owners[owner].get(name, tuple(shape), device, dtype).clone()


def _fake_table(owner: int, name: str, shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


_library.impl("table", _table, "CompositeExplicitAutograd")
torch.library.register_fake("fastddpm::table", _fake_table, lib=_library)
