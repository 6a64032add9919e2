"""diffusers' DDPMScheduler: Ho et al. 2020, algorithm 2, at any timesteps."""

from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from torch import Tensor

from ...process import x_0_of
from ..compiled import but_compiled
from ..patch import MARK, Method, Peer, original
from ..tables import cached
from . import noising
from .walk import NOT_WALKABLE, Walk, bound_of, stepped, walkable, why_not

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")


@but_compiled
def step(
    self: Any, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
    patch, config = getattr(self, MARK), self.config
    if config.thresholding or self.variance_type not in VARIANCE_TYPES or self.variance_type != config.variance_type:
        why = "thresholding, or a variance_type that is not " + ", ".join(VARIANCE_TYPES)
    elif (walk := _walk_of(self, patch, config)) is None:
        why = NOT_WALKABLE
    else:
        row = walk.row(timestep, self.timesteps)
        why = why_not(patch, walk, row, model_output, sample, config.prediction_type == "sample")
        if not why:
            x, x_0 = stepped(patch, walk, row, model_output, sample, generator)
            return DDPMSchedulerOutput(prev_sample=x, pred_original_sample=x_0) if return_dict else (x, x_0)
    return original(self, step, why)(model_output, timestep, sample, generator, return_dict)


def _walk_of(self: Any, patch: Any, config: Any) -> Walk | None:
    spaced = bool(self.custom_timesteps or self.num_inference_steps)
    seen = (self.alphas_cumprod, self.timesteps, config, spaced, self.variance_type, config.prediction_type)
    return cached(patch, "step", seen, lambda: _walk(*seen) if walkable(*seen[:2]) else None)


def _walk(abar: Tensor, timesteps: Tensor, config: Any, spaced: bool, variance_type: str, prediction_type: str) -> Walk:
    """In diffusers' own float32, rounding by rounding: at small t its beta has three digits, and its images too.

    Without set_timesteps a step goes from t to t - 1, else to the next of the timesteps; to the image where that is below 0.
    """
    table = abar.detach().cpu()
    last = len(table) - 1
    t = timesteps.cpu() if spaced else torch.arange(last, -1, -1)
    levels = torch.where((t >= 0) & (t <= last), table[t.clamp(0, last)], torch.nan)  # (of a steps_offset, say)
    image = torch.ones(1, dtype=table.dtype)
    before, after = levels, torch.cat((torch.where(t[1:] < 0, image, levels[1:]), image))
    alpha = before / after
    beta = 1 - alpha
    small = ((1 - after) / (1 - before) * beta).clamp(min=1e-20)
    p_x, p_o = x_0_of(before.sqrt().double(), (1 - before).sqrt().double(), prediction_type)
    columns = {
        "p_x": p_x,
        "p_o": p_o,
        "bound": bound_of(config, p_x),
        "k_0": after.sqrt() * beta / (1 - before),
        "k_x": alpha.sqrt() * (1 - after) / (1 - before),
        "sigma": (beta if variance_type == "fixed_large" else small).sqrt(),
    }
    if variance_type == "learned_range":  # log sigma^2 between those of both, (v + 1) / 2 of the way
        low, high = small.log().double(), beta.log().double()
        columns |= {"sigma": ((low + high) / 4).exp(), "k_v": (high - low) / 4}
    columns["sigma"] = torch.where(t > 0, columns["sigma"], 0.0)
    kind = "learned_range" if variance_type == "learned_range" else "fixed_small"
    return Walk(t, columns, t > 0, kind, timesteps)


PEER = Peer(
    "diffusers.DDPMScheduler",
    "diffusers.schedulers.scheduling_ddpm",
    (
        Method(step, "one pass", ("previous_timestep", "_get_variance")),
        *noising.METHODS,
    ),
    left=(
        "thresholding",
        "variance_type 'learned' and 'fixed_large_log' (NaN there)",
        "a step that divides by 0 (epsilon at zero terminal SNR)",
        "a timestep with dimensions",
    ),
)
PEERS = {PEER.name: PEER}
