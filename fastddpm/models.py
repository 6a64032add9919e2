"""Calling a network: what a model is given, and what it may return."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .checks import check_output, describe

Model = Callable[..., Any]
"""`model(x_t, t, **model_kwargs)`: a tensor, or an object with a `.sample` tensor (diffusers)."""


def call_model(model: Model, x_t: Tensor, t: Tensor, model_kwargs: Mapping[str, Any] | None, variance_type: str) -> Tensor:
    """The model's output: of x_t's shape, or of twice its channels for a learned variance.

    Raises:
        TypeError, ValueError: it is not.
    """
    output = model(x_t, t, **(model_kwargs or {}))
    output = getattr(output, "sample", output) if not isinstance(output, Tensor) else output
    if not isinstance(output, Tensor):
        raise TypeError(f"model: expected a tensor, or an object whose .sample is one, got {describe(output)}")
    check_output(output, variance_type, "x_t", x_t, "model")
    return output


def with_estimate(model_kwargs: Mapping[str, Any] | None, name: str | None, x_0_hat: Tensor | None) -> Mapping[str, Any] | None:
    """The arguments of a model that is given its own estimate of x_0 by that name; None for one that is not."""
    if name is None:
        return model_kwargs
    if model_kwargs is not None and name in model_kwargs:
        raise ValueError(f"model_kwargs: expected no {name!r}, which is the model's own estimate (self_condition), got one")
    return {**(model_kwargs or {}), name: x_0_hat}


def device_of(model: Model, device: torch.device | str | None = None) -> torch.device:
    """The one given; else that of a module's first parameter, or the CPU for any other callable."""
    if device is not None:
        return torch.empty(0, device=device).device  # "cuda" with its number, as tensors say it
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return torch.device("cpu") if first is None else first.device
