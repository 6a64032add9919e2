"""What all samplers share: a formula over levels, its peer's defaults, and the x_0_hat of each prediction type."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..checks import check_one_of
from ..edm import EDM
from ..process import Process, check_process, epsilon_of, x_0_of
from ..schedule import PREDICTION_TYPES, NoiseSchedule
from ..spacings import EVEN, Spacing
from ..tables import real_tensors
from .levels import Levels, check_levels, levels_of
from .step_rows import StepRows

Columns = dict[str, Tensor]
"""Of `rows.StepRow`, in the order in which the steps are walked; and two that differ only where x_0_hat is clipped: k_e, of the
eps_hat that follows from x_0_hat, and k_net, of the network's own."""


class Sampler:
    """A sampler: called with a schedule, it makes the rows that `reverse_step` walks, from the last to row 0.

    Args:
        formula: Levels, and options of its own, to columns.
        spacing, clip_denoised, final_sigmas_type: the defaults, those of diffusers' scheduler.
        spacings: what a spacing's name means, beside "karras".
        fractional: whether the network may be given timesteps between the whole ones.
        visits: Levels, how many steps they had before `start`, and the options to those that the rows begin at, where not each
            once; the last row ends at the last.
        inverse: walks towards more noise.
        prediction_types: of the network; None for all that the process has.
        takes_edits: see `StepRows`.
        of_chain: only for a chain's levels.
        stream: of its steps' noise.
    """

    def __init__(
        self,
        formula: Callable[..., Columns],
        spacing: str = "linspace",
        clip_denoised: bool = False,
        final_sigmas_type: str = "zero",
        spacings: Mapping[str, Spacing] = EVEN,
        fractional: bool = False,
        visits: Callable[..., Levels] | None = None,
        inverse: bool = False,
        prediction_types: tuple[str, ...] | None = None,
        takes_edits: bool = True,
        of_chain: bool = False,
        stream: str = "reverse",
    ):
        self.takes_edits, self.of_chain, self.stream = takes_edits, of_chain, stream
        self.formula, self.visits, self.inverse, self.prediction_types = formula, visits, inverse, prediction_types
        self.spacing, self.clip_denoised, self.final_sigmas_type = spacing, clip_denoised, final_sigmas_type
        self.spacings, self.fractional = spacings, fractional
        self.__name__, self.__module__, self.__doc__ = formula.__name__, formula.__module__, formula.__doc__

    def __repr__(self) -> str:
        return f"<sampler {self.__name__}>"

    def __reduce__(self) -> str:
        return self.__name__  # pickled as a function is: by its name in the module of its formula

    @real_tensors()
    def __call__(
        self,
        schedule: Process | Levels,
        prediction_type: str | None = None,
        variance_type: str = "fixed_small",
        clip_denoised: bool | None = None,
        clip_range: float = 1.0,
        steps: Any = None,
        spacing: str | None = None,
        steps_offset: int = 0,
        final_sigmas_type: str | None = None,
        start: int = 0,
        **options: Any,
    ) -> StepRows:
        """The rows.

        Args:
            schedule: the process; or the Levels to walk, for which steps to final_sigmas_type are not read.
            prediction_type: "epsilon", "sample" or "v_prediction"; of another process than a chain one of its own. None for the
                process's default, "epsilon" of a chain.
            variance_type: of the network: "learned" and "learned_range" mean that its output has variance channels, of which
                only `ddpm` makes use.
            clip_denoised: clamp x_0_hat to [-clip_range, clip_range]; None for the sampler's own default (of other processes
                than a chain False).
            clip_range: that bound.
            steps: S, or a list of timesteps that falls; None for all.
            spacing: which S timesteps: "leading", "trailing" or "linspace", as this sampler's scheduler in diffusers reads the
                name; or "karras" (Karras et al. 2022, eq. 5), S levels between the schedule's ends. None for the default. Other
                processes than a chain have their own (`walk`), and not the next two arguments.
            steps_offset: added to the timesteps of "leading".
            final_sigmas_type: where the last step ends: "zero", without noise, or "sigma_min", at the schedule's first level.
            start: how many of the first steps are left out: the sampler begins at a later level, without history.
            options: the sampler's own.

        Raises:
            TypeError, ValueError: an argument of a wrong type, an unknown name, or what does not go together, named.
        """
        if not isinstance(schedule, Levels):
            check_process(schedule)
        process = schedule.process if isinstance(schedule, Levels) else schedule
        prediction_type = self._checked(process, prediction_type)
        clip = (self.clip_denoised and _is_chain(process)) if clip_denoised is None else clip_denoised
        bound = check_clip(clip, clip_range)
        if isinstance(schedule, NoiseSchedule):
            given = (spacing or self.spacing, steps_offset, final_sigmas_type or self.final_sigmas_type)
            schedule = levels_of(schedule, steps, *given, self.spacings, self.fractional)
        elif isinstance(schedule, Process):
            if steps_offset or final_sigmas_type:
                raise ValueError(
                    f"steps_offset, final_sigmas_type: expected them of a NoiseSchedule only, got {steps_offset} and "
                    f"{final_sigmas_type!r} with {type(schedule).__name__}"
                )
            schedule = Levels(*schedule.walk(steps, spacing), schedule)
        check_levels(schedule)
        of, schedule = len(schedule.timesteps), schedule.after(start)
        at = schedule if self.visits is None else self.visits(schedule, of, **options)
        at = at.reversed() if self.inverse else at
        _check_prediction(at, prediction_type)
        columns = _without_epsilon(self.formula(at, **options), at, prediction_type, clip)
        columns["p_x"], columns["p_o"] = x_0_of(at.a, at.b, prediction_type, at.target_of)
        rows: dict[str, Any] = {name: column.flip(0) for name, column in columns.items()}
        rows |= {"bound": bound, "takes_edits": self.takes_edits, "noise_levels": None if at.signals is None else at.b.flip(0)}
        made = StepRows(at.timesteps.flip(0), variance_type, (at.a**2).flip(0), **rows)
        made.stream = self.stream
        return made

    def _checked(self, process: Process | None, prediction_type: str | None) -> str:
        """The prediction type, the process's own in place of None."""
        if self.of_chain and not _is_chain(process):
            raise TypeError(f"schedule: expected a NoiseSchedule for {self.__name__}, got {type(process).__name__}")
        if self.inverse and isinstance(process, EDM):  # an image is not of the scale that its network is given
            raise TypeError(f"schedule: expected a NoiseSchedule or FlowMatching for {self.__name__}, got EDM")
        types = PREDICTION_TYPES[:3] if process is None or process.is_chain else process.prediction_types
        prediction_type = types[0] if prediction_type is None else prediction_type
        check_one_of("prediction_type", prediction_type, self.prediction_types or types)
        if process is not None:
            process.check_prediction(prediction_type)
        return prediction_type


def _is_chain(process: Process | None) -> bool:
    return process is None or process.is_chain


def _without_epsilon(columns: Columns, at: Levels, prediction_type: str, clip: bool) -> Columns:
    """k_e and k_net as columns of x, x_0_hat and the output. Of the output where it may be: (x - a x_0_hat) / b cancels."""
    none = torch.zeros_like(at.sigma)
    k_x, k_0 = columns.get("k_x", none), columns.get("k_0", none)
    k_e, k_net = columns.pop("k_e", None), columns.pop("k_net", none)
    if k_e is not None and clip:
        k_x, k_0 = k_x + k_e / at.b, k_0 - k_e * at.a / at.b
    elif k_e is not None:
        k_net = k_e
    e_x, e_o = epsilon_of(at.a, at.b, prediction_type, at.target_of)
    return {**columns, "k_x": k_x + k_net * e_x, "k_0": k_0, "k_o": k_net * e_o}


def sampler(**settings: Any) -> Callable[[Callable[..., Columns]], Sampler]:
    """Makes a Sampler of a formula."""
    return lambda formula: Sampler(formula, **settings)


def check_clip(clip_denoised: object, clip_range: float) -> float:
    """The bound."""
    if not isinstance(clip_denoised, bool):
        raise TypeError(f"clip_denoised: expected True or False, got {clip_denoised!r}")
    if isinstance(clip_range, bool) or not isinstance(clip_range, Real) or not clip_range > 0:
        raise ValueError(f"clip_range: expected a value above 0, got {clip_range!r}")
    return clip_range if clip_denoised else math.inf


def _check_prediction(at: Levels, prediction_type: str) -> None:
    """Refuses what the network's output does not tell at some level."""
    types = PREDICTION_TYPES[:3] if at.process is None else at.process.prediction_types
    others = " or ".join(repr(name) for name in types if name != prediction_type)
    if prediction_type == "epsilon" and bool(at.sigma.isinf().any()):
        raise ValueError(f"prediction_type: expected {others} where sigma is infinite (no x_0 follows there), got 'epsilon'")
    if prediction_type == "sample" and bool((at.sigma == 0).any()):
        raise ValueError(
            f"prediction_type: expected {others} where a step begins without noise (final_sigmas_type 'sigma_min' of a chain "
            "begins with the least), got 'sample'"
        )
