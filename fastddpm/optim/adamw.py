"""AdamW with the clipping before it and the moving average after it, all weights in two passes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import ParamsT

from .. import ops
from ..checks import as_finite, as_int
from .average import Average
from .parts import MOMENTS, Parts, check_group, check_weight


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019) that also clips the gradients' norm and keeps a moving average.

    One step is `clip_grad_norm_(params, max_grad_norm)`, torch's AdamW and `average = ema_decay average + (1 - ema_decay)
    params`, to float32's rounding, for all weights together: one pass over the gradients for their norm, one over everything
    for the rest. The gradients themselves are not scaled. A GradScaler's scale and found_inf are read on the device; a step
    that it skips moves nothing, the average neither. Moments and averages of bfloat16 and float16 weights are float32.

    `state_dict` is torch's, each weight's "average" beside its moments: either optimizer loads the other's.

    Args:
        params, lr, betas, eps, weight_decay, maximize: as torch's. lr may be a tensor on the device.
        foreach, fused, capturable: accepted; there is one way, and it is capturable.
        amsgrad, differentiable: must be False.
        max_grad_norm: what the norm of all gradients together is clipped to; None for no clipping.
        ema_decay: of the average; None for none. It begins with the weights as they are at the first step.
        ema_update_after: for so many first steps the average is a copy of the weights.
        ema_warmup: decay min(ema_decay, (1 + n)/(10 + n)) at the n-th update after that, as diffusers' EMAModel has it, whose
            first update is a copy too.

    Attributes:
        average: an `Average`; None without ema_decay.
        grad_norm: the norm of the last step's gradients before clipping, a float32 scalar on the device; None without
            max_grad_norm.

    Raises:
        TypeError, ValueError: an argument out of range; amsgrad or differentiable; weights on several devices, sharded
            (DTensor, of FSDP2) or not floating; at a step sparse gradients. Named.
    """

    _step_supports_amp_scaling = True
    """What a GradScaler asks: whether it may leave its scale, and whether to skip, to the step."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        ema_update_after: int = 0,
        ema_warmup: bool = False,
    ):
        self._parts: Parts | None = None
        if amsgrad:
            raise ValueError("amsgrad: expected False (this AdamW has no maximum of v), got True")
        if differentiable:
            raise ValueError("differentiable: expected False (its step is not differentiable), got True")
        if max_grad_norm is not None and not as_finite("max_grad_norm", max_grad_norm, "a number above 0 or None") > 0:
            raise ValueError(f"max_grad_norm: expected a number above 0 or None, got {max_grad_norm}")
        if ema_decay is not None and not 0 <= as_finite("ema_decay", ema_decay, "a number in [0, 1] or None") <= 1:
            raise ValueError(f"ema_decay: expected a number in [0, 1] or None, got {ema_decay}")
        if as_int("ema_update_after", ema_update_after) < 0:
            raise ValueError(f"ema_update_after: expected 0 or more, got {ema_update_after}")
        self.max_grad_norm = None if max_grad_norm is None else float(max_grad_norm)
        self.grad_norm: Tensor | None = None
        self._keeps: dict[Tensor, tuple[Tensor, int]] | None = None
        super().__init__(
            params, lr, betas, eps, weight_decay, maximize=maximize, foreach=foreach, capturable=capturable, fused=fused
        )
        self.average = None if ema_decay is None else Average(self, float(ema_decay), int(ema_update_after), bool(ema_warmup))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of all weights that have gradients.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.average is not None and self.average.swapped:
            raise RuntimeError("step: expected the weights in their place, got the averages there (average.swap())")
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        if not params:
            return loss
        parts = self._parts
        parts = parts if parts is not None and parts.hold(self, params, grads) else self._new_parts(grads)
        if parts.counts:
            try:
                self._update(parts, grads)
            except ValueError:  # refused before anything was written: a weight's layout may be another than its moments'
                self._update(self._new_parts(grads), grads)
        return loss

    def _new_parts(self, grads: list[Tensor | None]) -> Parts:
        updates = 0.0 if self._parts is None else float(self._parts.steps[0])
        self._parts = Parts(self, grads, self.average is not None, updates)
        if self.average is not None:
            self.average.steps = self._parts.steps[0]
        return self._parts

    @torch.compiler.disable  # there is nothing to compile in one op, and torch 2.11 cannot trace what is set here
    def _update(self, parts: Parts, grads: list[Tensor | None]) -> None:
        parts.renew()
        params = parts.params
        if parts.loose:
            params = [torch.empty_like(p).copy_(p) if i in parts.loose else p for i, p in enumerate(params)]
        none, average = parts.steps[:0], self.average
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        self.grad_norm = ops.adamw_(
            params,
            [none if (g := grads[i]) is None else g for i in parts.order],
            *(parts.tensors(name) for name in MOMENTS),
            [] if average is None else parts.tensors("average"),
            parts.counts,
            parts.rows,
            parts.steps,
            scale,
            found if isinstance(found, Tensor) else None,  # a GradScaler that has seen no gradient leaves a 0
            self.max_grad_norm,
            *((0.0, 0, False) if average is None else (average.decay, average.update_after, average.warmup)),
            self._keeps is not None,
        )
        if self.max_grad_norm is None:
            self.grad_norm = None
        for i in parts.loose:
            parts.params[i].copy_(params[i])
        increment_version(parts.params)
        for p, (g, _) in (self._keeps or {}).items():
            if p.grad is g:
                self._keeps[p] = (g, g._version)  # type: ignore[index]

    @torch.no_grad()
    def make_static(self) -> None:
        """For CUDA graphs: makes all that a step reads and writes, for the weights that have gradients now, and keeps it where
        it is: moments, averages, and the gradients, which from here on `step` leaves zeros in and `zero_grad` keeps.

        Without a graph do not: autograd hands a new gradient over, but adds to one that is there.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        self._new_parts([p.grad for p in params]).renew()
        self._keeps = {p: (p.grad, -1) for p in params if p.grad is not None}

    @property
    def tensors(self) -> list[Tensor]:
        """All that a step changes beside the weights."""
        steps = [] if self._parts is None else [self._parts.steps]
        return steps + [x for state in self.state.values() for name, x in state.items() if name != "step"]

    @torch.no_grad()
    def zero_grad(self, set_to_none: bool = True) -> None:
        if self._keeps is None:
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                kept, version = self._keeps.get(p, (None, 0))
                if kept is not None and (p.grad is not kept or version != kept._version):  # else it is as step left it
                    kept.zero_()
                    self._keeps[p] = (kept, kept._version)
                p.grad = kept

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        before = [p for group in self.param_groups for p in group["params"]]
        super().add_param_group(param_group)
        self._parts = None
        try:
            check_group(self.param_groups[-1])
            params = self.param_groups[-1]["params"]
            for number, p in enumerate(params, len(before)):
                check_weight(f"params[{number}]", p, (before or params)[0])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """As torch's, which loads it: each weight has a step of its own, on the CPU where its group is neither capturable nor
        fused, as there."""
        state = super().state_dict()
        on_device = {i for group in state["param_groups"] if group["capturable"] or group["fused"] for i in group["params"]}
        read: dict[int, Tensor] = {}  # one wait for those that share theirs
        for i, values in state["state"].items():
            if isinstance(i, int) and "step" in values:
                step = values["step"].detach()
                step = step if i in on_device else read.setdefault(id(values["step"]), step.cpu())
                state["state"][i] = {**values, "step": step.clone()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            check_group({**self.defaults, **group})
        super().load_state_dict(state_dict)
        self._begin_anew()
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved, params, strict=True):
            given = state_dict["state"].get(i, {})
            for name in (*MOMENTS, "average"):
                if name in given and p.dtype in (torch.bfloat16, torch.float16):  # torch casts them to the weight's dtype
                    self.state[p][name] = given[name].to(p.device, torch.float32, copy=True)

    def _begin_anew(self) -> None:
        self._parts = None
        if self.average is not None:
            self.average.steps = None

    def __getstate__(self) -> dict[str, Any]:
        if self.average is not None and self.average.swapped:
            raise RuntimeError("copy: expected the weights in their place, got the averages there (average.swap())")
        own = {name: getattr(self, name) for name in ("max_grad_norm", "grad_norm", "_keeps")}
        average = None if self.average is None else (self.average.decay, self.average.update_after, self.average.warmup)
        return {**super().__getstate__(), **own, "average": average}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._parts = None
        if isinstance(state.get("average"), tuple):
            self.average = Average(self, *state["average"])
