"""diffusers' UniPCMultistepScheduler: UniPC (Zhao et al. 2023), its corrector and its predictor each in a pass."""

from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ...rows import NoisingRow
from ...samplers import Levels
from ...samplers.dpm_solver import phi
from ...samplers.one_step import straight
from ...samplers.uni_pc import weights
from ..compiled import but_compiled
from ..patch import MARK, Method, Patch, Peer, original
from ..tables import cached
from .sigmas import ADD_NOISE, NOT_OURS, Noising, Rows, columns_of, falling, levels_of, step_index, unlike, why_not

PREDICTIONS = ("epsilon", "sample", "v_prediction")


@but_compiled
def step(
    self: Any, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
) -> SchedulerOutput | tuple[Tensor]:
    patch, config = getattr(self, MARK), self.config
    why = _why_not(self, patch, config, model_output, sample)
    if not why:
        seen = (self.sigmas, config.solver_order, config.solver_type, config.prediction_type)
        solver, i = cached(patch, "step", seen, lambda: Solver(*seen)), step_index(self, timestep)
        order, corrects = _order(self, config, i), _corrects(self, i)
        why = solver.why_not(self, i, order, corrects, sample)
        if not why:
            x, x_0, corrected = solver.stepped(self, i, order, corrects, model_output, sample)
            self.model_outputs[:] = [*self.model_outputs[1:], x_0]
            self.timestep_list[:] = [*self.timestep_list[1:], timestep]
            self.this_order, self.last_sample = order, corrected
            if self.lower_order_nums < config.solver_order:
                self.lower_order_nums += 1
            self._step_index += 1
            return SchedulerOutput(prev_sample=x) if return_dict else (x,)
    return original(self, step, why)(model_output, timestep, sample, return_dict)


def _why_not(self: Any, patch: Patch, config: Any, output: Any, sample: Any) -> str:
    if config.thresholding or not self.predict_x0 or self.solver_p is not None or getattr(config, "use_flow_sigmas", False):
        return "thresholding, predict_x0=False, a solver_p, or flow sigmas"
    if config.solver_order not in (1, 2, 3) or config.prediction_type not in PREDICTIONS:
        return "a solver_order above 3, or an unknown prediction_type"
    if (
        self.num_inference_steps is None
        or not isinstance(self.sigmas, Tensor)
        or len(self.model_outputs) != config.solver_order
    ):
        return "no timesteps were set, or sigmas are no tensor"
    why = why_not(patch, output, sample)
    if not why and output.dtype is not sample.dtype:
        return "a model_output of another dtype than the sample's"
    return why


def _order(self: Any, config: Any, i: Any) -> int:
    left = len(self.timesteps) - i if config.lower_order_final else 3
    return min(config.solver_order, left, self.lower_order_nums + 1)


def _corrects(self: Any, i: Any) -> int:
    """The order of the corrector; 0 without."""
    return self.this_order if i > 0 and i - 1 not in self.disable_corrector and self.last_sample is not None else 0


class Solver:
    """The rows of each order: of a predictor from x and the output, of one from the corrected x and x_0_hat, of a corrector.

    A corrector reads the sample that the step before began at, this x_0_hat and as many earlier ones as its order; the third of
    them has a pass of its own.
    """

    def __init__(self, sigmas: Tensor, solver_order: int, solver_type: str, prediction: str):
        self.returns_output = prediction == "sample"
        at, orders = levels_of(sigmas), range(1, solver_order + 1)
        predicted, corrected = zip(*(_weights(at, order, solver_type) for order in orders), strict=True)
        self.begins, self.predicts = (
            {order: _predictor(at, predicted[order - 1], kind) for order in orders} for kind in (prediction, "sample")
        )
        self.corrects = {order: _corrector(at, corrected[order - 1], prediction) for order in orders}
        self.third = Noising(NoisingRow(torch.ones_like(at.sigma), corrected[-1][:, -1].nan_to_num(0, 0, 0)), at.timesteps)

    def why_not(self, scheduler: Any, i: Any, order: int, corrects: int, sample: Tensor) -> str:
        there = order in self.begins and self.begins[order].has(i) and (not corrects or self.corrects[corrects].has(i))
        if not there:
            return NOT_OURS
        kept = [*scheduler.model_outputs[: -max(order, corrects + 1) : -1], *([scheduler.last_sample] if corrects else [])]
        return unlike(sample, *kept) or ("" if all(x.dtype is sample.dtype for x in kept) else "a change of dtype")

    def stepped(
        self, scheduler: Any, i: int, order: int, corrects: int, output: Tensor, sample: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_prev, x_0_hat and the corrected sample."""
        wanted, newest_first = not self.returns_output, scheduler.model_outputs[::-1]
        history = newest_first[: order - 1]
        if not corrects:
            x, x_0, _ = self.begins[order].step(i, output, sample, None, wanted, history)
            return x, x_0 if wanted else output, sample
        before = [scheduler.last_sample, *newest_first[: min(corrects, 2)]]
        corrected, x_0, _ = self.corrects[corrects].step(i, output, sample, None, wanted, before)
        x_0 = x_0 if wanted else output
        if corrects == 3:
            corrected = self.third.noised(corrected, newest_first[2], self.third.index_on(sample.device, i))
        return self.predicts[order].step(i, x_0, corrected, None, False, history)[0], x_0, corrected


def _weights(at: Levels, order: int, solver_type: str) -> tuple[Tensor, Tensor]:
    """Of step i the predictor's over m_i, m_i-1, ..; and the corrector's that comes before it, over m_i, m_i-1, .. too: of the
    step before, begun anew from its sample. NaN where that has no levels, and where bh1 has infinity times 0."""
    half = torch.full_like(at.h, 0.5) / (phi(1, -at.h) if solver_type == "bh1" else 1)
    predicted, change = weights(at, order, half)
    whole = torch.cat((change[:, :1], change[:, 1:] + predicted), 1)
    scale = straight(at)["k_0"][:, None]
    there = (falling(at, 1) & half.isfinite())[:, None]
    predicted, whole = (torch.where(there, scale * x, torch.nan) for x in (predicted, whole))
    return predicted, torch.cat((torch.full_like(whole[:1], torch.nan), whole[:-1]))


def _predictor(at: Levels, over: Tensor, prediction: str) -> Rows:
    columns = {"k_x": straight(at)["k_x"], **dict(zip(("k_0", "k_h1", "k_h2"), over.unbind(1), strict=False))}
    return Rows(columns_of(at, columns, prediction))


def _corrector(at: Levels, over: Tensor, prediction: str) -> Rows:
    from_before = torch.cat((torch.full_like(at.b[:1], torch.nan), straight(at)["k_x"][:-1]))
    columns = dict(zip(("k_0", "k_h2", "k_h3"), over.unbind(1), strict=False))
    return Rows(columns_of(at, {**columns, "k_x": torch.zeros_like(at.b), "k_h1": from_before}, prediction))


PEER = Peer(
    "diffusers.UniPCMultistepScheduler",
    "diffusers.schedulers.scheduling_unipc_multistep",
    (
        Method(
            step,
            "two passes, one for the corrector (two of order 3) and one for the predictor",
            (
                "convert_model_output",
                "_sigma_to_alpha_sigma_t",
                "multistep_uni_p_bh_update",
                "multistep_uni_c_bh_update",
            ),
        ),
        ADD_NOISE,
    ),
    left=(
        "a solver_order above 3, predict_x0=False, a solver_p",
        "thresholding, flow sigmas, a model_output of another dtype than the sample's",
        "a step to a sigma that is not below the one before",
    ),
)
PEERS = {PEER.name: PEER}
