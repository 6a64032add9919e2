"""Where a diffusion's samplers walk: chains and rows, made once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .checks import as_int, check_one_of
from .samplers import SAMPLERS, StepRows
from .samplers.levels import check_start
from .schedule import NoiseSchedule, check_schedule


class Walks:
    """The chains and rows that follow from a diffusion's settings, kept by all that they are made of."""

    schedule: Any
    prediction_type: str
    variance_type: str

    def __init__(self) -> None:
        self._kept: dict[tuple, Any] = {}

    def _chain(self, steps: int | Sequence[float] | None) -> NoiseSchedule:
        """Kept, as the rows are: a second call uploads nothing, and a captured graph's tables live as long as this object."""
        check_schedule(self.schedule)
        if steps is None:
            return self.schedule
        return self._keep(("chain", self.schedule, _name_of(_hashable(steps))), lambda: self.schedule.respace(steps))

    def _rows(
        self,
        sampler: str | StepRows,
        steps: int | Sequence[float] | None,
        start: int,
        clip_denoised: bool | None,
        clip_range: float,
        spacing: str | None,
        options: Mapping[str, Any],
    ) -> tuple[StepRows, int, int]:
        """A sampler's rows, how many of the first are not to be walked, and the number of the first."""
        if isinstance(sampler, StepRows):
            if options:
                raise TypeError(f"{', '.join(options)}: expected no options beside StepRows, which have theirs in them")
            check_start(start, len(sampler))
            if start and sampler.history:
                raise ValueError(f"start: expected 0 for StepRows that read earlier steps, got {start}")
            return sampler, start, 0
        check_one_of("sampler", sampler, tuple(SAMPLERS))
        settings = {"clip_denoised": clip_denoised, "spacing": spacing, "clip_range": clip_range, **options}
        settings = {name: value for name, value in settings.items() if value is not None}
        if sampler == "ddpm":
            evenly = spacing is None and as_int("steps_offset", options.get("steps_offset", 0)) == 0
            schedule = self._chain(steps) if evenly else self.schedule
            settings |= {} if evenly else {"steps": _hashable(steps)}
        else:
            schedule = self.schedule
            settings |= {"steps": _hashable(steps), "start": start}
        about = (schedule, self.prediction_type, self.variance_type)
        name = sampler, *about, *((setting, _name_of(value)) for setting, value in settings.items())
        rows = self._keep(name, lambda: SAMPLERS[sampler](*about, **settings))
        if sampler != "ddpm":
            return rows, 0, start
        check_start(start, len(rows))
        return rows, start, 0

    def _keep(self, name: tuple, make: Callable[[], Any]) -> Any:
        """By all that it is made of: whoever changes an attribute gets another."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": {}}  # a copy makes its own


def _hashable(steps: Any) -> Any:
    steps = steps.tolist() if hasattr(steps, "tolist") else steps
    return tuple(steps) if isinstance(steps, list) else steps


def _name_of(setting: Any) -> tuple:
    """By which 5, 5.0 and True are three."""
    return tuple(map(_name_of, setting)) if isinstance(setting, tuple) else (type(setting), setting)
