"""Where a sampler walks: levels of noise, from a schedule and a spacing of its timesteps."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import as_int, check_one_of, describe
from ..process import Process, Target, karras, target_of
from ..schedule import NoiseSchedule
from ..spacings import EVEN, Spacing, count_up, leading, linspace, trailing

FINAL_SIGMAS = ("zero", "sigma_min")


class Levels(NamedTuple):
    """The levels sigma = b / a of x = a x_0 + b eps that a sampler visits, the noisiest first.

    A sampler takes Levels in place of a schedule: a grid of one's own, of discrete timesteps or not.
    """

    timesteps: Tensor
    """`[S]`, int64 or float32: what the network is given at each level but the last."""
    sigmas: Tensor
    """float64 `[S + 1]`, descending; inf where nothing of x_0 is left, 0 where nothing but x_0 is."""
    signals: Tensor | None = None
    """a, float64 `[S + 1]` (b is sigma a; 1 where sigma is inf); None where a^2 + b^2 = 1."""
    process: Process | None = None
    """Of which the targets and `is_rectified` are; None for a chain's."""

    @property
    def sigma(self) -> Tensor:
        return self.sigmas[:-1]

    @property
    def all_a(self) -> Tensor:
        return (1 + self.sigmas**2).rsqrt() if self.signals is None else self.signals

    @property
    def all_b(self) -> Tensor:
        preserving = (1 + self.sigmas**-2.0).rsqrt()
        return preserving if self.signals is None else torch.where(self.sigmas.isinf(), 1.0, self.sigmas * self.signals)

    @property
    def a(self) -> Tensor:
        return self.all_a[:-1]

    @property
    def b(self) -> Tensor:
        return self.all_b[:-1]

    @property
    def a_next(self) -> Tensor:
        return self.all_a[1:]

    @property
    def b_next(self) -> Tensor:
        return self.all_b[1:]

    @property
    def scale(self) -> Tensor:
        """n: x / n goes straight from eps to x_0 as b / n falls from the first level to 0."""
        return self.a + self.b if self.process is not None and self.process.is_rectified else self.a

    @property
    def target_of(self) -> Target:
        return target_of if self.process is None else self.process.target_of

    @property
    def ratio(self) -> Tensor:
        """sigma' / sigma = exp(-h), h the step in log(a / b)."""
        return self.sigmas[1:] / self.sigmas[:-1]

    @property
    def h(self) -> Tensor:
        """The steps in log(a / b)."""
        return -self.sigmas.log().diff()

    def visiting(self, index: Sequence[int]) -> "Levels":
        """Some of the levels, or some of them twice."""
        at = torch.tensor(index, device="cpu")
        return self._of(self.timesteps[at[:-1]], lambda x: x[at])

    def after(self, start: int) -> "Levels":
        """Without the first ones."""
        check_start(start, len(self.timesteps))
        return self._of(self.timesteps[start:], lambda x: x[start:])

    def reversed(self) -> "Levels":
        """Towards more noise: the network is given the timestep of the level that a step ends at."""
        return self._of(self.timesteps.flip(0), lambda x: x.flip(0))

    def _of(self, timesteps: Tensor, chosen: Callable[[Tensor], Tensor]) -> "Levels":
        signals = None if self.signals is None else chosen(self.signals)
        return Levels(timesteps, chosen(self.sigmas), signals, self.process)


def check_start(start: object, steps: int) -> None:
    if not 0 <= as_int("start", start) < steps:
        raise ValueError(f"start: expected 0 .. {steps - 1} (the steps are {steps}), got {start}")


def check_levels(levels: Levels) -> None:
    timesteps, sigmas, *_ = levels
    if not isinstance(timesteps, Tensor) or timesteps.dim() != 1 or not len(timesteps):
        raise TypeError(f"timesteps: expected int64 or float32 [S] of one step or more, got {describe(timesteps)}")
    if not isinstance(sigmas, Tensor) or sigmas.dtype != torch.float64 or sigmas.shape != (len(timesteps) + 1,):
        raise ValueError(f"sigmas: expected float64 [{len(timesteps) + 1}] (one more than timesteps), got {describe(sigmas)}")
    falls = sigmas[1:] < sigmas[:-1]
    falls[-1] |= sigmas[-1] == sigmas[-2]  # a last step of no length: diffusers' PLMS
    if not bool(falls.all()) or sigmas[-1] < 0:
        raise ValueError(f"sigmas: expected values that fall, to 0 or above it, got {sigmas.tolist()}")


# ---- from a schedule ----


def _without_the_last(spacing: Spacing) -> Spacing:
    return lambda total, steps, offset: spacing(total, steps + 1, offset)[:-1]


def _lcm(total: int, steps: int, offset: int) -> Tensor:
    return torch.tensor(lcm_timesteps(total, steps), dtype=torch.float64, device="cpu")


def lcm_timesteps(num_timesteps: int, steps: int, original_inference_steps: int = 50) -> list[int]:
    """The timesteps of a latent consistency model: `steps` of the `original_inference_steps` that it was distilled at."""
    if not 1 <= original_inference_steps <= num_timesteps:
        raise ValueError(f"original_inference_steps: expected 1 .. {num_timesteps}, got {original_inference_steps}")
    if not 1 <= steps <= original_inference_steps:
        raise ValueError(f"steps: expected 1 .. {original_inference_steps} (original_inference_steps), got {steps}")
    stride = num_timesteps // original_inference_steps
    return [(original_inference_steps - n * original_inference_steps // steps) * stride - 1 for n in range(steps)]


INNER: Mapping[str, Spacing] = {
    "leading": _without_the_last(leading),
    "trailing": trailing,
    "linspace": _without_the_last(linspace),
}
"""DPM-Solver's and UniPC's: of S + 1 timesteps all but the last, which is left to the final step."""
CONSISTENCY: Mapping[str, Spacing] = {"lcm": _lcm, **EVEN}


def spaced(
    total: int, steps: Any, spacing: str, steps_offset: int, spacings: Mapping[str, Spacing], fractional: bool = False
) -> Tensor:
    """Which timesteps of 0 .. total - 1, descending, float64 `[S]`: of an int by the spacing, or an explicit list."""
    check_one_of("spacing", spacing, tuple(spacings))
    if steps is None:
        return count_up(total).flip(0)
    if isinstance(steps, bool):
        raise TypeError(f"steps: expected an int or a list of timesteps, got {steps}")
    if not isinstance(steps, Integral):
        return _listed(total, steps, fractional)
    steps = int(steps)
    if not 1 <= steps <= total:
        raise ValueError(f"steps: expected 1 .. {total}, got {steps}")
    t = spacings[spacing](total, steps, as_int("steps_offset", steps_offset))
    t = t.float().double() if fractional else t.round()  # float32 is what the network will be given
    if t[0] >= total or t[-1] < 0:
        raise ValueError(f"steps_offset: expected one that leaves the timesteps in 0 .. {total - 1}, got {steps_offset}")
    if bool((t[1:] >= t[:-1]).any()):
        raise ValueError(
            f"steps: expected fewer for spacing {spacing!r} on {total} timesteps ('trailing' takes all), got {steps}"
        )
    return t


def _listed(total: int, steps: Any, fractional: bool) -> Tensor:
    given = torch.as_tensor(steps, device="cpu")
    kind = "numbers" if fractional else "ints"
    if given.dim() != 1 or not len(given) or given.dtype == torch.bool or (given.is_floating_point() and not fractional):
        raise TypeError(f"steps: expected an int or a list of {kind}, got {describe(given)}")
    t = given.float().double() if fractional else given.double()
    if not bool((t[1:] < t[:-1]).all()) or t[-1] < 0 or t[0] > total - 1:
        raise ValueError(f"steps: expected {kind} that fall, among 0 .. {total - 1}, got {steps}")
    return t


def levels_of(
    schedule: NoiseSchedule,
    steps: Any,
    spacing: str,
    steps_offset: int,
    final_sigmas_type: str,
    spacings: Mapping[str, Spacing],
    fractional: bool,
) -> Levels:
    """The levels of a schedule at such timesteps, or of Karras' spacing, and the last one behind them."""
    check_one_of("final_sigmas_type", final_sigmas_type, FINAL_SIGMAS)
    of_schedule = schedule.snr.rsqrt()
    if spacing == "karras":
        count = None if steps is None else as_int("steps", steps, "an int for spacing 'karras'")
        steps = len(spaced(len(schedule), count, "trailing", 0, spacings))
        if of_schedule[-1].isinf():
            raise ValueError(
                "spacing: expected another than 'karras' at zero terminal SNR (sigma is infinite there), got 'karras'"
            )
        sigmas = karras(float(of_schedule[-1]), float(of_schedule[0]), steps)
        t = _timesteps_at(of_schedule, sigmas)
        t = t if fractional else t.round()
    else:
        t = spaced(len(schedule), steps, spacing, steps_offset, {**spacings, "karras": trailing}, fractional)
        sigmas = _between(of_schedule, t)
    final = of_schedule[:1] if final_sigmas_type == "sigma_min" else torch.zeros_like(of_schedule[:1])
    given = _between(schedule.timesteps.double(), t)
    whole = not fractional or bool((given == given.round()).all())
    return Levels(given.long() if whole else given.float(), torch.cat((sigmas, final)))


def _between(table: Tensor, t: Tensor) -> Tensor:
    """A table's values at fractional indices, linearly."""
    low = t.long()
    weight, high = t - low, (low + 1).clamp(max=len(table) - 1)
    return torch.where(weight > 0, table[low] + weight * (table[high] - table[low]), table[low])


def _timesteps_at(of_schedule: Tensor, sigmas: Tensor) -> Tensor:
    """The fractional timesteps of sigmas, linear in log sigma (k-diffusion's sigma_to_t)."""
    table, wanted = of_schedule.log(), sigmas.log()
    if len(table) == 1:
        return torch.zeros_like(wanted)
    low = (torch.searchsorted(table, wanted, right=True) - 1).clamp(0, len(table) - 2)
    return low + ((wanted - table[low]) / (table[low + 1] - table[low])).clamp(0, 1)
