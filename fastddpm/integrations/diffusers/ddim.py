"""diffusers' DDIMScheduler: Song et al. 2021, equations 12 and 16."""

from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from ...process import epsilon_of, x_0_of
from ..compiled import but_compiled
from ..patch import MARK, Method, Peer, original
from ..tables import cached
from . import noising
from .walk import NOT_WALKABLE, Walk, bound_of, stepped, walkable, why_not


@but_compiled
def step(
    self: Any,
    model_output: Tensor,
    timestep: Any,
    sample: Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Any = None,
    variance_noise: Tensor | None = None,
    return_dict: bool = True,
) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
    patch, config = getattr(self, MARK), self.config
    why = _why_not(self, config, eta, generator, variance_noise, sample)
    walk = None if why else _walk_of(self, patch, config, eta, use_clipped_model_output)
    if walk is None:
        why = why or NOT_WALKABLE
    else:
        row = walk.row(timestep, self.timesteps)
        why = why_not(patch, walk, row, model_output, sample, config.prediction_type == "sample")
        if not why:
            x, x_0 = stepped(patch, walk, row, model_output, sample, generator, variance_noise if eta > 0 else None)
            return DDIMSchedulerOutput(prev_sample=x, pred_original_sample=x_0) if return_dict else (x, x_0)
    given = (model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict)
    return original(self, step, why)(*given)


def _why_not(self: Any, config: Any, eta: Any, generator: Any, variance_noise: Any, sample: Tensor) -> str:
    if self.num_inference_steps is None:
        return "no timesteps were set"
    if config.thresholding:
        return "thresholding"
    if not isinstance(eta, (int, float)) or eta < 0:
        return "an eta that is no number of 0 or more"
    given = variance_noise is not None and eta > 0
    z, x = variance_noise, sample
    unlike = given and (not isinstance(z, Tensor) or z.shape != x.shape or z.dtype is not x.dtype or z.device != x.device)
    if given and (unlike or generator is not None or z.requires_grad):
        return "variance_noise beside a generator, unlike the sample, or that wants a gradient"
    return ""


def _walk_of(self: Any, patch: Any, config: Any, eta: float, clipped: bool) -> Walk | None:
    of = (self.alphas_cumprod, self.final_alpha_cumprod, self.timesteps, config, self.num_inference_steps)
    seen = (*of, config.prediction_type, eta, clipped)
    return cached(patch, "step", seen, lambda: _walk(*seen) if walkable(self.alphas_cumprod, self.timesteps) else None)


def _walk(
    abar: Tensor, final: Tensor, timesteps: Tensor, config: Any, steps: int, prediction_type: str, eta: float, clipped: bool
) -> Walk:
    """In diffusers' own float32, as DDPM's. A step goes from t to t - T // S, whatever the spacing of the timesteps."""
    t = timesteps.cpu()
    earlier = t - config.num_train_timesteps // steps
    table = abar.detach().cpu()
    last = len(table) - 1
    before = torch.where((t >= 0) & (t <= last), table[t.clamp(0, last)], torch.nan)  # (of a steps_offset, say)
    after = torch.where(earlier >= 0, table[earlier.clamp(0, last)], final.to(table))
    a, s = before.sqrt().double(), (1 - before).sqrt().double()
    sigma = eta * ((1 - after) / (1 - before) * (1 - before / after)).sqrt()
    direction = (1 - after - sigma**2).sqrt().double()
    k_0 = after.sqrt().double()
    p_x, p_o = x_0_of(a, s, prediction_type)
    e_x, e_o = epsilon_of(a, s, prediction_type)
    columns = {"p_x": p_x, "p_o": p_o, "bound": bound_of(config, a), "k_0": k_0, "sigma": sigma}
    if clipped:  # eps_hat of the clipped x_0_hat
        columns |= {"k_x": direction / s, "k_0": k_0 - direction * a / s}
    else:
        columns |= {"k_x": direction * e_x, "k_o": direction * e_o}
    return Walk(t, columns, torch.full_like(t, eta > 0, dtype=torch.bool))


PEER = Peer(
    "diffusers.DDIMScheduler",
    "diffusers.schedulers.scheduling_ddim",
    (Method(step, "one pass", ("_get_variance",)), *noising.METHODS),
    left=("thresholding", "a step that divides by 0 (epsilon at zero terminal SNR)", "a timestep with dimensions"),
)
PEERS = {PEER.name: PEER}
