"""OpenAI's noising and its losses: mean squared errors, the bound's terms, and both (Nichol & Dhariwal 2021)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import functional
from ...checks import HALF_DTYPES
from ...functional import mse_loss
from ...noise import randn
from ...vlb import hybrid_loss, vlb_loss
from ..compiled import but_compiled
from ..patch import MARK, original
from .chain import Chain, chain_of, drawn, given, model_output, why_not, why_not_output, wide

LOSSES = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")


@but_compiled
def q_sample(self: Any, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
    patch, chain = getattr(self, MARK), chain_of(self)
    why = why_not(patch, chain, x_start, t, *(() if noise is None else (noise,)))
    if why:
        return original(self, q_sample, why)(x_start, t, noise)
    return functional.q_sample(wide(x_start), t, chain.schedule, drawn(patch, x_start) if noise is None else noise)


@but_compiled
def training_losses(
    self: Any,
    model: Callable[..., Any],
    x_start: Tensor,
    t: Tensor,
    model_kwargs: dict[str, Any] | None = None,
    noise: Tensor | None = None,
) -> dict[str, Tensor]:
    patch, chain = getattr(self, MARK), chain_of(self)
    why = why_not(patch, chain, x_start, t, x_start, *(() if noise is None else (noise,)))
    if getattr(self.loss_type, "name", None) not in LOSSES:
        why = "an unknown loss_type"
    if why:
        return original(self, training_losses, why)(model, x_start, t, model_kwargs, noise)
    dtype = x_start.dtype if noise is None else noise.dtype
    noise, x_0 = drawn(patch, x_start) if noise is None else noise, wide(x_start)
    x_t = functional.q_sample(x_0, t, chain.schedule, noise)
    output = model_output(self, model, x_t, t, model_kwargs)
    why = why_not_output(patch, chain, output, x_0)
    if why:
        noise = randn(noise, x_start.shape, dtype) if noise.dtype is torch.int64 else noise
        return original(self, training_losses, why)(given(output), x_start, t, model_kwargs, noise)
    if output.dtype in HALF_DTYPES:  # where t waits for the backward, and a script may write the next ones into it
        t = t.clone()
    if self.loss_type.name in ("KL", "RESCALED_KL"):
        bound = vlb_loss(output, x_0, x_t, t, chain.schedule, **about(chain))
        return {"loss": bound * self.num_timesteps if self.loss_type.name == "RESCALED_KL" else bound}
    # what an output is compared to has a dtype of its own in theirs, and so has the error
    target = {"epsilon": dtype, "sample": x_start.dtype, "previous": x_0.dtype}[chain.prediction_type]
    dtype = torch.promote_types(target, output.dtype)
    if not chain.learned:
        mse = _mse(chain, output, x_0, x_t, t, noise).to(dtype)
        return {"mse": mse, "loss": mse}
    scale = self.num_timesteps / 1000.0 if self.loss_type.name == "RESCALED_MSE" else 1.0
    made_again = noise.dtype is torch.int64 and chain.prediction_type == "epsilon"
    terms = hybrid_loss(output, x_0, noise if made_again else x_t, t, chain.schedule, noise, scale, **about(chain))
    vb = terms["vlb"] if scale == 1 else terms["vlb"] * scale
    return {"vb": vb, "mse": terms["mse"].to(dtype), "loss": terms["loss"]}


def _mse(chain: Chain, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    if chain.prediction_type == "previous":
        return mse_loss(output, t, chain.schedule, None, x_0, x_t, "previous", reduction="none")
    return mse_loss(output, t, chain.schedule, noise, x_0, prediction_type=chain.prediction_type, reduction="none")


def about(chain: Chain, clip: bool = False) -> dict[str, Any]:
    """What the bound's terms want to know; the likelihood in tanh's form, as theirs."""
    types = {"prediction_type": chain.prediction_type, "variance_type": chain.variance_type}
    return {**types, "clip_denoised": clip, "cdf": "tanh", "reduction": "none"}
