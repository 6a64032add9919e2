"""What the schedulers share that walk a list of sigmas, by a step_index: of x_0 + sigma eps, or a x_0 + b eps, b = sigma a."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import autograd
from ...checks import FLOAT_DTYPES, HALF_DTYPES, check_data, check_index, check_noise
from ...functional import arithmetic
from ...process import x_0_of
from ...rows import NoisingRow, pack
from ...samplers import Levels
from ...tables import Tables
from ..compiled import but_compiled
from ..patch import MARK, Method, Patch, original
from ..tables import cached
from .walk import NO_TENSOR, Steps, finite_rows, unfit

NOT_OURS = "a step beyond the scheduler's, or where it divides by 0"


def step_index(self: Any, timestep: Any) -> Any:
    """Which step comes, begun as the scheduler begins: the next ones are counted."""
    if self._step_index is None:
        self._init_step_index(timestep)
    return self._step_index


def levels_of(sigmas: Tensor) -> Levels:
    sigmas = sigmas.detach().double().cpu()
    return Levels(torch.arange(len(sigmas) - 1), sigmas)


class Rows(Steps):
    """The steps of a scheduler that counts them, by step_index. One that is not finite, or shall not, is the original's."""

    def __init__(self, columns: dict[str, Tensor], there: Tensor | bool = True):
        self.rows, self.holds = finite_rows(torch.arange(len(columns["k_x"])), columns, there=there)

    def has(self, i: Any) -> bool:
        return type(i) is int and 0 <= i < len(self.holds) and self.holds[i]


def columns_of(at: Levels, columns: dict[str, Tensor], prediction_type: str) -> dict[str, Tensor]:
    """The columns of a step from x = a x_0 + b eps, with its x_0_hat's."""
    p_x, p_o = x_0_of(at.a, at.b, prediction_type)
    return {**columns, "p_x": p_x, "p_o": p_o}


def over_a(at: Levels, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same step from x / a = x_0 + sigma eps, to x' / a'."""
    by = {"p_x": at.a, "k_x": at.a / at.a_next}
    ends = dict.fromkeys(("k_0", "k_o", "sigma"), 1 / at.a_next)
    return {name: column * (by | ends).get(name, 1) for name, column in columns.items()}


def without_x_0(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same step where x_0_hat is not clamped: of x and the output, whose weights are exact where they are 1 or 0."""
    k_0 = columns["k_0"]
    return {
        **columns,
        "k_x": columns["k_x"] + k_0 * columns["p_x"],
        "k_o": k_0 * columns["p_o"],
        "k_0": torch.zeros_like(k_0),
    }


def falling(at: Levels, order: int) -> Tensor:
    """The steps before which there are as many levels as an order reads, all of which fall: not where theirs divides by 0."""
    falls = (at.sigmas[1:] < at.sigma) & (at.sigmas[1:] >= 0)
    for _ in range(order - 1):
        falls = falls & torch.cat((falls.new_zeros(1), falls[:-1]))
    return falls


def why_not(patch: Patch, output: Any, sample: Any) -> str:
    """Why a step is the original's; "" where it is ours."""
    if not isinstance(output, Tensor) or not isinstance(sample, Tensor):
        return NO_TENSOR
    return unfit(patch, output, sample)


def unlike(sample: Tensor, *kept: Any) -> str:
    """Why a step is the original's by what earlier ones kept, or what noise it is given."""
    if all(
        isinstance(x, Tensor) and x.shape == sample.shape and x.device == sample.device and x.dtype in FLOAT_DTYPES
        for x in kept
    ):
        return ""
    return "a kept tensor, or noise, of another shape or device than the sample's"


def upcast_step(rows: Rows, i: int, output: Tensor, sample: Tensor, noise: Tensor | None, returns_output: bool) -> Any:
    """(x_prev, x_0_hat) as Euler's have them: in float32, or the output's float64, and x_prev then of the output's dtype."""
    wide, dtype = arithmetic(output), output.dtype
    x, x_0, _ = rows.step(i, output, sample if sample.dtype is wide else sample.to(wide), noise, not returns_output)
    return x if dtype is wide else x.to(dtype), output if returns_output else x_0


# ---- scale_model_input, add_noise, get_velocity ----


@but_compiled
def scale_model_input(self: Any, sample: Any, timestep: Any) -> Any:
    scaled = scaled_input(self, scale_model_input, sample, timestep)
    self.is_scale_input_called = True
    return scaled


def scaled_input(self: Any, method: Callable[..., Any], sample: Any, timestep: Any) -> Any:
    sigmas = self.sigmas
    if not isinstance(sigmas, Tensor):
        return original(self, method, "sigmas that are no tensor")(sample, timestep)
    scales = cached(getattr(self, MARK), "scales", (sigmas,), lambda: ((sigmas**2 + 1) ** 0.5).unbind())
    return sample / scales[step_index(self, timestep)]


class Noising(Tables):
    """Rows of noising by step index, found by timestep as the schedulers find them: of two equal timesteps it is the second's.

    Args:
        row: one for each step index, and perhaps more.
        timesteps: of the steps.
        missing: the index for a timestep that is none of them. -1 is refused on the CPU, and a sample of NaN on a GPU.
    """

    def __init__(self, row: NoisingRow, timesteps: Tensor, missing: int = -1):
        self.row, self.missing = row, missing
        self.timesteps = torch.arange(len(row.a))  # an index is what a row is found by
        places: dict[float, list[int]] = {}
        for n, t in enumerate(timesteps.tolist()):
            places.setdefault(t, []).append(n)
        dtype = timesteps.dtype if timesteps.is_floating_point() else torch.float64  # a whole one may be asked for as a float
        self.place_of = {t: found[:2][-1] for t, found in sorted(places.items())}
        self.values, self.places = torch.tensor([*self.place_of], dtype=dtype), torch.tensor([*self.place_of.values()])
        super().__init__(*row, self.values, self.places)

    def index(self, t: Tensor, device: torch.device) -> Tensor:
        """Of each timestep, without a read from a device."""
        t = t.to(self.values.dtype)
        if not t.is_cpu:
            return self.looked_up(t).to(device)
        return torch.tensor([self.place_of.get(each, self.missing) for each in t.tolist()], dtype=torch.int64, device=device)

    def looked_up(self, t: Tensor) -> Tensor:
        """The same of timesteps on any device."""
        values, places = (self.table(make, t.device, make(self).dtype) for make in (_values, _places))
        at = torch.searchsorted(values, t).clamp(max=len(values) - 1)
        return torch.where(values[at] == t, places[at], self.missing)

    def noised(self, x: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        return autograd.noising(x, noise, index, self.table(_packed, x.device, arithmetic(x)))


def _values(owner: Noising) -> Tensor:
    return owner.values


def _places(owner: Noising) -> Tensor:
    return owner.places


def _packed(owner: Noising) -> Tensor:
    return pack(owner.row)


@but_compiled
def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    why = "flow sigmas" if getattr(self.config, "use_flow_sigmas", False) else ""
    make = _preserving if hasattr(self, "lambda_t") else _exploding
    done = why or noised(self, make, original_samples, noise, timesteps)
    return done if isinstance(done, Tensor) else original(self, add_noise, done)(original_samples, noise, timesteps)


def noised(self: Any, make: Callable[[Tensor, Tensor], Noising], x: Tensor, noise: Any, timesteps: Any) -> Tensor | str:
    """a x + s z at the timesteps' sigmas, or at the step's that comes where a pipeline has said where it begins; or why not."""
    patch, seen = getattr(self, MARK), (self.sigmas, self.timesteps)
    made = cached(patch, "add_noise", seen, lambda: make(*seen))
    first = self._begin_index if self._step_index is None else self._step_index
    return _noised(patch, made, x, noise, timesteps, None if self._begin_index is None else first)


def _exploding(sigmas: Tensor, timesteps: Tensor) -> Noising:
    """Of all sigmas, the last step's end too."""
    s = sigmas.detach().double().cpu()
    return Noising(NoisingRow(torch.ones_like(s), s), timesteps)


def _preserving(sigmas: Tensor, timesteps: Tensor) -> Noising:
    """The same of a x_0 + b eps, for which the last step is taken for an unknown one."""
    s = sigmas.detach().double().cpu()
    a = (1 + s**2).rsqrt()
    return Noising(NoisingRow(a, s * a), timesteps, len(timesteps) - 1)


@but_compiled
def get_velocity(self: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    why = "timesteps that are no floating tensor"
    if isinstance(timesteps, Tensor) and timesteps.is_floating_point():
        seen = (self.alphas_cumprod, self.timesteps)
        made = cached(getattr(self, MARK), "get_velocity", seen, lambda: _velocity_of(*seen))
        done = _noised(getattr(self, MARK), made, sample, noise, timesteps, None)
        if isinstance(done, Tensor):
            return done
        why = done
    return original(self, get_velocity, why)(sample, noise, timesteps)


def _velocity_of(abar: Tensor, timesteps: Tensor) -> Noising:
    """Theirs takes abar of the step's index for that of its timestep; so it is here."""
    abar = abar.detach().double().cpu()
    return Noising(NoisingRow(-(1 - abar).sqrt(), abar.sqrt()), timesteps)


def _noised(patch: Patch, made: Noising, x: Tensor, noise: Tensor, timesteps: Any, index: int | None) -> Tensor | str:
    """a x + s z of one step index for all, or of the timesteps'; or why not."""
    if not isinstance(timesteps, Tensor) or not isinstance(noise, Tensor) or timesteps.dim() != 1:
        return "an argument that is no tensor, or timesteps that are no list"
    try:
        check_data("x", x)
        if noise.dtype is not x.dtype or len(timesteps) not in (1, len(x)):
            return "noise of another dtype than the sample's, or a number of timesteps that is not theirs"
        if patch.strict and x.dtype in HALF_DTYPES:
            return "strict, in half precision"
        at = made.index(timesteps, x.device) if index is None else made.index_on(x.device, index)
        check_index("timesteps", at, x)
        check_noise(noise, "x", x)
        return made.noised(x, noise, at)
    except (IndexError, TypeError, ValueError) as refused:  # a timestep that is none, noise that is broadcast, ..
        return str(refused)


ONE_PASS = "one pass, its coefficients rounded once, also in half precision; no read of a timestep"
FOUND = ("index_for_timestep",)
ADD_NOISE, GET_VELOCITY = Method(add_noise, ONE_PASS, FOUND), Method(get_velocity, ONE_PASS, FOUND)
SCALE_MODEL_INPUT = Method(scale_model_input, "one division, by a number made once")
