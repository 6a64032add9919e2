"""UniPC: each step corrects the sample that the step before predicted, by the x_0_hat seen there."""

import math

import torch
from torch import Tensor

from .dpm_solver import check_order, phi, step_orders
from .levels import INNER, Levels
from .one_step import straight
from .sampler import Columns, sampler


@sampler(spacings=INNER)
def unipc(at: Levels, order: int = 2, lower_order_final: bool = True) -> Columns:
    """UniPC of B(h) = exp(h) - 1 (Zhao et al. 2023, algorithms 1 and 2; bh2), on x_0_hat; order 1, 2 or 3.

    Predictor and corrector begin at the same sample, so that the corrected one is the predicted one and a combination of
    x_0_hats: a row corrects its x by that and predicts from there.

    Args:
        lower_order_final: the last steps are of order 2 and 1. A step to sigma 0 is of order 1 always.
    """
    check_order(order, (1, 2, 3))
    orders, first = step_orders(at, order, lower_order_final), straight(at)
    k = torch.zeros(len(orders), 4, dtype=torch.float64, device="cpu")  # over m_n, m_n-1, m_n-2, m_n-3 at row n
    for n, p in enumerate(orders):
        predicted, corrected = _weights(at.sigmas[: n + 2], p)
        k[n, : len(predicted)] += first["k_0"][n] * predicted
        if n + 1 < len(orders):
            k[n + 1, : len(corrected)] += first["k_x"][n + 1] * first["k_0"][n] * corrected
    return {"k_x": first["k_x"], **dict(zip(("k_0", "k_h1", "k_h2", "k_h3"), k.unbind(1), strict=True))}


def _weights(sigmas: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Of the last of these steps, from level n: what is put for a first-order step's x_0_hat, over m_n, m_n-1, ..; and what the
    corrector adds to it, over m_n+1, m_n, m_n-1, .."""
    if order == 1:
        return torch.ones_like(sigmas[:1]), torch.tensor([0.5, -0.5], dtype=torch.float64, device="cpu")
    lambdas = -sigmas[-order - 1 :].log().flip(0)
    h = lambdas[0] - lambdas[1]
    nodes = torch.cat(((lambdas[2:] - lambdas[1]) / h, torch.ones_like(h)[None]))
    b = torch.stack([math.factorial(i) * phi(i + 1, -h) / phi(1, -h) for i in range(1, order + 1)])
    rho_p = torch.full_like(b[:1], 0.5) if order == 2 else _solve(nodes[:-1], b)
    rho_c = _solve(nodes, b)
    slopes, changes = rho_p / nodes[:-1], (rho_c[:-1] - rho_p) / nodes[:-1]
    predicted = torch.cat((1 - slopes.sum()[None], slopes))
    return predicted, torch.cat((rho_c[-1:], -(rho_c[-1] + changes.sum())[None], changes))


def _solve(nodes: Tensor, b: Tensor) -> Tensor:
    """rho of sum_k rho_k nodes_k^i = b_i. A node at infinity (a step from zero terminal SNR) has no weight in the limit."""
    finite = nodes.isfinite()
    rho, count = torch.zeros_like(nodes), int(finite.sum())
    powers = nodes[finite] ** torch.arange(count, device="cpu")[:, None]
    rho[finite] = torch.linalg.solve(powers, b[:count])
    return rho
