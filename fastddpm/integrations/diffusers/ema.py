"""diffusers' EMAModel: its average by torch's multi-tensor kernels, in one pass."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...averaging import ema_update_
from ...checks import FLOAT_DTYPES, HALF_DTYPES
from ..compiled import but_compiled
from ..patch import MARK, Method, Peer, original


@but_compiled
@torch.no_grad()
def step(self: Any, parameters: Iterable[Tensor]) -> None:
    if isinstance(parameters, torch.nn.Module):
        return original(self, step, "a module in place of its parameters")(parameters)
    parameters = list(parameters)
    pairs = list(zip(self.shadow_params, parameters, strict=False))
    if not all(s.dtype in FLOAT_DTYPES and s.dtype is p.dtype and s.device == p.device for s, p in pairs) or _gathers():
        why = "parameters of another dtype or device than their average's, of an unusual dtype, or DeepSpeed's"
        return original(self, step, why)(parameters)
    if getattr(self, MARK).strict and any(s.dtype in HALF_DTYPES for s, _ in pairs):
        return original(self, step, "strict, in half precision")(parameters)
    self.optimization_step += 1
    self.cur_decay_value = self.get_decay(self.optimization_step)
    averaged = [(s, p) for s, p in pairs if p.requires_grad]
    ema_update_([s for s, _ in averaged], [p for _, p in averaged], self.cur_decay_value)
    for s, p in pairs:
        if not p.requires_grad:
            s.copy_(p)


def _gathers() -> bool:
    """Whether DeepSpeed's ZeRO 3 may hold the parameters in parts."""
    return "deepspeed" in sys.modules


PEER = Peer(
    "diffusers.EMAModel",
    "diffusers.training_utils",
    (Method(step, "all parameters by one multi-tensor call, in one pass"),),
    left=("parameters of another dtype or device than their average's", "DeepSpeed's ZeRO 3"),
)
PEERS = {PEER.name: PEER}
