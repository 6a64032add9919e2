"""diffusers' FlowMatchEulerDiscreteScheduler: Euler's steps along the velocity z - x_0 (Liu et al. 2022; Esser et al. 2024)."""

from inspect import signature
from typing import Any

import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete as theirs
from torch import Tensor

from ...rows import NoisingRow
from ..compiled import but_compiled
from ..patch import MARK, Method, Patch, Peer, original
from ..tables import cached
from .sigmas import FOUND, NOT_OURS, ONE_PASS, Noising, Rows, noised, step_index, upcast_step, why_not
from .walk import drawn

IS_STOCHASTIC = "stochastic_sampling" in signature(theirs.FlowMatchEulerDiscreteScheduler.__init__).parameters
"""Whether theirs can be: before 0.34 the word in a config says nothing."""
TAKES_A_GENERATOR = hasattr(theirs, "randn_tensor")
"""Whether it then draws from the generator that it is given: before 0.40 only from torch's own."""


@but_compiled
def step(
    self: Any,
    model_output: Tensor,
    timestep: Any,
    sample: Tensor,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    generator: Any = None,
    per_token_timesteps: Any = None,
    return_dict: bool = True,
) -> theirs.FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
    """Nothing churns, there neither: the four s_ are read by nobody."""
    if isinstance(per_token_timesteps, bool):  # before 0.33 there are none, and this is return_dict's place
        per_token_timesteps, return_dict = None, per_token_timesteps
    patch, random = getattr(self, MARK), IS_STOCHASTIC and bool(self.config.stochastic_sampling)
    why = _why_not(self, patch, model_output, timestep, sample, per_token_timesteps)
    if not why:
        rows = cached(patch, "step", (self.sigmas, random), lambda: _rows(self.sigmas, random))
        i = step_index(self, timestep)
        if rows.has(i):
            noise = _drawn(patch, sample, generator) if random else None
            x, _ = upcast_step(rows, i, model_output, sample, noise, True)
            self._step_index += 1
            return theirs.FlowMatchEulerDiscreteSchedulerOutput(prev_sample=x) if return_dict else (x,)
        why = NOT_OURS
    tokens = {} if per_token_timesteps is None else {"per_token_timesteps": per_token_timesteps}
    given = (model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator)
    return original(self, step, why)(*given, **tokens, return_dict=return_dict)


def _why_not(self: Any, patch: Patch, output: Any, timestep: Any, sample: Any, tokens: Any) -> str:
    if tokens is not None:
        return "per_token_timesteps"
    floating = timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, float)
    if not floating or not isinstance(self.sigmas, Tensor):
        return "a timestep that is no floating number, or sigmas that are no tensor"
    return why_not(patch, output, sample)


def _rows(sigmas: Tensor, random: bool) -> Rows:
    """x + (sigma' - sigma) v, or (1 - sigma') (x - sigma v) + sigma' z."""
    sigma, after = (part.detach().double().cpu() for part in (sigmas[:-1], sigmas[1:]))
    if random:
        return Rows({"k_x": 1 - after, "k_o": -(1 - after) * sigma, "sigma": after})
    return Rows({"k_x": torch.ones_like(sigma), "k_o": after - sigma})


def _drawn(patch: Patch, sample: Tensor, generator: Any) -> Tensor:
    if patch.noise == "torch" and not TAKES_A_GENERATOR:
        return torch.randn_like(sample, dtype=torch.float32)
    return drawn(patch, sample, torch.float32, generator)


@but_compiled
def scale_noise(self: Any, sample: Tensor, timestep: Tensor, noise: Tensor | None = None) -> Tensor:
    done = noised(self, _noising, sample, noise, timestep)
    return done if isinstance(done, Tensor) else original(self, scale_noise, done)(sample, timestep, noise)


def _noising(sigmas: Tensor, timesteps: Tensor) -> Noising:
    s = sigmas.detach().double().cpu()
    return Noising(NoisingRow(1 - s, s), timesteps)


PEER = Peer(
    "diffusers.FlowMatchEulerDiscreteScheduler",
    "diffusers.schedulers.scheduling_flow_match_euler_discrete",
    (Method(step, "one pass, but for torch's draw where the sampling is stochastic"), Method(scale_noise, ONE_PASS, FOUND)),
    left=("per_token_timesteps",),
)
PEERS = {PEER.name: PEER}
