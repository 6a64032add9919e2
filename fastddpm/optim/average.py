"""The averaged weights that an optimizer keeps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..checks import describe
from .parts import lay_out, state_dtype


class Average:
    """The moving average of an optimizer's weights. `AdamW(..).average`

    Before the first step, and of a weight that never had a gradient, it is the weight itself. It is float32 for bfloat16 and
    float16 weights, in which a slow average would not move.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float, update_after: int = 0, warmup: bool = False):
        self._optimizer = optimizer
        self.decay, self.update_after, self.warmup = decay, update_after, warmup
        self.swapped = False
        self._before: list[Tensor] = []
        self.steps: Tensor | None = None
        """The optimizer's count of its steps, on the device, once it has one."""

    @property
    def updates(self) -> int:
        """How many steps have been taken. Reading it waits for the device."""
        if self.steps is not None:
            return int(self.steps)
        return int(max((float(state["step"]) for state in self._optimizer.state.values() if "step" in state), default=0))

    @property
    def tensors(self) -> list[Tensor]:
        """The averages, in the order of the optimizer's weights: the tensors that it moves."""
        return [self._optimizer.state.get(p, {}).get("average", p.detach()) for p in self._weights]

    @property
    def _weights(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @contextmanager
    def swap(self) -> Iterator[None]:
        """`with optimizer.average.swap(): evaluate(model)`: the model has the averaged weights inside, its own again after.

        Raises:
            RuntimeError: it is swapped already. (And `step` raises one inside.)
        """
        if self.swapped:
            raise RuntimeError("average: expected it in its place, got a swap inside a swap")
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        pairs = [(p, e) for p, e in zip(self._weights, self.tensors, strict=True) if e.data_ptr() != p.data_ptr()]
        weights = [p for p, _ in pairs]
        self.swapped = not self.swapped
        if self.swapped:
            self._before = [p.clone() for p in weights]
        if pairs:
            torch._foreach_copy_(weights, [e for _, e in pairs] if self.swapped else self._before)
        if not self.swapped:
            self._before = []

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        """Writes the averages into a model: the one that is trained, or one like it.

        The weights of another model are taken in the order of `model.parameters()`, which must be that of the optimizer's.

        Raises:
            ValueError: a model with other weights, the first that does not fit named.
        """
        mine = {id(p): e for p, e in zip(self._weights, self.tensors, strict=True)}
        params = dict(model.named_parameters())
        if any(id(p) in mine for p in params.values()):
            for p in params.values():
                if id(p) in mine:
                    p.copy_(mine[id(p)])
            return
        averages = self.tensors
        if len(params) != len(averages):
            raise ValueError(f"model: expected {len(averages)} weights, as the optimizer has, got {len(params)}")
        for (name, p), e in zip(params.items(), averages, strict=True):
            if p.shape != e.shape:
                raise ValueError(
                    f"model: expected {name} to be {list(e.shape)}, as the optimizer's is there, got {describe(p)}"
                )
        for p, e in zip(params.values(), averages, strict=True):
            p.copy_(e)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the averages, in the form of diffusers' `EMAModel.state_dict()`, which loads it."""
        return {
            "decay": self.decay,
            "min_decay": 0.0 if self.warmup else self.decay,
            "optimization_step": self.updates,
            "update_after_step": self.update_after,
            "use_ema_warmup": False,
            "inv_gamma": 1.0,
            "power": 2 / 3,
            "shadow_params": [e.detach().clone() for e in self.tensors],
        }

    def weights_of(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """`model.state_dict()` of the model that is trained, with the averages in its weights' place: another one of its kind
        loads it. (Its buffers are as they are. These are the tensors that the next step moves, not copies.)"""
        mine = {id(p): e for p, e in zip(self._weights, self.tensors, strict=True)}
        state = model.state_dict(keep_vars=True)
        return {name: mine[id(x)].to(x.dtype) if id(x) in mine else x.detach() for name, x in state.items()}

    def state_for_averaged_model(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """What `torch.optim.swa_utils.AveragedModel(model).load_state_dict` takes."""
        weights = {f"module.{name}": x.clone() for name, x in self.weights_of(model).items()}
        return {"n_averaged": torch.tensor(self.updates), **weights}

    @torch.no_grad()
    def load_weights(self, model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        """Takes the averages from what `weights_of` the model that is trained returned, by their names.

        Raises:
            ValueError: a weight that is missing there, or of another shape, named.
        """
        mine = {id(p) for p in self._weights}
        for name, p in model.named_parameters():
            given = state.get(name)
            if id(p) in mine and (not isinstance(given, Tensor) or given.shape != p.shape):
                raise ValueError(f"state: expected {name}, {list(p.shape)}, got {describe(given)}")
        for name, p in model.named_parameters():
            if id(p) in mine:
                self._take(p, state[name])

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the averages from a `state_dict()` of this or of diffusers' EMAModel. (`optimizer.load_state_dict` does too.)

        Raises:
            ValueError: as many or other tensors than the optimizer has.
        """
        given = state.get("shadow_params")
        weights = self._weights
        if not isinstance(given, list) or [x.shape for x in given] != [p.shape for p in weights]:
            raise ValueError(f"state: expected 'shadow_params', {len(weights)} tensors of the weights' shapes, got others")
        for p, e in zip(weights, given, strict=True):
            self._take(p, e)

    def _take(self, p: Tensor, e: Tensor) -> None:
        state = self._optimizer.state[p]
        state["average"] = torch.empty_like(p, dtype=state_dtype(p)).copy_(e)
        lay_out(state, p, True)
