"""Tables of coefficients on devices: made once in float64, uploaded once, and found again without a trace."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from .checks import describe
from .rows import pack


@contextmanager
def real_tensors() -> Iterator[None]:
    """What is made inside is a tensor like any other: in inference mode it could not be saved for a backward later, and under a
    tracer or one of torch.func's transforms it would be no tensor at all, but that one's wrapper."""
    with torch.inference_mode(False), _disable_current_modes(), temporarily_clear_interpreter_stack():
        yield


class Tables:
    """What a schedule or a sampler is made of, with the tables that follow from it, for every device and dtype that asked.

    A compiler takes a table for a constant of its graph, the real one, so it travels with an exported program. It guards on the
    contents: equal schedules share a graph, another one has its own.
    """

    timesteps: Tensor

    def __init__(self, *contents: Tensor):
        self._digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x in contents)).hexdigest()
        self._made: dict[tuple, Tensor] = {}
        self._views: dict[torch.device, tuple[Tensor, ...]] = {}

    def table(self, make: Callable[..., Any], device: torch.device, dtype: torch.dtype, *case: Any) -> Tensor:
        """`make(self, *case)`, a tensor or a row of columns, as a tensor of a dtype on a device. Nobody may write into it."""
        if torch.compiler.is_dynamo_compiling():
            return self._constant(self._digest, make, device, dtype, *case)[0]
        table = self._made.get((make, case, device, dtype))
        return self._found(make, device, dtype, *case) if table is None else table

    @torch.compiler.assume_constant_result
    def _constant(self, digest: str, *wanted: Any) -> tuple[Tensor]:
        """The digest is passed so that the compiler guards on it; in a tuple each table gets a name of its own in the graph.

        Its sizes are marked as fixed, as torch._dynamo.mark_static does outside of a compilation: with dynamic shapes a
        compiler takes them for the sizes of inputs that they happen to equal.
        """
        table = self._found(*wanted)
        table.__dict__["_dynamo_static_indices"] = set(range(table.dim()))
        return (table,)

    def _found(self, make: Callable[..., Any], device: torch.device, dtype: torch.dtype, *case: Any) -> Tensor:
        key = (make, case, device, dtype)
        table = self._made.get(key)
        if table is None:
            with real_tensors():
                made = make(self, *case)
                made = made.to(dtype=dtype, copy=True) if isinstance(made, Tensor) else pack(made, dtype)
                table = self._made[key] = made.to(device)
        return table

    def step_at(self, timestep: float) -> int:
        """The index of the step at which the network is given this timestep: of a respaced chain they are not the same.

        Raises:
            ValueError: no step has it, or more than one (of samplers that walk a level twice).
            TypeError: no number.
        """
        if isinstance(timestep, Tensor) and timestep.numel() == 1:
            timestep = timestep.item()
        if isinstance(timestep, bool) or not isinstance(timestep, Real):
            raise TypeError(f"timestep: expected a number, got {describe(timestep)}")
        if not len(self.timesteps):
            raise ValueError(f"timestep: expected none, since {type(self).__name__} has no table of steps, got {timestep}")
        found = (self.timesteps == timestep).nonzero().flatten().tolist()
        if len(found) != 1:
            raise ValueError(
                f"timestep: expected one of {_brief(self.timesteps)} that one step has, got {timestep}, of {len(found)}"
            )
        return found[0]

    def timesteps_on(self, device: torch.device) -> Tensor:
        """`timesteps` on a device, uploaded once."""
        return self.table(_timesteps, device, self.timesteps.dtype)

    def indices_on(self, device: torch.device) -> Tensor:
        """0 .. len - 1 on a device: an int index is a view of it, so that none is uploaded."""
        return self.table(_indices, device, torch.int64)

    def index_on(self, device: torch.device, i: int) -> Tensor:
        """`indices_on(device)[i]`, kept: to make such a view anew is a sixth of a small call."""
        if torch.compiler.is_dynamo_compiling() or type(i) is not int:
            return self.indices_on(device)[i]
        views = self._views.get(device)
        if views is None:
            indices = self.indices_on(device)
            with real_tensors():
                views = self._views[device] = indices.unbind()
        return views[i]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": {}, "_views": {}}  # a copy, here or in another process, makes its own


def _timesteps(owner: Tables) -> Tensor:
    return owner.timesteps


def _indices(owner: Tables) -> Tensor:
    return torch.arange(len(owner.timesteps), device="cpu")


def _brief(timesteps: Tensor) -> str:
    given = timesteps.tolist()
    return ", ".join(map(str, given if len(given) < 8 else (*given[:3], "..", *given[-3:])))
