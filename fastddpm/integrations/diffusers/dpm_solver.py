"""diffusers' DPMSolverMultistepScheduler: DPM-Solver++ and its SDE (Lu et al. 2022b)."""

from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ...samplers import Levels
from ...samplers.dpm_solver import differences, weight_of
from ...samplers.one_step import ancestral, straight
from ..compiled import but_compiled
from ..patch import MARK, Method, Patch, Peer, original
from ..tables import cached
from .sigmas import ADD_NOISE, NOT_OURS, Rows, columns_of, falling, levels_of, step_index, unlike, why_not
from .walk import drawn

PREDICTIONS = ("epsilon", "sample", "v_prediction")
ORDERS = {"dpmsolver++": (1, 2, 3), "sde-dpmsolver++": (1, 2)}


@but_compiled
def step(
    self: Any,
    model_output: Tensor,
    timestep: Any,
    sample: Tensor,
    generator: Any = None,
    variance_noise: Tensor | None = None,
    return_dict: bool = True,
) -> SchedulerOutput | tuple[Tensor]:
    patch, config = getattr(self, MARK), self.config
    why = _why_not(self, patch, config, model_output, sample)
    if not why:
        seen = (self.sigmas, config.algorithm_type, config.solver_order, config.solver_type, config.prediction_type)
        solver, i = cached(patch, "step", seen, lambda: Solver(*seen)), step_index(self, timestep)
        order = _order(self, config, i)
        history = self.model_outputs[:-order:-1]
        why = solver.why_not(i, order, history, sample, variance_noise)
        if not why:
            noise = _noise(patch, sample, generator, variance_noise) if solver.adds_noise else None
            x, x_0 = solver.stepped(i, order, model_output, sample, noise, history)
            self.model_outputs[:] = [*self.model_outputs[1:], x_0]
            if self.lower_order_nums < config.solver_order:
                self.lower_order_nums += 1
            self._step_index += 1
            return SchedulerOutput(prev_sample=x) if return_dict else (x,)
    return original(self, step, why)(model_output, timestep, sample, generator, variance_noise, return_dict)


def _why_not(self: Any, patch: Patch, config: Any, output: Any, sample: Any) -> str:
    if config.thresholding or config.variance_type is not None or getattr(config, "use_flow_sigmas", False):
        return "thresholding, a variance_type, or flow sigmas"
    if config.algorithm_type not in ORDERS or config.prediction_type not in PREDICTIONS or config.solver_order not in (1, 2, 3):
        return "an algorithm_type, prediction_type or solver_order that is not DPM-Solver++'s"
    if (
        self.num_inference_steps is None
        or not isinstance(self.sigmas, Tensor)
        or len(self.model_outputs) != config.solver_order
    ):
        return "no timesteps were set, or sigmas are no tensor"
    why = why_not(patch, output, sample)
    if not why and config.prediction_type == "sample" and output.dtype is not sample.dtype:
        return "a model_output of another dtype than the sample's"
    return why


def _order(self: Any, config: Any, i: Any) -> int:
    """Of step i: theirs counts the steps that were made, and lowers it at the end."""
    steps = len(self.timesteps)
    few = config.lower_order_final and steps < 15
    if i == steps - 1 and (few or config.euler_at_final or config.final_sigmas_type == "zero"):
        return 1
    return min(config.solver_order, self.lower_order_nums + 1, 2 if few and i == steps - 2 else 3)


def _noise(patch: Patch, sample: Tensor, generator: Any, given: Tensor | None) -> Tensor:
    """float32 always; drawn in the last step too, which adds none."""
    return drawn(patch, sample, torch.float32, generator) if given is None else given.to(sample.device)


class Solver:
    """The rows of each order."""

    def __init__(self, sigmas: Tensor, algorithm: str, solver_order: int, solver_type: str, prediction: str):
        self.adds_noise, self.returns_output = algorithm == "sde-dpmsolver++", prediction == "sample"
        at = levels_of(sigmas)
        orders = [order for order in ORDERS[algorithm] if order <= solver_order]
        self.rows = {order: _rows(at, algorithm, order, solver_type, prediction) for order in orders}

    def why_not(self, i: Any, order: int, history: list[Any], sample: Tensor, given: Tensor | None) -> str:
        if order not in self.rows or not self.rows[order].has(i):
            return f"{NOT_OURS}; of the SDE a step of order 3"
        if not self.adds_noise or given is None:
            return unlike(sample, *history)
        return unlike(sample, *history, given) or ("noise that wants a gradient" if given.requires_grad else "")

    def stepped(
        self, i: int, order: int, output: Tensor, sample: Tensor, noise: Tensor | None, history: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        if sample.dtype is not output.dtype:
            sample = sample.to(torch.promote_types(sample.dtype, output.dtype))
        x, x_0, _ = self.rows[order].step(i, output, sample, noise, not self.returns_output, history)
        return x, output if self.returns_output else x_0


def _rows(at: Levels, algorithm: str, order: int, solver_type: str, prediction: str) -> Rows:
    first, h = (ancestral(at), 2 * at.h) if algorithm == "sde-dpmsolver++" else (straight(at), at.h)
    second = first["k_0"] / 2 if solver_type == "midpoint" else weight_of(at, 2, h)
    columns = differences(at, first, torch.full_like(at.sigma, order), second, 0.5)
    return Rows(columns_of(at, columns, prediction), falling(at, order))


PEER = Peer(
    "diffusers.DPMSolverMultistepScheduler",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    (
        Method(
            step,
            "one pass",
            (
                "convert_model_output",
                "_sigma_to_alpha_sigma_t",
                "dpm_solver_first_order_update",
                "multistep_dpm_solver_second_order_update",
                "multistep_dpm_solver_third_order_update",
            ),
        ),
        ADD_NOISE,
    ),
    left=(
        "algorithm_type dpmsolver and sde-dpmsolver (of epsilon), and steps of order 3 of sde-dpmsolver++",
        "thresholding, a variance_type, flow sigmas",
        "a step to a sigma that is not below the one before",
    ),
)
PEERS = {PEER.name: PEER}
