"""The densities of the variational bound, element by element, in plain torch of any float dtype: the specification that the
C++ and Triton kernels follow.

Each function returns a value and its derivatives in closed form. No difference of close numbers is taken anywhere that matters,
nothing is clamped but where the tanh form asks for it, and every branch is fed arguments of its own range, so that neither an
overflow nor a NaN of a branch not taken reaches a gradient, nor a gradient's gradient.
"""

import math

import torch
from torch import Tensor

Bin = tuple[Tensor, Tensor, Tensor]
"""log P, and its derivatives by y and by w."""

_HALF_WIDTH = 1 / 255
"""Of a bin of 8-bit data on [-1, 1]."""
_EDGE = 0.999
"""Beyond it the bins are open: OpenAI's threshold."""
_LOG_ROOT_2_PI = math.log(math.sqrt(2 * math.pi))
_LOG_DEVIATIONS = {torch.float32: (-70, -20, 80), torch.float64: (-600, -100, 600)}
"""Of which the reciprocals, times a root of the precision, neither overflow nor vanish: the least, that of the tanh form, which
takes cubes, and the most."""
_NODES = ((0.1834346424956498, 0.362683783378362), (0.5255324099163290, 0.3137066458778873),
          (0.7966664774136267, 0.2223810344533745), (0.9602898564975363, 0.1012285362903763))  # fmt: skip
"""Gauss-Legendre on [-1, 1], 8 points: the positive ones, and their weights."""


# ---- t > 0: two normals ----


def kl_excess(delta: Tensor) -> Tensor:
    """h(delta) = delta + expm1(-delta) >= 0: what a variance wrong by the factor exp(delta) costs, twice over.

    The two terms cancel near 0: there it is the series delta^2/2 - delta^3/6 + ..
    """
    near = delta.abs() < 0.5
    small = torch.where(near, delta, 0.0)
    series = torch.zeros_like(small)
    for n in range(16, 1, -1):
        series = series * small + (-1) ** n / math.factorial(n)
    return torch.where(near, series * small * small, delta + torch.expm1(-delta))


def kl(difference: Tensor, delta: Tensor, precision: Tensor) -> Bin:
    """KL(q || p) = 1/2 (h(delta) + precision difference^2 exp(-delta)), in nats.

    Args:
        difference: of the means.
        delta: log-variance of p less that of q.
        precision: 1 / variance of q.

    Returns:
        the value, and its derivatives by `difference` and by `delta`.
    """
    slope = precision * difference * torch.exp(-delta)
    squares = slope * difference
    return (kl_excess(delta) + squares) / 2, slope, (-torch.expm1(-delta) - squares) / 2


# ---- t = 0: a bin of a normal ----


def nll(difference: Tensor, delta: Tensor, precision: Tensor, x_0: Tensor, tanh_cdf: bool) -> Bin:
    """-log P of x_0's bin of width 2/255 under N(x_0 - difference, exp(delta) / precision), in nats. As `kl`.

    Pixels at -1 and +1 own the bin to the end of the line (Ho et al. 2020, eq. 13). A deviation wider than any is bounded, and
    what it is wider by is added: an inner bin's P falls as 1 over it (or lies below the tanh form's floor).
    """
    log_deviation = delta / 2
    least, least_of_tanh, most = _LOG_DEVIATIONS[delta.dtype]
    bounded = log_deviation.clamp(least_of_tanh if tanh_cdf else least, most)
    inverse = precision.sqrt() * torch.exp(-bounded)
    y, w = difference * inverse, _HALF_WIDTH * inverse
    inner, open_side = (tanh_bin, tanh_tail) if tanh_cdf else (log_bin, log_tail)
    below, above = x_0 < -_EDGE, x_0 > _EDGE
    value, by_y, by_w = inner(y, w)
    value = value if tanh_cdf else value - (log_deviation - most).clamp(min=0)
    tail, slope = open_side(torch.where(above, w - y, w + y))  # the bin's one edge, seen from its open side
    value = torch.where(below | above, tail, value)
    by_y = torch.where(below, slope, torch.where(above, -slope, by_y))
    by_w = torch.where(below | above, slope, by_w)
    return -value, -by_y * inverse, (y * by_y + w * by_w) / 2


def mills(x: Tensor) -> Tensor:
    """Mills' ratio R(x) = Q(x) / phi(x) for x >= 0, Q the normal's upper tail: from 1.2533 down, as 1/x in the end."""
    return math.sqrt(math.pi / 2) * torch.special.erfcx(x * math.sqrt(0.5))


def _upper(x: Tensor) -> Tensor:
    """Q(x)."""
    return torch.erfc(x * math.sqrt(0.5)) / 2


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2 - _LOG_ROOT_2_PI)


def log_tail(s: Tensor) -> tuple[Tensor, Tensor]:
    """log Phi(s), and its derivative phi / Phi."""
    negative = s < 0
    x = torch.where(negative, -s, 0.0)
    ratio = mills(x)
    z = torch.where(negative, 0.0, s)
    rest = _upper(z)
    value = torch.where(negative, -x * x / 2 - _LOG_ROOT_2_PI + ratio.log(), torch.log1p(-rest))
    return value, torch.where(negative, 1 / ratio, _density(z) / (1 - rest))


def log_bin(y: Tensor, w: Tensor) -> Bin:
    """log (Phi(y + w) - Phi(y - w)) for w > 0: exact, with a gradient however far out.

    By symmetry the bin is [a, b] = [|y| - w, |y| + w]. With v = |y| w, E = exp(-2 v) = phi(b) / phi(a) and M = P / phi(a)
    (Mills' ratio of a bin), dL/dy = sign(y) expm1(-2 v) / M and dL/dw = (1 + E) / M. P is found

        narrow (w < 1/2, v <= 1): as 2 w phi(y) times the mean of exp(-w^2 s^2 / 2) cosh(v s) over s in [0, 1];
        in the tail (a >= 0):     from M = R(a) - E R(b), of which E R(b) takes off at most half;
        round the middle:         as 1 - Q(-a) - Q(b), at least 0.19.
    """
    a, b, v = y.abs() - w, y.abs() + w, y.abs() * w
    narrow = (w < 0.5) & (v <= 1)
    tail = ~narrow & (a >= 0)
    falls = torch.expm1(-2 * v)  # E - 1

    width, turn, at = torch.where(narrow, w, 0.25), torch.where(narrow, v, 0.5), torch.where(narrow, y, 0.0)
    mean = torch.zeros_like(width)
    for s, weight in _NODES:
        mean = mean + weight * torch.exp(-((width * s) ** 2) / 2) * torch.cosh(turn * s)
    value_narrow = (2 * width).log() - at * at / 2 - _LOG_ROOT_2_PI + mean.log()
    inverse_narrow = torch.exp(turn - width * width / 2) / (2 * width * mean)

    near, far, drop = torch.where(tail, a, 0.0), torch.where(tail, b, 1.0), torch.where(tail, falls, -1.0) + 1
    ratio = mills(near) - drop * mills(far)
    value_tail = -near * near / 2 - _LOG_ROOT_2_PI + ratio.log()

    other = narrow | tail
    left, right = torch.where(other, 1.0, -a), torch.where(other, 1.0, b)
    outside = _upper(left) + _upper(right)

    value = torch.where(narrow, value_narrow, torch.where(tail, value_tail, torch.log1p(-outside)))
    inverse = torch.where(narrow, inverse_narrow, torch.where(tail, 1 / ratio, _density(left) / (1 - outside)))
    return value, y.sign() * falls * inverse, (2 + falls) * inverse


# ---- t = 0 with the peers' tanh form of Phi ----

_K, _CUBIC = math.sqrt(2 / math.pi), 0.044715
_LOG_FLOOR = math.log(1e-12)


def _warped(x: Tensor) -> tuple[Tensor, Tensor]:
    """A of Phi(x) = (1 + tanh A) / 2 (within 1.8e-4), and dA/dx."""
    cubic = _CUBIC * x * x
    return _K * x * (1 + cubic), _K * (1 + 3 * cubic)


def tanh_tail(s: Tensor) -> tuple[Tensor, Tensor]:
    """log max(Phi(s), 1e-12) in the tanh form, and its derivative: 0 under the floor."""
    a, rises = _warped(s)
    value = torch.nn.functional.logsigmoid(2 * a)
    slope = 2 * torch.sigmoid(-2 * a) * rises
    return value.clamp(min=_LOG_FLOOR), torch.where(value < _LOG_FLOOR, 0.0, slope)


def tanh_bin(y: Tensor, w: Tensor) -> Bin:
    """log max(Phi(y + w) - Phi(y - w), 1e-12) in the tanh form, and its derivatives: 0 under the floor (OpenAI's
    discretized_gaussian_log_likelihood).

    With A and B of the two edges and u = A - B, (tanh A - tanh B) / 2 = sinh u / (2 cosh A cosh B), whose logarithm is taken
    exponent by exponent. The derivatives by A and B are cosh B / (cosh A sinh u) and -cosh A / (cosh B sinh u); in dL/dy their
    difference is written out, or a narrow bin would lose it.
    """
    plus, minus = y + w, y - w
    (a, rises_a), (b, rises_b) = _warped(plus), _warped(minus)
    u = 2 * _K * w * (1 + _CUBIC * (plus * plus + plus * minus + minus * minus))
    e_a, e_b, gap = torch.exp(-2 * a.abs()), torch.exp(-2 * b.abs()), -torch.expm1(-2 * u)
    farther = torch.maximum(b, -a).clamp(min=0)
    value = -2 * farther + gap.log() - torch.log1p(e_a) - torch.log1p(e_b)
    by_a = 2 * torch.exp(-2 * torch.minimum(a, u).clamp(min=0)) * (1 + e_b) / ((1 + e_a) * gap)
    minus_by_b = 2 * torch.exp(-2 * torch.minimum(-b, u).clamp(min=0)) * (1 + e_a) / ((1 + e_b) * gap)
    by_y = 12 * _CUBIC * _K * w * y * by_a - rises_b * (torch.tanh(a) + torch.tanh(b))
    by_w = rises_a * by_a + rises_b * minus_by_b
    floored = value < _LOG_FLOOR
    return value.clamp(min=_LOG_FLOOR), torch.where(floored, 0.0, by_y), torch.where(floored, 0.0, by_w)
