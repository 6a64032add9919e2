"""Densities of t: how often training draws each timestep, or each level of continuous time.

Level 0 is the data and 1 the noise, as the index of a chain rises: index i of T is drawn as often as a level between i / T and
(i + 1) / T. Of 2^30 words so many fall to each index, by bounds that are whole numbers, and a key's word is one of them: t is
the same bits on every device and rank (docs/noise.md).
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .checks import as_finite, as_int, describe
from .tables import Tables, real_tensors

WORDS = 1 << 30
"""t is chosen by 30 random bits: the probabilities are whole numbers of 2^-30."""


class Density(Tables):
    """What `timesteps`, `levels` and `GaussianDiffusion` take: a distribution on (0, 1), but for `LogNormal` and `Discrete`."""

    def cdf(self, level: float) -> float:
        """How much lies below a level."""
        raise self._has_no_levels()

    def quantile(self, share: Tensor) -> Tensor:
        """The level that this share, float64 in (0, 1), lies below: the inverse of `cdf`, on the share's device."""
        raise self._has_no_levels()

    def probabilities(self, num_timesteps: int) -> Tensor:
        """With which each index 0 .. T-1 is drawn, exactly: float64 `[T]` on the CPU. One below 2^-31 may be 0."""
        return words_of(self.bounds_on(num_timesteps, torch.device("cpu"))).double() / WORDS

    def bounds_on(self, num_timesteps: int, device: torch.device) -> Tensor:
        """int64 `[T]` on a device, uploaded once: bound i is the first of the 2^30 words that belongs to i + 1."""
        num_timesteps = as_int("num_timesteps", num_timesteps)
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps: expected 1 or more, got {num_timesteps}")
        return self.table(_bounds, device, torch.int64, num_timesteps)

    def cumulative(self, num_timesteps: int) -> list[float]:
        """How much lies below the end of each index."""
        return [self.cdf((i + 1) / num_timesteps) for i in range(num_timesteps)]

    def _has_no_levels(self) -> Exception:
        return ValueError(f"density: expected one of continuous levels, got {type(self).__name__}, which is of t")


class LogitNormal(Density):
    """The logistic function of a normal (Esser et al. 2024, Stable Diffusion 3, section 3.1): most of t in the middle."""

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        self.mean, self.std = as_finite("mean", mean), _above_0("std", std)
        super().__init__(_contents(self.mean, self.std))

    def cdf(self, level: float) -> float:
        return 1.0 if level >= 1 else _normal_cdf((math.log(level / (1 - level)) - self.mean) / self.std)

    def quantile(self, share: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(share))


class Mode(Density):
    """Mode sampling with heavy tails (ibid.): level u + s (u - sin^2(pi u / 2)) of a uniform u. An s above 0 draws
    the middle more often, one below 0 the ends."""

    LEAST, MOST = -1.0, 2 / (math.pi - 2)

    def __init__(self, scale: float = 1.29):
        self.scale = as_finite("scale", scale)
        if not self.LEAST <= self.scale <= self.MOST:
            raise ValueError(f"scale: expected -1 .. 2 / (pi - 2), got {scale}")
        super().__init__(_contents(self.scale))

    def cdf(self, level: float) -> float:
        off, low, high = level - 0.5, 0.0, 0.5  # from the middle, about which all is odd: nothing cancels at the largest scale
        while low < (u := (low + high) / 2) < high:  # to neighbouring floats
            below = (1 + self.scale) * u - self.scale / 2 * math.sin(math.pi * u) < abs(off)
            low, high = (u, high) if below else (low, u)
        return 0.5 + math.copysign(high, off)

    def quantile(self, share: Tensor) -> Tensor:
        return share + self.scale * (share - torch.sin(math.pi / 2 * share) ** 2)


class CosMap(Density):
    """That of a cosine schedule's log SNR (ibid.): p(t) = 2 / (pi (1 - 2 t + 2 t^2))."""

    def __init__(self) -> None:
        super().__init__()

    def cdf(self, level: float) -> float:
        return 2 / math.pi * math.atan2(level, 1 - level)

    def quantile(self, share: Tensor) -> Tensor:
        return 1 - 1 / (1 + torch.tan(math.pi / 2 * share))


class LogNormal(Density):
    """Of sigma itself: ln sigma is normal (EDM; Karras et al. 2022, table 1, P_mean and P_std). `at` makes it one of t."""

    def __init__(self, mean: float = -1.2, std: float = 1.2):
        self.mean, self.std = as_finite("mean", mean), _above_0("std", std)
        super().__init__(_contents(self.mean, self.std))

    def cdf(self, level: float) -> float:
        return 0.0 if level <= 0 else _normal_cdf((math.log(level) - self.mean) / self.std)

    def quantile(self, share: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * torch.special.ndtri(share))

    def cumulative(self, num_timesteps: int) -> list[float]:
        raise ValueError("density: expected one of t, got LogNormal, which is of sigma: LogNormal(..).at(sigmas) is of t")

    def at(self, sigmas: Tensor | Sequence[float]) -> "Discrete":
        """That of t in a chain with these sigmas `[T]`, rising: each is drawn as often as what lies nearest to it in ln sigma.
        A `NoiseSchedule`'s are `schedule.snr.rsqrt()`."""
        logs = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").detach().log()
        if logs.dim() != 1 or not len(logs) or not bool((logs.diff() > 0).all()):
            raise ValueError(f"sigmas: expected [T] that rise from 0 or more, got {describe(sigmas)} that do not")
        ends = [*((logs[1:] + logs[:-1]) / 2).exp().tolist(), math.inf]
        below = [self.cdf(end) for end in ends]
        return Discrete([high - low for low, high in zip([0.0, *below], below, strict=False)])


class Discrete(Density):
    """Of t alone, by any `[T]` weights: each index is drawn in proportion to its own."""

    def __init__(self, weights: Tensor | Sequence[float]):
        table = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach().clone()
        if table.dim() != 1 or not bool((table >= 0).all()) or not 0 < float(table.sum()) < math.inf:
            raise ValueError(f"weights: expected [T] that are finite, 0 or more, and not all 0, got {describe(weights)}")
        self.weights = table
        super().__init__(table)

    def cumulative(self, num_timesteps: int) -> list[float]:
        if num_timesteps != len(self.weights):
            raise ValueError(f"density: expected Discrete of {num_timesteps} timesteps, got {len(self.weights)}")
        sums = list(accumulate(self.weights.tolist()))
        return [x / sums[-1] for x in sums]


def words_of(bounds: Tensor) -> Tensor:
    """How many of the 2^30 words fall to each t."""
    return bounds.diff(prepend=bounds.new_zeros(1))


def check_density(density: object) -> None:
    if not isinstance(density, Density):
        raise TypeError(f"density: expected one of fastddpm.densities or None, got {describe(density)}")


def _bounds(density: Density, num_timesteps: int) -> Tensor:
    """By Python's own functions, one number at a time: torch's are not the same on every instruction set."""
    bounds = [round(WORDS * share) for share in density.cumulative(num_timesteps)[:-1]]
    return torch.tensor([*bounds, WORDS], dtype=torch.int64, device="cpu")


@real_tensors()
def _contents(*parameters: float) -> Tensor:
    return torch.tensor(parameters, dtype=torch.float64, device="cpu")


def _normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def _above_0(name: str, value: float) -> float:
    if as_finite(name, value) <= 0:
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return float(value)
