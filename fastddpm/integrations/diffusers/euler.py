"""diffusers' EulerDiscreteScheduler: Karras et al. 2022, algorithm 2, without churn."""

from typing import Any

from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from torch import Tensor

from ...samplers.one_step import straight
from ..compiled import but_compiled
from ..patch import MARK, Method, Patch, Peer, original
from ..tables import cached
from .sigmas import (
    ADD_NOISE,
    GET_VELOCITY,
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

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample", "original_sample": "sample"}


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
    return_dict: bool = True,
) -> EulerDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
    patch, prediction = getattr(self, MARK), PREDICTIONS.get(self.config.prediction_type, "")
    why = _why_not(self, patch, prediction, model_output, timestep, sample, s_churn)
    if not why:
        seen = (self.sigmas, prediction)
        rows, i = cached(patch, "step", seen, lambda: _rows(*seen)), step_index(self, timestep)
        if rows.has(i):
            x, x_0 = upcast_step(rows, i, model_output, sample, None, prediction == "sample")
            self._step_index += 1
            return EulerDiscreteSchedulerOutput(prev_sample=x, pred_original_sample=x_0) if return_dict else (x, x_0)
        why = NOT_OURS
    given = (model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict)
    return original(self, step, why)(*given)


def _why_not(self: Any, patch: Patch, prediction: str, output: Any, timestep: Any, sample: Any, s_churn: Any) -> str:
    if not prediction or not isinstance(s_churn, (int, float)) or s_churn != 0:
        return "s_churn, or an unknown prediction_type"
    return why_not_by_sigmas(self, timestep) or why_not(patch, output, sample)


def why_not_by_sigmas(self: Any, timestep: Any) -> str:
    """Of what Euler's step refuses or warns of, and of sigmas that are a list."""
    if not isinstance(timestep, (float, Tensor)) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
        return "a timestep that is no floating number"
    if not self.is_scale_input_called or not isinstance(self.sigmas, Tensor):
        return "scale_model_input was not called, or sigmas are no tensor"
    return ""


def _rows(sigmas: Tensor, prediction: str) -> Rows:
    at = levels_of(sigmas)
    return Rows(without_x_0(over_a(at, columns_of(at, straight(at), prediction))))


PEER = Peer(
    "diffusers.EulerDiscreteScheduler",
    "diffusers.schedulers.scheduling_euler_discrete",
    (Method(step, "one pass"), ADD_NOISE, GET_VELOCITY, SCALE_MODEL_INPUT),
    left=("s_churn above 0", "a step without scale_model_input before it, which warns"),
)
PEERS = {PEER.name: PEER}
