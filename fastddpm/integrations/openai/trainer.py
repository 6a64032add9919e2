"""The trainers' waste outside the kernels: a loop over the parameters for an average, and one with two host reads for norms."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...averaging import ema_update_
from ..patch import Method, Peer, original

# ---- guided-diffusion ----


def _update_ema(self: Any) -> None:
    params = self.mp_trainer.master_params
    if not _averages(self, params):
        return original(self, _update_ema, UNLIKE)()
    _average(self.ema_params, params, self.ema_rate)


def _compute_norms(self: Any, grad_scale: float = 1.0) -> tuple[Any, Any]:
    params = self.master_params
    grads = [p.grad for p in params if p.grad is not None]
    if not _together([*params, *grads]):
        return original(self, _compute_norms, APART)(grad_scale)
    squares = _squared_norms([*params, *grads])
    of_params, of_grads = torch.stack((squares[: len(params)].sum(), squares[len(params) :].sum())).tolist()
    return np.sqrt(of_grads) / grad_scale, np.sqrt(of_params)


# ---- improved-diffusion ----


def optimize_normal(self: Any) -> None:
    if not _averages(self, self.master_params):
        return original(self, optimize_normal, UNLIKE)()
    self._log_grad_norm()
    self._anneal_lr()
    self.opt.step()
    _average(self.ema_params, self.master_params, self.ema_rate)


def _log_grad_norm(self: Any) -> None:
    grads = [p.grad for p in self.master_params]
    if any(grad is None for grad in grads) or not _together(grads):
        return original(self, _log_grad_norm, APART)()
    norm = np.sqrt(_squared_norms(grads).sum().item())
    type(self)._log_grad_norm.__globals__["logger"].logkv_mean("grad_norm", norm)


# ---- both ----

UNLIKE = "averages that are not of the parameters' shapes, dtypes and devices, or a rate out of [0, 1]"
APART = "parameters without a gradient, on several devices, or not of float32"


def _together(tensors: Sequence[Tensor]) -> bool:
    """Of one device, and of float32, which theirs sums up in."""
    return len({x.device for x in tensors}) == 1 and all(x.dtype is torch.float32 and not x.is_sparse for x in tensors)


def _averages(self: Any, params: Sequence[Tensor]) -> bool:
    return all(0 <= rate <= 1 for rate in self.ema_rate) and all(_alike(average, params) for average in self.ema_params)


def _alike(averages: Sequence[Tensor], params: Sequence[Tensor]) -> bool:
    pairs = zip(averages, params, strict=False)
    return len(averages) == len(params) and all((a.dtype, a.shape, a.device) == (p.dtype, p.shape, p.device) for a, p in pairs)


@torch.no_grad()
def _squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """float64 `[N]`."""
    return torch.stack(torch._foreach_norm([*tensors], 2)).double().square()


def _average(averages: Iterable[Sequence[Tensor]], params: Sequence[Tensor], rates: Iterable[float]) -> None:
    for average, rate in zip(averages, rates, strict=False):
        ema_update_(average, params, rate)


def trainer(package: str, parts: Callable[[Any], Iterable[Any]], *methods: Method) -> Peer:
    """Of a package TrainLoop."""
    left = (
        "log_loss_dict, with its host reads for every term: a function of its module, which no patch changes",
        "training in float16, but for its norms and averages",
    )
    return Peer(f"{package}.TrainLoop", f"{package}.train_util", methods, left, parts, functions=("update_ema",))


AVERAGED = "an average is one multi-tensor call, in one pass"
READ_ONCE = "one host read for all tensors"
