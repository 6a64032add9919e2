"""The averaged weights that an optimizer keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import describe

if TYPE_CHECKING:
    from .adamw import AdamW


class Average:
    """The moving average of an optimizer's weights. `AdamW(..).average`

    Before the first step, and of a weight that never had a gradient, it is the weight itself. It is float32 for bfloat16 and
    float16 weights, in which a slow average would not move.
    """

    def __init__(self, optimizer: "AdamW"):
        self._optimizer = optimizer
        self.swapped = False

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
        """Whoever looks at the averages inside finds the model's own weights there, to the bit: in `before` for half precision,
        whose averages are wider."""
        self.swapped = not self.swapped
        pairs = [(p, e) for p, e in zip(self._weights, self.tensors, strict=True) if e.data_ptr() != p.data_ptr()]
        if self.swapped:
            self._before = [p.clone() for p, _ in pairs]
            torch._foreach_copy_([p for p, _ in pairs], [e for _, e in pairs])
        else:
            torch._foreach_copy_([p for p, _ in pairs], self._before)
            del self._before

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
                raise ValueError(f"model: expected {name} to be {list(e.shape)}, as the optimizer's is there, got {describe(p)}")
        for p, e in zip(params.values(), averages, strict=True):
            p.copy_(e)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the averages, in the form of diffusers' `EMAModel.state_dict()`, which loads it."""
        o = self._optimizer
        decay = float(o.ema_decay)
        return {
            "decay": decay,
            "min_decay": 0.0 if o.ema_warmup else decay,
            "optimization_step": o.updates,
            "update_after_step": o.ema_update_after,
            "use_ema_warmup": False,
            "inv_gamma": 1.0,
            "power": 2 / 3,
            "shadow_params": [e.detach().clone() for e in self.tensors],
        }

    def state_for_averaged_model(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """What `torch.optim.swa_utils.AveragedModel(model).load_state_dict` takes: the averages under the names that the weights
        have in the model that is trained, and its buffers."""
        mine = {id(p): e for p, e in zip(self._weights, self.tensors, strict=True)}
        state = {f"module.{name}": mine.get(id(x), x).detach().clone() for name, x in model.state_dict(keep_vars=True).items()}
        return {"n_averaged": torch.tensor(self._optimizer.updates), **state}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the averages from a `state_dict()` of this or of diffusers' EMAModel. (`optimizer.load_state_dict` does so too.)

        Raises:
            ValueError: as many or other tensors than the optimizer has.
        """
        given = state.get("shadow_params")
        weights = self._weights
        if not isinstance(given, list) or [x.shape for x in given] != [p.shape for p in weights]:
            raise ValueError(f"state: expected 'shadow_params', {len(weights)} tensors of the weights' shapes, got others")
        for p, e in zip(weights, given, strict=True):
            wide = torch.float64 if p.dtype is torch.float64 else torch.float32
            self._optimizer.state[p]["average"] = torch.empty_like(p, dtype=wide).copy_(e)
        self._optimizer._parts = None
