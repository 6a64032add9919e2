"""Going on as the original does after the network was called: a call is not made twice."""

from typing import Any

from torch import Tensor

from ...checks import FLOAT_DTYPES, HALF_DTYPES
from ..patch import MARK

UNFIT = "a model's output of another shape or device than x's, or strict in half precision"


def fits(self: Any, output: Any, x: Tensor) -> bool:
    """Whether the kernels take a network's output."""
    if not isinstance(output, Tensor) or output.dtype not in FLOAT_DTYPES:
        return False
    return (
        output.shape == x.shape
        and output.device == x.device
        and not (getattr(self, MARK).strict and output.dtype in HALF_DTYPES)
    )


def answered(self: Any, output: Any) -> Any:
    """A diffusion that shares all of self's, but whose model has answered, and which draws nothing for self-conditioning."""
    twin = object.__new__(type(self))
    twin.__dict__.update(vars(self))
    twin.__dict__.update(model=lambda *given, **named: output, self_condition=False)
    return twin
