"""The ops, who provides them, and the way from a case to a call whose result was checked."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

from . import eager, fused, gates, machine, peers
from .inputs import Batch

TITLES = {
    "noise": "noise alone",
    "noising": "noising (q_sample)",
    "mse": "mse + gradient",
    "chain": "noising + mse + gradient",
    "reverse": "reverse step",
    "hybrid": "hybrid + gradient",
    "kl": "KL + gradient",
    "bits_per_dim": "bits/dim step",
    "flow": "rectified flow + gradient",
    "edm": "EDM + gradient",
    "guided": "guided reverse step",
    "ddim": "DDIM step",
    "euler": "Euler step",
    "dpmpp_2m": "DPM-Solver++ 2M step",
    "unipc": "UniPC step",
}
ACCESSES = {"noise": 1, "noising": 2, "mse": 2, "chain": 4, "reverse": 4, "hybrid": 6, "kl": 6, "bits_per_dim": 5}
"""How many times an op must at least move a tensor of the data's size, its noise made and not read: noise z; noising x_0, x_t;
mse out, grad; reverse x_t, out, x_prev, x_0_hat; hybrid and KL x_0, x_t, out and grad of twice the size; bits/dim x_0, x_t, out
of twice the size, the next x_t."""
OPS = tuple(ACCESSES)
"""Those of the sweep. The rest are the kernels of chain and step with other rows, or more to read: timed in turn alone."""
FUSED = "fastddpm"
COMPILED = "torch.compile"


class LeftOutError(Exception):
    """Why a case is not measured."""


class Case(NamedTuple):
    """One op by one provider on one kind of data."""

    level: str
    op: str
    provider: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    memory_format: str = "contiguous"

    @property
    def name(self) -> str:
        """What `--only` searches."""
        size = "x".join(map(str, self.shape))
        return f"{self.level}/{self.op}/{size}/{self.dtype}/{self.memory_format}/{self.provider}"


def providers(op: str) -> dict[str, Callable[[Batch], Callable]]:
    """{provider: batch -> call} of those that are here."""
    found = {FUSED: getattr(fused, op), "eager": eager.calls()[op], COMPILED: eager.calls(torch.compile)[op]}
    return found | {name: peers.CALLS[name][op] for name in peers.installed() if op in peers.CALLS[name]}


def make(op: str, provider: str, b: Batch) -> Callable:
    """The call to time, its result checked.

    Raises:
        AssertionError: the result is not what the op claims.
    """
    if provider == COMPILED:
        torch.compiler.reset()  # each shape compiled for itself: a second one would get code for any
    call = providers(op)[provider](b)
    gates.check(op, call(), b, known_noise=provider == FUSED)
    return call


@lru_cache(maxsize=1)
def why_not_compiled() -> str:
    """Why torch.compile does not work here, for want of a compiler mostly; "" where it does."""
    try:
        torch.compile(torch.sin)(torch.ones(64, device=machine.DEVICE))
    except Exception as error:  # whatever it is, the rest can be measured
        return f"torch.compile fails here: {str(error).splitlines()[0]}"
    return ""
