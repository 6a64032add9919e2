"""diffusers' HeunDiscreteScheduler: Karras et al. 2022, algorithm 1, a stage in each of its steps."""

from typing import Any

import torch
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from torch import Tensor

from ...samplers.one_step import straight
from ..compiled import but_compiled
from ..patch import MARK, Method, Patch, Peer, original
from ..tables import cached
from .sigmas import (
    ADD_NOISE,
    NOT_OURS,
    Rows,
    columns_of,
    levels_of,
    over_a,
    scaled_input,
    step_index,
    why_not,
    without_x_0,
)
from .walk import bounded


@but_compiled
def scale_model_input(self: Any, sample: Any, timestep: Any) -> Any:
    return scaled_input(self, scale_model_input, sample, timestep)


@but_compiled
def step(
    self: Any, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
) -> HeunDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
    patch, config = getattr(self, MARK), self.config
    why = _why_not(self, patch, config, model_output, sample)
    if not why:
        seen = (self.sigmas, config.prediction_type, config.clip_sample, config.clip_sample_range)
        stages, i = cached(patch, "step", seen, lambda: Stages(*seen)), step_index(self, timestep)
        if stages.have(i, self.dt):
            stage = stages.first if self.dt is None else stages.second
            x, x_0 = stage(self, i, model_output, sample, config.prediction_type == "sample" and not config.clip_sample)
            self._step_index += 1
            return HeunDiscreteSchedulerOutput(prev_sample=x, pred_original_sample=x_0) if return_dict else (x, x_0)
        why = f"{NOT_OURS}; or, where it clips a predicted x_0, a second stage below a third of the first's sigma"
    return original(self, step, why)(model_output, timestep, sample, return_dict)


def _why_not(self: Any, patch: Patch, config: Any, output: Any, sample: Any) -> str:
    if config.prediction_type not in ("epsilon", "sample", "v_prediction") or not isinstance(self.sigmas, Tensor):
        return "an unknown prediction_type, or sigmas that are no tensor"
    why = why_not(patch, output, sample)
    if why:
        return why
    if output.dtype is not sample.dtype:
        return "a model_output of another dtype than the sample's"
    kept = () if self.dt is None else (self.prev_derivative, self.sample)
    if any(x.shape != sample.shape or x.dtype is not sample.dtype or x.device != sample.device for x in kept):
        return "a sample of another shape, dtype or device than the first stage's"
    return ""


class Stages:
    """Both kinds of rows. A first one keeps its slope (x - x_0_hat) / sigma; a second goes back to the first one's sample."""

    def __init__(self, sigmas: Tensor, prediction: str, clip: bool, clip_range: float):
        at = levels_of(sigmas)
        plain = (lambda columns: columns) if clip else without_x_0
        bound = bounded(clip, clip_range, at.sigma)
        slope = {"c_x": 1 / at.sigma, "c_0": -1 / at.sigma}
        first = over_a(at, columns_of(at, straight(at), prediction))
        half = torch.cat((torch.full_like(at.sigma[:1], torch.nan), at.sigmas.diff()[:-1])) / 2
        second = {**first, "k_x": half / at.sigma, "k_0": -half / at.sigma}
        self.of_first = Rows({**plain(first), **slope, "bound": bound})
        second = plain(second)
        there: Tensor | bool = True
        if prediction == "sample" and clip:  # weighted one by one, x and a predicted x_0 would round more than their difference
            there = half.abs() <= at.sigma  # (the first's is at most three times its own)
        elif prediction == "sample":  # that difference in the place of x_0_hat, which nobody asks for
            one, none = torch.ones_like(half), torch.zeros_like(half)
            second |= {"p_x": one, "p_o": -one, "k_x": none, "k_o": none, "k_0": half / at.sigma}
        self.of_second = Rows({**second, "k_h1": half, "k_h2": torch.ones_like(half), "bound": bound}, there)
        self.lengths = sigmas.diff().unbind()

    def have(self, i: Any, length: Tensor | None) -> bool:
        """Whether a step is ours: a second stage only after a first one of these sigmas."""
        if length is None:
            return self.of_first.has(i)
        return self.of_second.has(i) and length is self.lengths[i - 1]

    def first(self, scheduler: Any, i: int, output: Tensor, sample: Tensor, returns_output: bool) -> tuple[Tensor, Tensor]:
        x, x_0, kept = self.of_first.step(i, output, sample, None, not returns_output, return_kept=True)
        scheduler.prev_derivative, scheduler.dt, scheduler.sample = kept, self.lengths[i], sample
        return x, output if returns_output else x_0

    def second(self, scheduler: Any, i: int, output: Tensor, sample: Tensor, returns_output: bool) -> tuple[Tensor, Tensor]:
        history = [scheduler.prev_derivative, scheduler.sample]
        x, x_0, _ = self.of_second.step(i, output, sample, None, not returns_output, history)
        scheduler.prev_derivative = scheduler.dt = scheduler.sample = None
        return x, output if returns_output else x_0


PEER = Peer(
    "diffusers.HeunDiscreteScheduler",
    "diffusers.schedulers.scheduling_heun_discrete",
    (
        Method(step, "one pass a stage"),
        ADD_NOISE,
        Method(scale_model_input, "one division, by a number made once"),
    ),
    left=(
        "a model_output of another dtype than the sample's, or no tensor",
        "where it clips a predicted x_0, a second stage below a third of its first's sigma",
    ),
)
PEERS = {PEER.name: PEER}
