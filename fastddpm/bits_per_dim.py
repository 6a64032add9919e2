"""The variational bound of given data, term by term, along the whole chain: what papers report as NLL in bits/dim.

A step outside the network is one op, which writes the step's terms and the next step's x_t. Keys, indices and rows lie on the
device before the first step, so nothing in the loop is uploaded or read by the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import ops
from .checks import check_data, check_int, check_noise, check_one_of
from .functional import arithmetic, q_sample
from .models import Model, call_model
from .noise import EVALUATION, noise_key
from .schedule import NoiseSchedule
from .vlb import CDFS, prior_kl

if TYPE_CHECKING:
    from .diffusion import GaussianDiffusion


@torch.no_grad()
def bits_per_dim(
    diffusion: GaussianDiffusion,
    model: Model,
    x_0: Tensor,
    seed: int | Tensor = 0,
    noise: Tensor | None = None,
    clip_denoised: bool = True,
    cdf: str = "exact",
    model_kwargs: Mapping[str, Any] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    first_sample: int = 0,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The bound on each sample's -log p(x_0), by one draw of each x_t: L_T + L_0 + .. + L_{T-1} (Ho et al. 2020, eq. 5).

    Args:
        model: as `GaussianDiffusion` takes it; put it in eval mode first.
        x_0: data `[B, ...]` in [-1, 1]. The likelihood is that of 256 levels, so the figure is meant for 8-bit data.
        seed: an int, or an integer tensor `[B]` of one seed a sample. The noise is a function of (seed, t, sample), t the
            timestep in the original chain.
        noise: the noise of every step, a tensor of x_0's shape or a key, in place of the seed's.
        clip_denoised: clamp x_0_hat to [-1, 1].
        cdf: of the likelihood at index 0: "exact", or "tanh" for the published code's approximation.
        model_kwargs: passed on to the model; with `batch_size`, each chunk's share of the tensors whose first size is B.
        steps: how many steps of the chain to walk, evenly spaced to its end; None for all. Fewer give another bound: that
            of the shorter chain, whose samples `sample` draws with as many steps.
        batch_size: samples at a time, None for all: for memory only, the noise is the same.
        first_sample: the index of the first sample, so that data evaluated in parts sees the noise of the whole.
        progress: show a bar.

    Returns:
        "total" and "prior" (L_T), `[B]`, bits a dimension; and `[B, T]`, a column for each index 0 .. T-1 of the chain
        walked, ascending (OpenAI's descend): "vb" (L_t), bits a dimension; "x_0_mse"; "eps_mse", which is snr_t x_0_mse.
        total = prior + vb.sum(1). float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument, or the model's output, of a wrong dtype, shape or device, named.
    """
    check_data("x_0", x_0)
    check_one_of("cdf", cdf, CDFS)
    if noise is not None:
        check_noise(noise, "x_0", x_0)
    chain = diffusion.schedule if steps is None else diffusion.schedule.respace(steps)
    given = noise_key(seed, 0, len(x_0), first_sample, EVALUATION, x_0.device) if noise is None else noise
    walk = _Walk(diffusion, chain, model, x_0, clip_denoised, cdf)
    prior = prior_kl(x_0, chain)
    parts = _parts(len(x_0), batch_size)
    terms = []
    with tqdm(total=len(parts) * len(chain), desc="bits/dim", unit="step", disable=not progress) as bar:
        for part in parts:
            noises = _keys(given[part], chain) if noise is None else [given[part]] * len(chain)
            kwargs = model_kwargs if len(parts) == 1 else _part_of(model_kwargs, part, len(x_0))
            terms.append(walk.terms(x_0[part], noises, kwargs, bar))
    vb, x_0_mse = torch.cat(terms, 2).permute(1, 2, 0).contiguous()
    return {"total": prior + vb.sum(1), "prior": prior, "vb": vb, "x_0_mse": x_0_mse, "eps_mse": walk.snr * x_0_mse}


class _Walk:
    """The chain from x_T to x_0, for one chunk of the data after the other."""

    def __init__(
        self, diffusion: GaussianDiffusion, chain: NoiseSchedule, model: Model, x_0: Tensor, clip_denoised: bool, cdf: str
    ):
        device, dtype = x_0.device, arithmetic(x_0)
        self.chain, self.model, self.tanh_cdf = chain, model, cdf == "tanh"
        self.variance_type = diffusion.variance_type
        self.rows = chain.vlb_rows(
            diffusion.prediction_type, self.variance_type, clip_denoised, diffusion.first_variance, None, device, dtype
        )
        self.indices, self.model_t = chain.indices_on(device), chain.timesteps_on(device)
        self.snr = chain.snr.to(device=device, dtype=dtype)

    def terms(self, x_0: Tensor, noises: list[Tensor], model_kwargs: Mapping[str, Any] | None, bar: tqdm) -> Tensor:
        """`[S, 2, B]`: the bound's term and the mean squared error of x_0_hat, at each index of the chain."""
        last = len(self.chain) - 1
        terms = []
        x_t = q_sample(x_0, last, self.chain, noises[last])
        for i in range(last, -1, -1):
            output = call_model(self.model, x_t, self.model_t[i].expand(len(x_0)), model_kwargs, self.variance_type)
            following = (noises[i - 1], self.indices[i - 1]) if i > 0 else (None, None)
            here, x_t = ops.vlb_terms(output, x_0, x_t, None, self.indices[i], self.rows, self.tanh_cdf, *following)
            terms.append(here)
            bar.update()
        return torch.stack(terms[::-1])


def _parts(batch: int, batch_size: int | None) -> list[slice]:
    if batch_size is None:
        return [slice(0, batch)]
    if as_int("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size: expected 1 or more, or None, got {batch_size}")
    return [slice(start, start + batch_size) for start in range(0, max(batch, 1), batch_size)]


def _keys(key: Tensor, chain: NoiseSchedule) -> list[Tensor]:
    """The key at every step. Its step (28 bits from 32 up) is the timestep in the original chain, so a respaced chain sees the
    x_t that the whole chain sees at the same level of noise."""
    step = torch.stack((torch.zeros_like(chain.timesteps), chain.timesteps << 32), 1)
    return list((key + step.to(key.device)[:, None]).unbind())


def _part_of(model_kwargs: Mapping[str, Any] | None, part: slice, batch: int) -> dict[str, Any]:
    """A chunk's share of those tensors that hold one entry a sample."""

    def share(value: Any) -> Any:
        return value[part] if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch else value

    return {name: share(value) for name, value in (model_kwargs or {}).items()}
