"""EDM: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", by its formulas."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .checks import as_finite
from .densities import LogNormal
from .process import Process, count_of, karras, listed, target_of
from .tables import real_tensors


class EDM(Process):
    """y = x_0 + sigma z at any sigma > 0, which t is; x_t is c_in y, what the network F is given, so that nobody scales it.

    With c_in = (sigma^2 + sigma_data^2)^-1/2 the levels are a = c_in and s = c_in sigma, and x_t has the deviation 1 where the
    data's is sigma_data. For t F is given c_noise = ln(sigma) / 4; x_0_hat is c_skip y + c_out F (table 1). "edm" is F's target
    (x_0 - c_skip y) / c_out = c_in (x_0 sigma / sigma_data - sigma_data z). lambda c_out^2 = 1, so that its mean squared error
    is the paper's loss (equation 8) as it is. Training draws ln(sigma) ~ N(P_mean, P_std^2) of the key. A sampler's x_T is z.

    Args:
        sigma_data: the data's deviation.
        P_mean, P_std: of ln(sigma) in training.
        sigma_min, sigma_max, rho: of the levels that samplers walk (equation 5).

    Raises:
        ValueError: an argument out of its range, named.
    """

    prediction_types = ("edm", "sample", "epsilon")
    sampler = "heun"
    is_continuous = True

    @real_tensors()
    def __init__(
        self,
        sigma_data: float = 0.5,
        P_mean: float = -1.2,  # noqa: N803
        P_std: float = 1.2,  # noqa: N803
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ):
        positive = {"sigma_data": sigma_data, "P_std": P_std, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
        for name, value in positive.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a number above 0, got {value!r}")
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_min: expected one below sigma_max {sigma_max}, got {sigma_min}")
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, sigma_min, sigma_max, rho
        self.density = LogNormal(as_finite("P_mean", P_mean), P_std)
        self.timesteps = torch.zeros(0, device="cpu")
        super().__init__(torch.tensor([*positive.values(), P_mean], dtype=torch.float64, device="cpu"))

    def __repr__(self) -> str:
        return f"EDM(sigma_data={self.sigma_data:.4g}, sigma {self.sigma_min:.4g} .. {self.sigma_max:.4g})"

    def levels_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        c_in = (t.square() + self.sigma_data**2).rsqrt()
        return c_in, c_in * t

    def timesteps_at(self, t: Tensor) -> Tensor:
        return t.log() / 4

    def target_of(self, a: Tensor, s: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
        if prediction_type == "edm":
            return -self.sigma_data * a, s / self.sigma_data
        return target_of(a, s, prediction_type)

    def walk(self, steps: Any, spacing: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Equation 5's levels, and 0 behind them, where x is x_0 itself.

        Args:
            steps: S, of any size; or a list of sigmas that fall; None for 18, the paper's on CIFAR-10.
            spacing: "karras", or None.
        """
        if spacing not in (None, "karras"):
            raise ValueError(f"spacing: expected 'karras' or None for EDM, got {spacing!r}")
        if steps is None or isinstance(steps, Integral):
            sigmas = karras(self.sigma_max, self.sigma_min, count_of(18 if steps is None else steps), self.rho)
        else:
            sigmas = listed(steps, math.inf)
        return self.at_sigmas(torch.cat((sigmas, torch.zeros_like(sigmas[:1]))))

    def at_sigmas(self, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `walk` returns, of these sigmas `[S + 1]`."""
        a = self.levels_at(sigmas)[0]
        return self.timesteps_at(sigmas[:-1]).float(), sigmas, torch.where(sigmas > 0, a, 1.0)
