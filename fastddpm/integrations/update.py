"""A trainer's optimizer becomes fastddpm's: the same object, with its groups, state, hooks and schedulers, of another class."""

from collections import defaultdict
from collections.abc import Mapping
from functools import wraps
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..optim import AdamW, Average
from ..optim.parts import Parts, check_weight, lay_out
from .patch import ABSENT, MARK, Patch, Peer

STOCK = (torch.optim.Adam, torch.optim.AdamW)


class TakenOver(AdamW):
    """An Adam or AdamW of torch's whose step is ours. What is saved or copied of it is torch's, without the average."""

    _class: type[torch.optim.Optimizer]
    """What it was."""
    _averages: Mapping[Tensor, Tensor]
    """The trainer's, which a step moves: each weight's."""

    def average_into(self, averages: Mapping[Tensor, Tensor], decay: float = 0.0) -> None:
        """From here on a step moves these, each its weight's; none where there are none."""
        for state in self.state.values():
            state.pop("average", None)
        self._averages = dict(averages)
        self._hand_over()
        self.average = Average(self, decay) if averages else None
        self._parts = None

    def _hand_over(self) -> None:
        for p, average in self._averages.items():
            if self.state[p].get("average") is not average:
                self.state[p]["average"] = average
                lay_out(self.state[p], p, True)  # also without a gradient: its average moves

    def _new_parts(self, grads: list[Tensor | None]) -> Parts:
        self._hand_over()  # whoever cleared the state did not mean the trainer's average
        return super()._new_parts(grads)

    def torchs_state(self) -> defaultdict[Tensor, Any]:
        """As torch has it: each weight's step its own, on the CPU if not told otherwise; nothing for what was never stepped."""
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        for group in self.param_groups:
            on_device = group["capturable"] or group["fused"]
            for p in group["params"]:
                values = {name: value for name, value in self.state.get(p, {}).items() if name != "average"}
                if values and float(step := values["step"]) > 0:
                    state[p] = {**values, "step": step.clone() if on_device else step.to("cpu", copy=True)}
        return state

    def state_dict(self) -> dict[str, Any]:
        mine, self.state = self.state, self.torchs_state()
        try:
            return super(AdamW, self).state_dict()
        finally:
            self.state = mine

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if any(_asks({**self.defaults, **group}) for group in state_dict["param_groups"]):
            getattr(self, MARK).undo()
            return self.load_state_dict(state_dict)  # torch's
        super().load_state_dict(state_dict)
        self.average_into(self._averages, self.average.decay if self.average else 0.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = issubclass(self._class, torch.optim.AdamW)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {"defaults": self.defaults, "state": self.torchs_state(), "param_groups": self.param_groups}
        return object.__new__, (self._class,), state


class Update(Patch):
    """What `patch` did to a trainer's optimizer: nothing, where its peer says so."""

    def bind(self) -> None:
        if not self.peer.what:
            return
        optimizer, own = self.obj, vars(self.obj)
        before = dict(own)
        _follow_class(optimizer)
        optimizer._class, optimizer.__class__ = type(optimizer), TakenOver
        own_state = dict.fromkeys(("max_grad_norm", "grad_norm", "_keeps", "average"))
        optimizer.__setstate__({MARK: self, "_averages": {}, **own_state})
        self._before = {name: before.get(name, ABSENT) for name, x in own.items() if x is not before.get(name, ABSENT)}

    def undo(self) -> None:
        """The optimizer is torch's again, and goes on from the moments and steps that there are."""
        if not self._before:
            return
        optimizer = self.obj
        state = optimizer.torchs_state()
        optimizer.state.clear()
        optimizer.state.update(state)
        optimizer.__class__ = optimizer._class
        _follow_class(optimizer)
        super().undo()

    def __deepcopy__(self, memo: dict[int, Any]) -> Patch:
        copied = super().__deepcopy__(memo)
        if self._before:
            copied.bind()  # a copy of the optimizer is torch's
        return copied


def update(optimizer: Any, does: str, left: tuple[str, ...] = (), why_not: str = "") -> Update:
    """Patches a trainer's optimizer.

    Args:
        does: what its step does, for the summary.
        left: what of the update it leaves, and why.
        why_not: what of the trainer's keeps the optimizer as it is.
    """
    cls = type(optimizer)
    why_not = why_not or _unlike(optimizer)
    what, left = ("", (f"step ({why_not})", *left)) if why_not else (f"step: fastddpm.optim.AdamW's, {does}", left)
    patch = Update(optimizer, Peer(f"{cls.__module__}.{cls.__qualname__}", cls.__module__, left=left, what=what))
    patch.bind()
    return patch


def taken(optimizer: Any) -> TypeGuard[TakenOver]:
    """Whether an optimizer's step is ours. One whose groups have come to ask for what ours does not do is given back."""
    if type(optimizer) is not TakenOver:
        return False
    reason = next(filter(None, map(_asks, optimizer.param_groups)), "")
    if reason:
        patch = getattr(optimizer, MARK)
        patch.fell_back[f"step: {reason}"] += 1
        patch.undo()
    return not reason


def _unlike(optimizer: Any) -> str:
    """Why the step of an optimizer is another than ours; "" where it is not."""
    if type(optimizer) not in STOCK:
        return "neither torch's Adam nor its AdamW"
    if "step" in vars(optimizer) and not hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return "one of the object's own"
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        for number, p in enumerate(weights):
            check_weight(f"params[{number}]", p, weights[0])
    except (TypeError, ValueError) as error:
        return str(error)
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in weights):
        return "weights in half precision, whose moments torch has in it too"
    return next(filter(None, map(_asks, optimizer.param_groups)), "")


def _asks(group: dict[str, Any]) -> str:
    """What of a group's settings our step does not do."""
    if group["amsgrad"] or group["differentiable"]:
        return "amsgrad, or differentiable"
    if group["weight_decay"] and not group["decoupled_weight_decay"]:
        return "Adam's weight_decay, which is added to the gradients"
    return "betas that are tensors" if any(isinstance(beta, Tensor) for beta in group["betas"]) else ""


def _follow_class(optimizer: torch.optim.Optimizer) -> None:
    """A learning rate's scheduler marks an optimizer's step, to see it called: that of the class that it has then. In its place
    one that is marked too, of the class that it has when it is called."""
    if "step" not in vars(optimizer):
        return

    @wraps(type(optimizer).step)
    def step(*given: Any, **named: Any) -> Any:
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return type(optimizer).step(optimizer, *given, **named)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = step  # type: ignore[method-assign]
