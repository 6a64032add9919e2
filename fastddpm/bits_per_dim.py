"""Bits per dimension: the bound on -log p(x_0), summed over every step of the chain, that papers report as NLL.

A step outside the network is one op, which writes the step's terms and the next step's x_t. Keys, indices and rows lie on the
device before the first step, so nothing in the loop is uploaded or read by the host.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import autograd
from .checks import as_int
from .functional import q_sample
from .models import Model, call_model
from .schedule import NoiseSchedule


class Walk:
    """The chain from x_T to x_0, for one chunk of the data after the other."""

    def __init__(self, chain: NoiseSchedule, rows: Tensor, model: Model, variance_type: str, tanh_cdf: bool):
        self.chain, self.rows, self.model, self.variance_type, self.tanh_cdf = chain, rows, model, variance_type, tanh_cdf
        self.indices = chain.indices_on(rows.device)

    def terms(
        self, x_0: Tensor, noise_at: Callable[[int], Tensor], model_kwargs: Mapping[str, Any] | None, bar: tqdm
    ) -> Tensor:
        """`[S, 2, B]`: the bound's term and the mean squared error of x_0_hat, at each index of the chain. The noise is asked
        for from the last index to 0."""
        last, model_t = len(self.chain) - 1, self.chain.timesteps_on(x_0.device).clone()  # a model may change its t in place
        terms = []
        x_t = q_sample(x_0, last, self.chain, noise_at(last))
        for i in range(last, -1, -1):
            output = call_model(self.model, x_t, model_t[i].expand(len(x_0)), model_kwargs, self.variance_type)
            following = (noise_at(i - 1), self.indices[i - 1]) if i > 0 else (None, None)
            here, x_t = autograd.vlb_terms(output, x_0, x_t, None, self.indices[i], self.rows, self.tanh_cdf, *following)
            terms.append(here)
            bar.update()
        return torch.stack(terms[::-1])


def parts_of(batch: int, batch_size: int | None) -> list[slice]:
    if batch_size is None:
        return [slice(0, batch)]
    if as_int("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size: expected 1 or more, or None, got {batch_size}")
    return [slice(start, start + batch_size) for start in range(0, max(batch, 1), batch_size)]


def share_of(model_kwargs: Mapping[str, Any] | None, part: slice, batch: int) -> dict[str, Any]:
    """A chunk's share of those tensors that hold one entry a sample."""

    def share(value: Any) -> Any:
        return value[part] if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch else value

    return {name: share(value) for name, value in (model_kwargs or {}).items()}
