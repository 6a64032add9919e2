"""diffusers' EulerAncestralDiscreteScheduler: k-diffusion's sample_euler_ancestral."""

from typing import Any

from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from torch import Tensor

from ...samplers.one_step import ancestral
from ..compiled import but_compiled
from ..patch import MARK, Method, Peer, original
from ..tables import cached
from .euler import why_not_by_sigmas
from .sigmas import (
    ADD_NOISE,
    NOT_OURS,
    SCALE_MODEL_INPUT,
    Rows,
    columns_of,
    levels_of,
    over_a,
    step_index,
    upcast_step,
    why_not,
    without_x_0,
)
from .walk import drawn


@but_compiled
def step(
    self: Any, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
) -> EulerAncestralDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
    patch, prediction = getattr(self, MARK), self.config.prediction_type
    why = "" if prediction in ("epsilon", "v_prediction") else "a prediction_type that is not implemented there"
    why = why or why_not_by_sigmas(self, timestep) or why_not(patch, model_output, sample)
    if not why:
        seen = (self.sigmas, prediction)
        rows, i = cached(patch, "step", seen, lambda: _rows(*seen)), step_index(self, timestep)
        if rows.has(i):
            noise = drawn(patch, sample, model_output.dtype, generator)
            x, x_0 = upcast_step(rows, i, model_output, sample, noise, False)
            self._step_index += 1
            output = EulerAncestralDiscreteSchedulerOutput
            return output(prev_sample=x, pred_original_sample=x_0) if return_dict else (x, x_0)
        why = NOT_OURS
    return original(self, step, why)(model_output, timestep, sample, generator, return_dict)


def _rows(sigmas: Tensor, prediction: str) -> Rows:
    at = levels_of(sigmas)
    columns = without_x_0(over_a(at, columns_of(at, ancestral(at), prediction)))
    return Rows(columns, (at.sigma > 0) & (at.sigmas[1:] >= 0))


PEER = Peer(
    "diffusers.EulerAncestralDiscreteScheduler",
    "diffusers.schedulers.scheduling_euler_ancestral_discrete",
    (Method(step, "one pass, but for torch's draw of the noise"), ADD_NOISE, SCALE_MODEL_INPUT),
    left=("a step without scale_model_input before it, which warns", "sigmas that rise"),
)
PEERS = {PEER.name: PEER}
