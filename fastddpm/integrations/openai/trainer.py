"""The trainers' waste outside the kernels: loops over the parameters for averages and norms, and a host read for every number
that is logged."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from operator import is_
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import ops
from ...averaging import ema_update_
from ..patch import MARK, Method, Peer, original
from ..update import TakenOver, Update, taken, update

# ---- guided-diffusion ----


def _update_ema(self: Any) -> None:
    params = self.mp_trainer.master_params
    with _others(self):
        if not _averages(self, params):
            return original(self, _update_ema, UNLIKE)()
        _average(self.ema_params, params, self.ema_rate)


def _compute_norms(self: Any, grad_scale: float = 1.0) -> tuple[Any, Any]:
    params = self.master_params
    grads = [p.grad for p in params if p.grad is not None]
    if not grads or not _together([*params, *grads]):
        return original(self, _compute_norms, APART)(grad_scale)
    of_params, of_grads = _total_norms(params, grads)
    return of_grads / grad_scale, of_params


# ---- improved-diffusion ----


def optimize_normal(self: Any) -> None:
    with _others(self):
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
    (norm,) = _total_norms(grads)
    type(self)._log_grad_norm.__globals__["logger"].logkv_mean("grad_norm", norm)


# ---- both ----


def forward_backward(self: Any, batch: Tensor, cond: dict[str, Any]) -> None:
    """Theirs, statement for statement, in whose sight `log_loss_dict` is ours: their module keeps its own."""
    _join(self)
    theirs = type(self).forward_backward
    names = theirs.__globals__
    log = partial(log_loss_dict, names["logger"], names["log_loss_dict"])
    FunctionType(theirs.__code__, {**names, "log_loss_dict": log}, closure=theirs.__closure__)(self, batch, cond)


def log_loss_dict(logger: Any, theirs: Callable[..., None], diffusion: Any, ts: Tensor, losses: dict[str, Tensor]) -> None:
    """All terms, their means and the timesteps by one host read, in place of three for each term."""
    if {(x.dtype, x.shape, x.device) for x in losses.values()} != {(torch.float32, ts.shape, ts.device)}:
        return theirs(diffusion, ts, losses)
    terms = torch.stack([*losses.values()]).detach()
    table = torch.cat((torch.nn.functional.pad(ts, (1, 0)).to(terms)[None], torch.cat((terms.mean(1)[:, None], terms), 1)))
    (_, *steps), *rows = table.cpu().numpy()
    for key, (mean, *values) in zip(losses, rows, strict=True):
        logger.logkv_mean(key, float(mean))
        for step, value in zip(steps, values, strict=True):
            logger.logkv_mean(f"{key}_q{int(4 * int(step) / diffusion.num_timesteps)}", value)


UNLIKE = "averages that are not of the parameters' shapes, dtypes and devices, or a rate out of [0, 1]"
APART = "parameters without a gradient, on several devices, or not of float32; or so few that theirs is as fast"
FEW = 8
"""Of tensors on the CPU, where no read waits."""


def _together(tensors: Sequence[Tensor]) -> bool:
    """Of one device, and of float32, which theirs sums up in; and enough of them."""
    if len(tensors) < FEW and all(x.is_cpu for x in tensors):
        return False
    kinds = {x.dtype for x in tensors} | {x.layout for x in tensors}
    return kinds == {torch.float32, torch.strided} and len({x.device for x in tensors}) == 1


def _averages(self: Any, params: Sequence[Tensor]) -> bool:
    return all(0 <= rate <= 1 for rate in self.ema_rate) and all(_alike(average, params) for average in self.ema_params)


def _alike(averages: Sequence[Tensor], params: Sequence[Tensor]) -> bool:
    pairs = zip(averages, params, strict=False)
    return len(averages) == len(params) and all((a.dtype, a.shape, a.device) == (p.dtype, p.shape, p.device) for a, p in pairs)


@torch.no_grad()
def _total_norms(*lists: Sequence[Tensor]) -> np.ndarray:
    """Of each list, by one host read."""
    return np.array(torch.stack([ops.total_norm([*tensors]) for tensors in lists]).tolist())


def _average(averages: Iterable[Sequence[Tensor]], params: Sequence[Tensor], rates: Iterable[float]) -> None:
    for average, rate in zip(averages, rates, strict=False):
        ema_update_(average, params, rate)


# ---- the optimizer's step, with the first average ----


def optimizer(self: Any) -> Update:
    why = _apart(self)
    left = (f"the first average ({why})",) if why else ()
    patch = update(self.opt, f"all weights{'' if why else ' and their first average'} in one pass", left)
    _join(self)
    return patch


def _join(self: Any) -> None:
    """Has a step move the first average, where it can. What is there since the last time is not looked at again."""
    if not taken(self.opt):
        return
    first = [*self.ema_rate[:1], *chain(*self.ema_params[:1])]
    before = getattr(self.opt, MARK).tables.get("first", ())
    if len(first) != len(before) or not all(map(is_, first, before)):
        getattr(self.opt, MARK).tables["first"] = first
        averages = {} if _apart(self) else dict(zip(_master(self), self.ema_params[0], strict=True))
        self.opt.average_into(averages, *self.ema_rate[:1])


def _apart(self: Any) -> str:
    """Why the step does not move the first average; "" where it does."""
    if not self.ema_params or not self.ema_rate:
        return "there is none"
    if getattr(self, "use_fp16", False) and not hasattr(self, "mp_trainer"):
        return "optimize_fp16 averages itself"
    params, averages = _master(self), self.ema_params[0]
    if {id(p) for p in params} != {id(p) for group in self.opt.param_groups for p in group["params"]}:
        return "the optimizer's weights are others"
    laid_out = [torch.empty_like(p, device="meta").stride() for p in params]
    fits = 0 <= self.ema_rate[0] <= 1 and _alike(averages, params) and [a.stride() for a in averages] == laid_out
    return "" if fits else UNLIKE


def _master(self: Any) -> Sequence[Tensor]:
    return getattr(self, "mp_trainer", self).master_params


@contextmanager
def _others(self: Any) -> Iterator[None]:
    """Inside, the trainer has the averages alone that the optimizer's step does not move."""
    first = int(type(self.opt) is TakenOver and self.opt.average is not None)
    kept = self.ema_rate, self.ema_params
    self.ema_rate, self.ema_params = self.ema_rate[first:], self.ema_params[first:]
    try:
        yield
    finally:
        self.ema_rate, self.ema_params = kept


def trainer(package: str, parts: Callable[[Any], Iterable[Any]], *methods: Method, left: tuple[str, ...] = ()) -> Peer:
    """Of a package TrainLoop."""
    logged = Method(forward_backward, "the terms that it logs are one host read")
    functions = ("update_ema", "log_loss_dict")
    module = f"{package}.train_util"
    return Peer(f"{package}.TrainLoop", module, (logged, *methods), left, parts, functions=functions, update=optimizer)


AVERAGED = "an average is one multi-tensor call, in one pass"
READ_ONCE = "one host read for all tensors"
