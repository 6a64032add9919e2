"""`p_losses`: the noising, the loss and its gradient are a kernel each."""

from random import random
from typing import Any

import torch
from torch import Tensor

from ...autograd import mse_loss
from ...checks import HALF_DTYPES
from ...noise import randn
from ...ops import MEAN, NONE
from ..compiled import but_compiled
from ..patch import Method, original
from .answered import UNFIT, answered, fits
from .noising import arithmetic, drawn, noised, promoted, why_not, why_not_at
from .rows import LOSSES, X_T, Rows, rows_of


@but_compiled
def p_losses(
    self: Any,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor | None = None,
    offset_noise_strength: Any = None,
    loss_reduction: str = "mean",
) -> Tensor:
    newer = () if loss_reduction == "mean" else (loss_reduction,)  # which 2.2's has no argument for
    rows, weighted = rows_of(self, X_T), rows_of(self, LOSSES[self.objective]) if self.objective in LOSSES else None
    why = why_not(self, rows, x_start, noise) or why_not_at(t, x_start) or _why_not(self, weighted, x_start)
    if why or weighted is None:
        return original(self, p_losses, why)(x_start, t, noise, offset_noise_strength, *newer)
    strength = self.offset_noise_strength if offset_noise_strength is None else offset_noise_strength
    if noise is None:
        noise = drawn(self, x_start, as_tensor=strength > 0.0 or self.immiscible)
    if strength > 0.0:  # in the caller's noise, as theirs
        noise += strength * torch.randn(x_start.shape[:2], device=self.device)[:, :, None, None]
    x = noised(self, rows, x_start, t, noise)
    x_self_cond = None
    if self.self_condition and random() < 0.5:
        with torch.no_grad():
            x_self_cond = self.model_predictions(x, t).pred_x_start
            x_self_cond.detach_()
    output = self.model(x, t, x_self_cond)
    if not fits(self, output, x):
        if noise.dtype is torch.int64:
            noise = randn(noise, x_start.shape, x_start.dtype)
        return original(answered(self, output), p_losses, UNFIT)(x_start, t, noise, 0.0, *newer)
    return _loss(self.objective, weighted, output, x_start, t, noise, loss_reduction == "none")


def _why_not(self: Any, weighted: Rows | None, x_start: Tensor) -> str:
    if weighted is None:
        return "an unknown objective"
    if x_start.dim() != 4:
        return "an x_start that is not [B, C, H, W]"
    if self.objective != "pred_noise" and x_start.requires_grad and torch.is_grad_enabled():
        return "a gradient through the target"
    return weighted.why_not


def _loss(objective: str, rows: Rows, output: Tensor, x_start: Tensor, t: Tensor, noise: Tensor, each: bool) -> Tensor:
    """In the dtype that the original's arithmetic gives."""
    z, x_0 = None if objective == "pred_x0" else noise, None if objective == "pred_noise" else x_start
    dtype = rows.dtype if objective == "pred_v" else output.dtype
    dtype = promoted(dtype, output, *(x_start if x.dtype is torch.int64 else x for x in (z, x_0) if x is not None))
    if dtype in HALF_DTYPES and torch.is_autocast_enabled(output.device.type):
        dtype = torch.float32  # where mse_loss is computed under autocast
    dtype = torch.promote_types(dtype, rows.dtype)
    loss = mse_loss(output, z, x_0, None, t, rows.on(arithmetic(dtype)), NONE if each else MEAN)
    return loss.to(dtype)


METHODS = (Method(p_losses, "noising, loss and gradient in a pass each", ("q_sample", "predict_v", "noise_assignment")),)
