"""NoiseSchedule: betas -> float64 tables, of which coefficients.py makes the rows for the kernels.

Notation: index i = 0..T-1 is step t = i + 1 of the papers; abar = alphas_cumprod; abar_0 = 1 before the first step.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .checks import check_one_of, describe
from .conversions import openai_timesteps, tables_of, told
from .process import Process
from .spacings import EVEN
from .tables import real_tensors

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "previous")
FIXED_VARIANCE_TYPES = ("fixed_small", "fixed_large")
LEARNED_VARIANCE_TYPES = ("learned", "learned_range")
VARIANCE_TYPES = (*FIXED_VARIANCE_TYPES, *LEARNED_VARIANCE_TYPES)
FIRST_VARIANCES = ("posterior", "beta")


class NoiseSchedule(Process):
    """The noise schedule of a discrete-time diffusion: what each step adds, and the tables that follow.

    Make one with `linear`, `cosine`, `sigmoid`, `scaled_linear`, `from_betas` or `from_alphas_cumprod`, or of another library's
    with `from_diffusers`, `from_openai` or `from_lucidrains`. All tables are float64 `[T]` on the CPU. A schedule does not
    change once made; `respace` and `zero_terminal_snr` return new ones.

    Attributes:
        betas, alphas, alphas_cumprod, alphas_cumprod_prev: as in Ho et al. 2020, section 2.
        posterior_variance: beta~ of Ho et al. 2020, eq. 7; 0 at index 0.
        posterior_mean_x_0, posterior_mean_x_t: the two coefficients of mu~, ibid.
        timesteps: int64 `[T]`, the timestep that the network is given at each index; 0..T-1 unless respaced.
    """

    prediction_types = PREDICTION_TYPES
    sampler = "ddpm"
    is_chain = True

    def __init__(self, betas: Tensor, alphas_cumprod: Tensor, timesteps: Tensor):
        super().__init__(betas, alphas_cumprod, timesteps)
        self.betas, self.alphas_cumprod, self.timesteps = betas, alphas_cumprod, timesteps
        self.levels = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        self.alphas = 1 - betas
        self.alphas_cumprod_prev = torch.cat((torch.ones(1, dtype=torch.float64, device="cpu"), alphas_cumprod[:-1]))
        self.posterior_variance = betas * (1 - self.alphas_cumprod_prev) / (1 - alphas_cumprod)
        self.posterior_mean_x_0 = betas * self.alphas_cumprod_prev.sqrt() / (1 - alphas_cumprod)
        self.posterior_mean_x_t = self.alphas.sqrt() * (1 - self.alphas_cumprod_prev) / (1 - alphas_cumprod)
        self.num_timesteps = len(betas)
        self.is_respaced = not torch.equal(timesteps, torch.arange(len(betas), device="cpu"))
        self.last_alpha_cumprod = float(alphas_cumprod[-1])
        self.has_zero_terminal_snr = self.last_alpha_cumprod == 0

    def __repr__(self) -> str:
        first, last = float(self.betas[0]), float(self.betas[-1])
        return f"NoiseSchedule(T={len(self)}, betas {first:.4g} .. {last:.4g}, abar_T={self.last_alpha_cumprod:.4g})"

    # ---- how to make one ----

    @classmethod
    @real_tensors()
    def linear(cls, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "NoiseSchedule":
        """Betas evenly spaced between the ends as given (Ho et al. 2020). They are not scaled by 1000/T, as diffusers' are not;
        OpenAI and lucidrains scale them: pass the scaled ends for theirs."""
        _check_steps(num_timesteps)
        return cls.from_betas(torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64, device="cpu"))

    @classmethod
    @real_tensors()
    def scaled_linear(cls, num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> "NoiseSchedule":
        """sqrt(beta) evenly spaced (Rombach et al. 2022, latent diffusion)."""
        _check_steps(num_timesteps)
        _check_positive("beta_start", beta_start)
        _check_positive("beta_end", beta_end)
        roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_timesteps, dtype=torch.float64, device="cpu")
        return cls.from_betas(roots**2)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> "NoiseSchedule":
        """f(u) = cos^2((u + s)/(1 + s) pi/2), beta_t = min(1 - f(t/T)/f((t-1)/T), max_beta) (Nichol & Dhariwal 2021, 17)."""
        return cls._from_curve(num_timesteps, max_beta, lambda u: math.cos((u + s) / (1 + s) * math.pi / 2) ** 2)

    @classmethod
    def sigmoid(
        cls, num_timesteps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
    ) -> "NoiseSchedule":
        """A sigmoid in abar (Jabri et al. 2022, "sigmoid"; lucidrains'). diffusers' schedule of that name is one in beta."""

        _check_positive("tau", tau)
        lower, upper = _logistic(start / tau), _logistic(end / tau)
        if lower == upper:
            raise ValueError(f"start, end: expected a sigmoid that rises between them, got {start} and {end}")

        def curve(u: float) -> float:
            return (upper - _logistic((u * (end - start) + start) / tau)) / (upper - lower)

        return cls._from_curve(num_timesteps, max_beta, curve)

    @classmethod
    def _from_curve(cls, num_timesteps: int, max_beta: float, curve: Callable[[float], float]) -> "NoiseSchedule":
        _check_steps(num_timesteps)
        levels = [curve(i / num_timesteps) for i in range(num_timesteps + 1)]
        ratios = zip(levels[1:], levels[:-1], strict=True)
        return cls.from_betas([min(1 - now / before, max_beta) for now, before in ratios])

    @classmethod
    @real_tensors()
    def from_betas(cls, betas: Tensor | Sequence[float]) -> "NoiseSchedule":
        """From any betas `[T]` in (0, 1), the last one in (0, 1]: after a beta of 1 nothing of x_0 is left.

        Raises:
            ValueError: no betas, not one-dimensional, NaN, or a value out of range (named with its index).
        """
        betas = _table("betas", betas)
        abar = torch.cumprod(1 - betas, 0)
        inside = (1 - betas < 1) & (betas < 1)
        inside[-1] |= betas[-1] == 1
        _check_values("betas", betas, inside, "in (0, 1), the last in (0, 1]")
        _check_values("the product of 1 - betas", abar[:-1], abar[:-1] > 0, "above 0 before the last step")
        return cls(betas, abar, torch.arange(len(betas), device="cpu"))

    @classmethod
    @real_tensors()
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor | Sequence[float]) -> "NoiseSchedule":
        """From abar `[T]`: in (0, 1) and strictly decreasing; the last value may be 0 (zero terminal SNR)."""
        return cls._from_levels("alphas_cumprod", _table("alphas_cumprod", alphas_cumprod), None)

    @classmethod
    @real_tensors()
    def _from_levels(cls, name: str, abar: Tensor, timesteps: Tensor | None) -> "NoiseSchedule":
        inside = (abar > 0) & (abar < 1)
        inside[-1] |= abar[-1] == 0
        _check_values(name, abar, inside, "in (0, 1), the last in [0, 1)")
        before = torch.cat((torch.ones(1, dtype=torch.float64, device="cpu"), abar[:-1]))
        _check_values(name, abar, abar < before, "strictly decreasing")
        return cls(1 - abar / before, abar, torch.arange(len(abar), device="cpu") if timesteps is None else timesteps)

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> "NoiseSchedule":
        """The whole chain of a diffusers scheduler (DDPM, DDIM, Euler, DPM-Solver, .., with any betas), as it is now.

        abar is the float64 product of its betas, which agrees with its `alphas_cumprod` to float32's rounding; or that table
        itself where another was put in its place. (A last abar of 0 is 0 here, where some of theirs make it 2^-24.) Its
        prediction type is `scheduler.config.prediction_type`, a word of ours too; for the steps that it samples with, `respace`
        the schedule, or give `samplers` the steps and spacing.

        Raises:
            TypeError: not such an object (FlowMatch has no betas); another library's is told its own classmethod.
            ValueError: tables that no chain can have, as `from_betas` and `from_alphas_cumprod`.
        """
        return cls._from_tables(*tables_of("from_diffusers", "scheduler", scheduler))

    @classmethod
    def from_openai(cls, diffusion: Any) -> "NoiseSchedule":
        """That of a GaussianDiffusion or SpacedDiffusion of OpenAI's improved-diffusion or guided-diffusion, in all its digits.

        Of a SpacedDiffusion the respaced chain, with the `timesteps` of its map. Their `rescale_timesteps` is followed where
        it leaves whole numbers.

        Raises:
            TypeError: not such an object.
            ValueError: as `from_diffusers`; or fractional timesteps.
        """
        tables = tables_of("from_openai", "diffusion", diffusion)
        return cls._from_tables(*tables, openai_timesteps(diffusion))

    @classmethod
    def from_lucidrains(cls, diffusion: Any) -> "NoiseSchedule":
        """That of a GaussianDiffusion of lucidrains' denoising-diffusion-pytorch, from its float32 buffers as `from_diffusers`.

        Its objectives "pred_noise", "pred_x0" and "pred_v" are our "epsilon", "sample" and "v_prediction"; its images [0, 1]
        are ours 2 x - 1.

        Raises:
            TypeError, ValueError: as `from_diffusers`.
        """
        return cls._from_tables(*tables_of("from_lucidrains", "diffusion", diffusion))

    @classmethod
    def _from_tables(cls, betas: Tensor, abar: Tensor | None, timesteps: Tensor | None = None) -> "NoiseSchedule":
        made = cls.from_betas(betas) if abar is None else cls.from_alphas_cumprod(abar)
        return made if timesteps is None else cls(made.betas, made.alphas_cumprod, timesteps)

    # ---- how to change one ----

    @real_tensors()
    def zero_terminal_snr(self) -> "NoiseSchedule":
        """sqrt(abar) shifted so that its last value is 0 and scaled so that its first stays (Lin et al. 2023, algorithm 1)."""
        if len(self) < 2:
            raise ValueError(f"zero_terminal_snr: expected a schedule of 2 steps or more, got {len(self)}")
        root = self.alphas_cumprod.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return self._from_levels("alphas_cumprod", root**2, self.timesteps)

    @real_tensors()
    def respace(self, steps: int | Sequence[int] | Tensor, spacing: str = "trailing") -> "NoiseSchedule":
        """The chain over fewer steps tau_1 < .. < tau_S: abar'_s = abar_(tau_s), and new betas (Nichol & Dhariwal 2021).

        Args:
            steps: S, or an explicit list of indices, all different, ascending or descending.
            spacing: which S indices: "leading" (0, T//S, ..), "trailing" (.., T-1) or "linspace" (both ends), as diffusers
                names them. Not used with a list.

        Returns:
            A schedule of S steps whose `timesteps` are those the network was trained on.
        """
        if isinstance(steps, bool):
            raise TypeError(f"steps: expected an int or a list of ints, got {steps}")
        index = self._spaced(int(steps), spacing) if isinstance(steps, Integral) else self._listed(steps)
        return self._from_levels("steps", self.alphas_cumprod[index], self.timesteps[index])

    def _spaced(self, steps: int, spacing: str) -> Tensor:
        total = len(self)
        if not 1 <= steps <= total:
            raise ValueError(f"steps: expected 1 .. {total}, got {steps}")
        check_one_of("spacing", spacing, tuple(EVEN))
        return EVEN[spacing](total, steps, 0).round().long().flip(0)

    def _listed(self, steps: Any) -> Tensor:
        index = torch.as_tensor(steps, device="cpu")
        if index.dim() != 1 or index.numel() == 0 or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(f"steps: expected an int or a list of ints, got {describe(index)}")
        index = index.long()
        if len(index) > 1 and index[0] > index[-1]:
            index = index.flip(0)
        if bool((index[1:] <= index[:-1]).any()) or index[0] < 0 or index[-1] >= len(self):
            raise ValueError(f"steps: expected different indices 0 .. {len(self) - 1} in order, got {steps}")
        return index

    # ---- tables that follow ----

    @property
    def snr(self) -> Tensor:
        """abar / (1 - abar), float64 `[T]`."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def min_snr_weights(self, prediction_type: str = "epsilon", gamma: float = 5.0) -> Tensor:
        """Min-SNR weights, float64 `[T]` (Hang et al. 2023): min(snr, gamma), over snr for epsilon, over snr + 1 for v."""
        check_one_of("prediction_type", prediction_type, PREDICTION_TYPES[:3])
        _check_positive("gamma", gamma)
        self.check_prediction(prediction_type)
        return self.min_snr_weights_at(*self.levels, prediction_type, gamma)

    def variance(self, variance_type: str) -> Tensor:
        """sigma^2 of the reverse step, float64 `[T]`: fixed_small beta~ (0 at index 0), fixed_large [beta~_2, beta_2, ..]."""
        check_one_of("variance_type", variance_type, FIXED_VARIANCE_TYPES)
        if variance_type == "fixed_small":
            return self.posterior_variance
        return torch.cat((self.posterior_variance[1:2] if len(self) > 1 else self.betas[:1], self.betas[1:]))

    def check_prediction(self, prediction_type: str) -> None:
        """Refuses what cannot work: x_0 does not follow from epsilon where abar is 0."""
        super().check_prediction(prediction_type)
        if prediction_type == "epsilon" and self.has_zero_terminal_snr:
            raise ValueError(
                "prediction_type: expected 'v_prediction' or 'sample' on a schedule of zero terminal SNR, got 'epsilon' "
                "(x_T is pure noise there, so no x_0 follows from a predicted epsilon)"
            )


def check_schedule(schedule: object) -> None:
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: expected a NoiseSchedule, got {told(schedule)}")


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def _check_steps(num_timesteps: int) -> None:
    if not isinstance(num_timesteps, Integral) or isinstance(num_timesteps, bool) or num_timesteps < 1:
        raise ValueError(f"num_timesteps: expected an int of 1 or more, got {num_timesteps!r}")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected a value above 0, got {value}")


def _table(name: str, values: Tensor | Sequence[float]) -> Tensor:
    table = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    if table.dim() != 1 or table.numel() == 0:
        raise ValueError(f"{name}: expected one dimension and one value or more, got shape {list(table.shape)}")
    return table


def _check_values(name: str, table: Tensor, good: Tensor, expected: str) -> None:
    if not bool(good.all()):
        index = int((~good).nonzero()[0])
        raise ValueError(f"{name}: expected values {expected}, got {float(table[index])} at index {index}")
