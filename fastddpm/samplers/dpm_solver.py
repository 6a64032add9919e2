"""DPM-Solver++ and its SDE: they read earlier x_0_hats."""

import math

import torch
from torch import Tensor

from ..checks import as_int
from .levels import INNER, Levels
from .one_step import ancestral, straight
from .sampler import Columns, sampler


@sampler(spacings=INNER)
def dpmpp(
    at: Levels, order: int = 2, lower_order_final: bool = True, euler_at_final: bool = False, full_curvature: bool = False
) -> Columns:
    """DPM-Solver++, multistep (Lu et al. 2022b): order 1, 2 (2M, algorithm 2) or 3 (3M).

    Args:
        lower_order_final: of fewer than 15 steps the last is of order 1 and the one before of order 2 at most. A step to sigma
            0 is of order 1 always.
        euler_at_final: the last step is of order 1.
        full_curvature: 3M with the second derivative of its Taylor series. The authors' code, diffusers' and this default halve
            it, which leaves a method of order 2 (docs/samplers.md).
    """
    check_order(order, (1, 2, 3))
    orders, first = _orders(at, order, lower_order_final, euler_at_final), straight(at)
    return differences(at, first, orders, first["k_0"] / 2, 1.0 if full_curvature else 0.5)


@sampler(spacings=INNER)
def dpmpp_sde(at: Levels, order: int = 2, lower_order_final: bool = True, euler_at_final: bool = False) -> Columns:
    """SDE-DPM-Solver++ (Lu et al. 2022b): order 1, the step of `euler_ancestral`, or 2 (2M).

    Args:
        lower_order_final, euler_at_final: as `dpmpp`.
    """
    check_order(order, (1, 2))
    first = ancestral(at)
    return differences(at, first, _orders(at, order, lower_order_final, euler_at_final), first["k_0"] / 2)


def _orders(at: Levels, order: int, lower_order_final: bool, euler_at_final: bool) -> Tensor:
    orders = torch.tensor(step_orders(at, order, lower_order_final and len(at.sigma) < 15), device="cpu")
    if euler_at_final:
        orders[-1] = 1
    return orders


def differences(at: Levels, first: Columns, orders: Tensor, second: Tensor, curvature: float = 0.0) -> Columns:
    """First-order steps, and what the divided differences q_1 (m_0 - m_1) and q_2 (m_1 - m_2) add; q_j = h / h_j, h_j the j-th
    step before.

    Args:
        second: the slope's weight in a step of order 2: half of x_0_hat's ("midpoint"), or `weight_of` ("heun").
        curvature: of 3M (see `dpmpp`).
    """
    h = at.h
    q_1, q_2 = (_where(orders > j, h / torch.cat((h[:j], h[:-j]))) for j in (1, 2))
    share = _where(orders == 3, q_2 / (q_1 + q_2))
    slope, curve = (_where(orders == 3, weight_of(at, k, h)) for k in (2, 3))
    curved = (slope + 2 * curvature * curve * q_1) * share
    p, q = (_where(orders == 2, second) + slope + curved) * q_1, curved * q_2
    return {**first, "k_0": first["k_0"] + p, "k_h1": -p - q, "k_h2": q}


def weight_of(at: Levels, k: int, h: Tensor) -> Tensor:
    """Of the (k - 1)-th derivative of x_0_hat over a step: a' h phi_k(-h)."""
    return at.a_next * h * phi(k, -h)


def _where(there: Tensor, value: Tensor) -> Tensor:
    return torch.where(there, value, 0.0)


# ---- shared with UniPC ----


def phi(k: int, z: Tensor) -> Tensor:
    """phi_k(z) = sum_j z^j / (j + k)! for z <= 0: phi_0 is exp, phi_k+1 = (phi_k - 1 / k!) / z."""
    value, series = z.exp(), torch.zeros_like(z)
    for i in range(k):
        value = (value - 1 / math.factorial(i)) / z
    for j in range(17, -1, -1):
        series = series * z + 1 / math.factorial(j + k)
    return torch.where(z > -1, series, value)


def step_orders(at: Levels, order: int, lower_order_final: bool) -> list[int]:
    """Of each step: at most as many as there are x_0_hats; 2 and 1 at the end where asked for; 1 to sigma 0."""
    steps = len(at.sigma)
    orders = [min(order, n + 1, steps - n if lower_order_final else order) for n in range(steps)]
    if at.sigmas[-1] == 0:
        orders[-1] = 1
    return orders


def check_order(order: object, orders: tuple[int, ...]) -> None:
    if as_int("order", order) not in orders:
        raise ValueError(f"order: expected one of {', '.join(map(str, orders))}, got {order!r}")
