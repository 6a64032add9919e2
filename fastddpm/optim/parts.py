"""An optimizer's tensors as the op takes them: in parts, each of one group's weights that have had as many steps."""

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..checks import FLOAT_DTYPES, describe
from ..rows import AdamWRow, pack, width

MOMENTS = ("exp_avg", "exp_avg_sq")


class Parts:
    """Made for the weights that have gradients; good until others do, or the optimizer's groups or state are others.

    Attributes:
        counts: how many weights each part has; their tensors come in this order.
        rows, steps: as the op takes them, on the weights' device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, grads: Sequence[Tensor | None], averaged: bool, updates: float = 0.0):
        self.groups, self.state = optimizer.param_groups, optimizer.state
        self.all = [p for group in self.groups for p in group["params"]]
        self.sizes = _sizes(self.groups)
        self.layouts = _layouts(grads)
        none = torch.zeros((), dtype=torch.float32, device="cpu")  # the steps of what is new: known without a look
        for number, p in enumerate(self.all):
            check_weight(f"params[{number}]", p, self.all[0])
            check_gradient(f"params[{number}].grad", grads[number])
        for p, g in zip(self.all, grads, strict=True):
            if g is not None or (averaged and "step" in self.state.get(p, ())):
                lay_out(self.state[p], p, averaged, none)
        self._number(averaged, none, updates)
        self.settings: list[tuple] = []
        self.rows = torch.zeros(len(self.counts), width(AdamWRow), dtype=torch.float64, device=self.steps.device)

    def _number(self, averaged: bool, none: Tensor, updates: float) -> None:
        """Which weight is in which part. Those without a gradient whose average moves are the last."""
        of_group = [g for g, group in enumerate(self.groups) for _ in group["params"]]
        counted = {i: self.state[p]["step"] for i, p in enumerate(self.all) if "step" in self.state.get(p, ())}
        read = {id(step): 0.0 if step is none else float(step) for step in counted.values()}
        steps = {i: read[id(step)] for i, step in counted.items()}
        parts: dict[tuple[int, float], list[int]] = {}
        for i, layout in enumerate(self.layouts):
            if layout is not None:
                parts.setdefault((of_group[i], steps[i]), []).append(i)
        idle = [i for i in steps if self.layouts[i] is None and averaged]
        self.order = [i for part in (*parts.values(), idle) for i in part]
        self.group_of = [group for group, _ in parts] + ([0] if idle else [])
        self.counts = [len(part) for part in parts.values()] + ([len(idle)] if idle else [])
        done = [step for _, step in parts] + ([0.0] if idle else [])
        numbers = [max([updates, *steps.values()]), *done]
        self.steps = torch.tensor(numbers, dtype=torch.float32, device=self.all[0].device)
        for number, part in enumerate(parts.values()):
            shared = self.steps[1 + number]
            for i in part:
                self.state[self.all[i]]["step"] = shared
        self.params = [self.all[i] for i in self.order]
        self.states = [self.state[p] for p in self.params]
        self.known, self.counters = list(self.state.values()), self.tensors("step")
        self.loose = [i for i, p in enumerate(self.params) if not _dense(p)]

    def hold(self, optimizer: torch.optim.Optimizer, params: list[Tensor], grads: list[Tensor | None]) -> bool:
        """Whether they are still those of these weights, gradients and states."""
        return (
            self.state is optimizer.state
            and self.groups is optimizer.param_groups
            and _sizes(self.groups) == self.sizes
            and len(params) == len(self.all)
            and all(map(is_, params, self.all))
            and _layouts(grads) == self.layouts
            and len(self.state) == len(self.known)
            and all(map(is_, self.state.values(), self.known))  # in their order: to look each up costs more
            and all(map(is_, self.tensors("step"), self.counters))
        )

    def renew(self) -> None:
        """The rows of the groups as they are now. A learning rate that is a tensor is not read by the host."""
        groups = [self.groups[number] for number in self.group_of]
        settings = [_settings(group) for group in groups]
        if settings != self.settings:
            self.settings = settings
            columns = (torch.tensor(column, dtype=torch.float64, device="cpu") for column in zip(*settings, strict=True))
            rows = pack(AdamWRow(*columns))
            self.rows.copy_(rows.pin_memory() if self.rows.is_cuda else rows, non_blocking=True)
        for row, group in zip(self.rows, groups, strict=True) if any(isinstance(g["lr"], Tensor) for g in groups) else ():
            row[0].copy_(group["lr"].reshape(()))

    def tensors(self, name: str) -> list[Tensor]:
        return [state[name] for state in self.states]


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _layouts(grads: Sequence[Tensor | None]) -> list[torch.layout | None]:
    return [None if g is None else g.layout for g in grads]


def _settings(group: dict[str, Any]) -> tuple[float, ...]:
    check_group(group)
    lr = 0.0 if isinstance(group["lr"], Tensor) else group["lr"]
    return (lr, *group["betas"], group["eps"], group["weight_decay"], -1.0 if group["maximize"] else 1.0)


def check_group(group: dict[str, Any]) -> None:
    if group["amsgrad"] or group["differentiable"]:
        name = "amsgrad" if group["amsgrad"] else "differentiable"
        raise ValueError(f"{name}: expected False (this AdamW has no such step), got True")
    if any(isinstance(beta, Tensor) for beta in group["betas"]):
        raise TypeError(f"betas: expected numbers, got {group['betas']}")


def check_weight(name: str, p: Tensor, first: Tensor) -> None:
    if is_traceable_wrapper_subclass(p):
        raise TypeError(f"{name}: expected a plain tensor, got {type(p).__name__} (sharded by FSDP2, or quantized)")
    if p.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected a tensor of float32, float64, bfloat16 or float16, got {describe(p)}")
    if p.device != first.device:
        raise ValueError(f"{name}: expected all weights on one device ({first.device}), got {describe(p)} on {p.device}")


def check_gradient(name: str, g: Tensor | None) -> None:
    if g is not None and g.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense gradient, got a {g.layout} one (an embedding's sparse=True)")


def lay_out(state: dict[str, Any], p: Tensor, averaged: bool, none: Tensor | None = None) -> None:
    """Makes a weight's state where it is not there, and lays it as the weight lies where another optimizer made it."""
    wide = state_dtype(p)
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device="cpu") if none is None else none
    for name in MOMENTS:
        if name not in state:
            state[name] = torch.zeros_like(p, dtype=wide)
    if averaged and "average" not in state:
        state["average"] = torch.empty_like(p, dtype=wide).copy_(p)
    for name in (*MOMENTS, *(("average",) if averaged else ())):
        wanted = torch.empty_like(p, dtype=wide, device="meta")
        if (state[name].dtype, state[name].stride()) != (wide, wanted.stride()) or state[name].device != p.device:
            _lay(state, name, torch.empty_like(p, dtype=wide).copy_(state[name]))


def _lay(state: dict[str, Any], name: str, laid: Tensor) -> None:
    """In the same tensor where it can be: others may hold it."""
    old = state[name]
    if (old.dtype, old.device, old.requires_grad) == (laid.dtype, laid.device, False):
        old.data = laid
    else:
        state[name] = laid


def state_dtype(p: Tensor) -> torch.dtype:
    """Of a weight's moments and average."""
    return torch.float64 if p.dtype is torch.float64 else torch.float32


def _dense(p: Tensor) -> bool:
    return p.stride() == torch.empty_like(p, device="meta").stride()
