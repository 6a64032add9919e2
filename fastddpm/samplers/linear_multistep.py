"""Linear multistep methods: what they keep is s eps_hat, s = b / a."""

import math

import torch
from torch import Tensor

from .dpm_solver import check_order
from .levels import Levels
from .one_step import keeping, straight
from .sampler import Columns, sampler

WEIGHTS = {1: (1, 0), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
"""Adams-Bashforth, the newest first."""


@sampler(fractional=True)
def lms(at: Levels, order: int = 4) -> Columns:
    """k-diffusion's sample_lms: Adams-Bashforth in s = b / a on its own uneven grid, eps_hat being the slope of x / a.

    Args:
        order: how many slopes, 1 to 4; the first steps have fewer.
    """
    check_order(order, (1, 2, 3, 4))
    w = torch.zeros(len(at.sigma), 4, dtype=torch.float64, device="cpu")  # beside Euler's
    for n, (s, s_next) in enumerate(zip(at.sigma, at.sigmas[1:], strict=True)):
        nodes = at.sigmas[max(0, n + 1 - order) : n + 1].flip(0)
        nodes = nodes[nodes.isfinite()]  # a slope at infinity has no weight
        w[n, : len(nodes)] = _integrals(nodes, s, s_next)
        w[n, :1] -= s_next - s if len(nodes) else 0
    w *= at.a_next[:, None]
    return {**straight(at), "k_e": w[:, 0], **_of_history(w, at), **keeping(at.a)}


def _of_history(w: Tensor, at: Levels) -> Columns:
    """The weights of earlier eps_hats as those of what was kept."""
    for j in (1, 2, 3):
        w[j:, j] /= at.sigma[:-j]
    return {f"k_h{j}": w[:, j] for j in (1, 2, 3)}


def _integrals(nodes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Of each node's Lagrange polynomial; two points of Gauss are exact to the third degree."""
    half = (high - low) / 2
    points = (low + high) / 2 + half * torch.tensor([[-1.0], [1.0]], dtype=torch.float64, device="cpu") / math.sqrt(3)
    others = [torch.cat((nodes[:j], nodes[j + 1 :])) for j in range(len(nodes))]
    terms = [half * ((points - o) / (node - o)).prod(1).sum() for node, o in zip(nodes, others, strict=True)]
    return torch.stack(terms) if terms else nodes


@sampler(
    spacing="leading",
    final_sigmas_type="sigma_min",
    prediction_types=("epsilon",),
    takes_edits=False,
    of_chain=True,
    visits=lambda at, of: at.visiting([0, *range(1, min(len(at.sigma), 2)), *range(1, len(at.sigmas))]),
)
def plms(at: Levels) -> Columns:
    """Pseudo linear multistep (Liu et al. 2022, PNDM, equation 12), begun by a step of Heun's kind: S + 1 rows.

    x' = A x + B e, e of Adams-Bashforth over eps_hats, A = a' / a, B = b' - A b. The second row is at the level of the third:
    it makes the first step again with (e_0 + e_1) / 2, and its own e_1 serves no more. docs/samplers.md has what follows.
    """
    shift = at.a_next / at.a
    slope = at.b_next - shift * at.b
    w = slope[:, None] * torch.tensor([_at_row(n) for n in range(len(slope))], dtype=torch.float64, device="cpu")
    k_x, kept = shift.clone(), keeping(at.a)
    if len(w) > 1:
        half = slope[0] / 2
        w[1, :2] = torch.stack((half, -half))
        kept["c_x"][1] += at.sigma[1] / half  # of e_1 + x / half, which is e_0 + x_2 / half
    if len(w) > 4:  # e_0 is four rows back: it follows from x_4 and what lies between
        e_0, k_x_4 = _first_epsilon(shift, slope)
        k_x[4] += w[4, 3] * k_x_4
        w[4] = torch.cat((w[4, :1], w[4, 1:3] + w[4, 3] * e_0[:2], w[4, 3] * e_0[2:]))
    return {"k_x": k_x, "k_e": w[:, 0], **_of_history(w, at), **kept}


def _at_row(n: int) -> tuple[float, ...]:
    """Over e_n, h_1, h_2, h_3, h_j being e_(n - j); e_1 is left out."""
    if n < 2:
        return 1, 0, 0, 0
    newest, *older = WEIGHTS[min(n, 4)]
    return {2: (newest, 0, *older, 0), 3: (newest, older[0], 0, older[-1])}.get(n, (newest, *older))


def _first_epsilon(shift: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """e_0 over (e_3, e_2, what row 1 kept), and over x_4: solved for in

    x_2 = half (kept - e_0);  x_3 = A_2 x_2 + B_2 (3 e_2 - e_0) / 2;  x_4 = A_3 x_3 + B_3 (23 e_3 - 16 e_2 + 5 e_0) / 12.
    """
    kept = shift[3] * shift[2] * slope[0] / 2
    second, third = shift[3] * slope[2] / 2, slope[3] / 12
    e_0 = -kept - second + 5 * third
    return -torch.stack((23 * third, 3 * second - 16 * third, kept)) / e_0, 1 / e_0
