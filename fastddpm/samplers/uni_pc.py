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
    orders, first = torch.tensor(step_orders(at, order, lower_order_final), device="cpu"), straight(at)
    k = torch.zeros(len(orders), 4, dtype=torch.float64, device="cpu")  # over m_n, m_n-1, m_n-2, m_n-3 at row n
    for p in orders.unique().tolist():
        predicted, corrected = weights(at, p)
        k[orders == p, :p] += (first["k_0"][:, None] * predicted)[orders == p]
        change = first["k_x"][1:, None] * first["k_0"][:-1, None] * corrected[:-1]
        k[1:][orders[:-1] == p, : p + 1] += change[orders[:-1] == p]
    return {"k_x": first["k_x"], **dict(zip(("k_0", "k_h1", "k_h2", "k_h3"), k.unbind(1), strict=True))}


def weights(at: Levels, order: int, half: Tensor | float = 0.5) -> tuple[Tensor, Tensor]:
    """Of each step, were it of this order: what is put for a first-order step's x_0_hat, `[S, order]` over m_n, m_n-1, ..; and
    what the corrector adds to it, `[S, order + 1]` over m_n+1, m_n, m_n-1, ... NaN where there are not so many levels before.

    Args:
        half: the weight of a single slope, which is not solved for. bh2's.
    """
    lambdas, h = -at.sigmas.log(), at.h
    half = torch.as_tensor(half, device="cpu").expand_as(h)[:, None]
    if order == 1:
        return torch.ones_like(half), torch.cat((half, -half), 1)
    before = [torch.cat((torch.full_like(h[:j], torch.nan), lambdas[: -1 - j])) for j in range(1, order)]
    nodes = torch.stack([*((at_j - lambdas[:-1]) / h for at_j in before), torch.ones_like(h)], 1)
    b = torch.stack([math.factorial(i) * phi(i + 1, -h) / phi(1, -h) for i in range(1, order + 1)], 1)
    rho_p = half if order == 2 else _solve(nodes[:, :-1], b[:, :-1])
    rho_c = _solve(nodes, b)
    slopes, changes = rho_p / nodes[:, :-1], (rho_c[:, :-1] - rho_p) / nodes[:, :-1]
    predicted = torch.cat((1 - slopes.sum(1, keepdim=True), slopes), 1)
    newest = rho_c[:, -1:]
    return predicted, torch.cat((newest, -(newest + changes.sum(1, keepdim=True)), changes), 1)


def _solve(nodes: Tensor, b: Tensor) -> Tensor:
    """rho of sum_k rho_k nodes_k^i = b_i, row by row. A node at infinity (a step from zero terminal SNR) has no weight in the
    limit: the last equation is its own."""
    powers = torch.arange(nodes.shape[1], device="cpu")[:, None]
    own = (powers == len(powers) - 1).double()
    rho, _ = torch.linalg.solve_ex(torch.where(nodes.isfinite()[:, None], nodes[:, None] ** powers, own), b)
    return torch.where(nodes.isfinite(), rho, 0.0)
