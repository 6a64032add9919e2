"""OpenAI's bits per dimension: the bound's terms one by one, and all of them (Ho et al. 2020, eq. 5)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...autograd import vlb_terms
from ...coefficients import vlb_rows
from ...functional import arithmetic, q_sample, reverse_step
from ...schedule import NoiseSchedule
from ...vlb import prior_kl, vlb_loss
from ..compiled import but_compiled
from ..patch import MARK, original
from .chain import chain_of, denoised, drawn, given, model_output, why_not, why_not_data, why_not_output, wide
from .training import about


@but_compiled
def _vb_terms_bpd(
    self: Any,
    model: Callable[..., Any],
    x_start: Tensor,
    x_t: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    model_kwargs: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    patch, chain = getattr(self, MARK), chain_of(self)
    why = why_not(patch, chain, x_start, t, x_start, x_t)
    if not why:
        output = model_output(self, model, x_t, t, model_kwargs)
        why = why_not_output(patch, chain, output, x_start)
        model = given(output)
    if why:
        return original(self, _vb_terms_bpd, why)(model, x_start, x_t, t, clip_denoised, model_kwargs)
    clip, x = bool(clip_denoised), wide(x_t)
    bound = vlb_loss(output, wide(x_start), x, t, chain.schedule, **about(chain, clip))
    x_0, _ = reverse_step(output, x, t, chain.rows(denoised, clip), "none", False)
    return {"output": bound, "pred_xstart": chain.prediction(x_0, output)}


@but_compiled
def _prior_bpd(self: Any, x_start: Tensor) -> Tensor:
    chain = chain_of(self)
    why = why_not_data(getattr(self, MARK), chain, x_start)
    if why:
        return original(self, _prior_bpd, why)(x_start)
    return prior_kl(x_start, chain.schedule)


@but_compiled
def calc_bpd_loop(
    self: Any,
    model: Callable[..., Any],
    x_start: Tensor,
    clip_denoised: bool = True,
    model_kwargs: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Each step is one op, which also makes the next one's x_t, of noise that is drawn where theirs is: after the model."""
    patch, chain = getattr(self, MARK), chain_of(self)
    why = why_not_data(patch, chain, x_start, x_start)
    if why:
        return original(self, calc_bpd_loop, why)(model, x_start, clip_denoised, model_kwargs)
    schedule, clip, x_0 = chain.schedule, bool(clip_denoised), wide(x_start)
    options = (chain.prediction_type, chain.variance_type, clip, "posterior", None)
    rows, snr = vlb_rows(schedule, *options, x_0.device, arithmetic(x_0)), schedule.table(_snr, x_0.device, arithmetic(x_0))
    last = len(schedule) - 1
    terms, x_t = [], q_sample(x_0, last, schedule, drawn(patch, x_start))
    for i in range(last, -1, -1):
        t = torch.full((len(x_0),), i, device=x_0.device)
        with torch.no_grad():
            output = model_output(self, model, x_t, t, model_kwargs)
        why = why_not_output(patch, chain, output, x_0)
        if why:
            step = (given(output), x_start, x_t, t, clip_denoised, model_kwargs)
            here = _terms_of(x_start, original(self, _vb_terms_bpd, why)(*step))
        noise, next_t = (drawn(patch, x_start), schedule.index_on(x_0.device, i - 1)) if i else (None, None)
        if not why:
            here, x_t = vlb_terms(output, x_0, x_t, None, t, rows, True, noise, next_t)
        elif noise is not None:
            x_t = q_sample(x_0, i - 1, schedule, noise)
        terms.append(here)
    vb, missed = torch.stack(terms).permute(1, 2, 0).contiguous()
    prior = prior_kl(x_start, schedule)
    squared = torch.promote_types(output.dtype, x_start.dtype) if chain.prediction_type == "sample" else missed.dtype
    return {
        "total_bpd": vb.sum(dim=1) + prior,
        "prior_bpd": prior,
        "vb": vb,
        "xstart_mse": missed.to(squared),
        "mse": snr.flip(0) * missed,
    }


def _terms_of(x_start: Tensor, step: dict[str, Tensor]) -> Tensor:
    return torch.stack((step["output"], (step["pred_xstart"] - x_start).square().flatten(1).mean(1)))


def _snr(schedule: NoiseSchedule) -> Tensor:
    return schedule.snr
