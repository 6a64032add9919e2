"""torch's fused Adam in the place of the one that an optimizer would pick."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PICKED = ("fused", "foreach", "capturable", "differentiable")
"""Options of a group that say how it is computed. Where all are left open, it is ours to pick."""


@contextmanager
def fused(optimizer: Any) -> Iterator[None]:
    """Inside, an Adam's groups are fused; afterwards they and their state are as they would be without."""
    groups = [group for group in optimizer.param_groups if _open(group)] if type(optimizer) is torch.optim.Adam else []
    _pick(optimizer, groups, True)
    try:
        yield
    finally:
        _pick(optimizer, groups, None)


def _open(group: dict[str, Any]) -> bool:
    parameters = group["params"]
    return not any(group.get(name) for name in PICKED) and all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters
    )


def _pick(optimizer: Any, groups: list[dict[str, Any]], fused: bool | None) -> None:
    """A fused kernel counts its steps where the parameters are, the others on the CPU."""
    for group in groups:
        group["fused"] = fused
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if "step" in state:
                state["step"] = state["step"].to(p.device if fused else "cpu")
