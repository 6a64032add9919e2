# ruff: noqa: N803 (constexpr arguments are written in capitals)
"""The densities of the variational bound, element by element, with their derivatives (specification:
fastddpm/reference/gaussian.py; twin: kernels/cpu/gaussian.h).

Everything is made of add, mul, fma, a few divisions and a square root: the exponential, the logarithm and Mills' ratio are
polynomials, so the error is the same on every GPU and in the interpreter. They are minimax fits in relative error (Remez
exchange with 40 digits, the coefficients then rounded to float32): P to 3e-9, R to 5e-8; G, of two variables, by linear
programming to 3e-8.
"""

import math

import triton
import triton.language as tl

from .philox import flip, minus_2_ln

_HALF_WIDTH = tl.constexpr(1 / 255)
_EDGE = tl.constexpr(0.999)
_LOG_ROOT_2_PI = tl.constexpr(math.log(math.sqrt(2 * math.pi)))
_PHI_0 = tl.constexpr(1 / math.sqrt(2 * math.pi))

# ---- the exponential ----

_LOG2_E, _LN_2, _LN_2_REST = map(tl.constexpr, (1.4426950216293335, 0.6931471824645996, -1.9046542121259336e-09))
_P0, _P1, _P2, _P3, _P4, _P5 = map(
    tl.constexpr,
    (0.5, 0.1666666716337204, 0.04166646674275398, 0.008333360776305199, 0.001393360667861998, 0.0001985780254472047),
)
_ROUNDER = tl.constexpr(1.5 * 2**23)  # a number of the order of 1, added to it, is rounded to an integer in the lower bits
_LEAST, _MOST = tl.constexpr(-80.0), tl.constexpr(88.3)


@triton.jit
def exponential(x):
    """e^x, e^x - 1 and e^x - 1 - x >= 0, none of which cancels near 0. Beyond -80 and 88.3 e^x stays what it is there:
    2e-35, so that 1 / a deviation never vanishes, and 2.2e38.

    x = n ln 2 + r;  e^r - 1 = p = r + q, q = r^2 P(r)
    """
    bounded = tl.maximum(x, _LEAST, propagate_nan=tl.PropagateNan.ALL)
    bounded = tl.minimum(bounded, _MOST, propagate_nan=tl.PropagateNan.ALL)
    rounded = tl.fma(bounded, _LOG2_E, _ROUNDER)
    n = rounded - _ROUNDER
    scale = ((rounded.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    r = tl.fma(n, -_LN_2_REST, tl.fma(n, -_LN_2, bounded))
    q = tl.fma(tl.fma(tl.fma(tl.fma(tl.fma(r, _P5, _P4), r, _P3), r, _P2), r, _P1), r, _P0) * (r * r)
    p = r + q
    less = scale - 1.0
    return tl.fma(scale, p, scale), tl.fma(scale, p, less), tl.where(n == 0, q, tl.fma(scale, p, less - x))


# ---- t > 0: two normals ----


@triton.jit
def kl(difference, delta, precision):
    """KL(q || p) = 1/2 (h(delta) + precision difference^2 e^-delta), h(delta) = delta + expm1(-delta), and its derivatives."""
    e, expm1, h = exponential(-delta)
    pull = precision * e * difference
    square = pull * difference
    return 0.5 * (h + square), pull, -0.5 * (expm1 + square)


# ---- t = 0: -log of what a normal gives to a level of width 2/255 ----

_R0, _R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _R9 = map(
    tl.constexpr,
    (1.893218994140625, -1.5237702131271362, 0.9704108238220215, -0.46755459904670715, 0.15138335525989532,
     -0.018822703510522842, -0.008703922852873802, 0.00390674127265811, 0.000318879378028214, -0.0003873909590765834),
)  # fmt: skip
_G01, _G02, _G03 = map(tl.constexpr, (-0.16666515171527863, 0.024972878396511078, -0.0028195660561323166))
_G10, _G11, _G12, _G13 = map(
    tl.constexpr, (0.1666666567325592, -0.050001077353954315, 0.008945639245212078, -0.0011906048748642206)
)
_G20, _G21, _G22 = map(tl.constexpr, (0.008333442732691765, -0.0029778743628412485, 0.0005719877663068473))
_G30, _G31, _G40 = map(tl.constexpr, (0.00019833954866044223, -7.52604246372357e-05, 2.7462483558338135e-06))
_K, _CUBIC = tl.constexpr(math.sqrt(2 / math.pi)), tl.constexpr(0.044715)
_LOG_FLOOR = tl.constexpr(math.log(1e-12))
_FAR = tl.constexpr(1e30)


@triton.jit
def nll(difference, delta, precision, x_0, TANH: tl.constexpr):
    """-log P of x_0's level under N(x_0 - difference, e^delta / precision), and its derivatives by difference and delta.

    A level is symmetric, so the mean's side is turned to where the mean lies `off` >= 0 below the level's centre. The levels at
    -1 and +1 are open to their side: turned so that their one edge is the lower, and `off` may be negative.
    -log P of a deviation wider than e^80 stays what it is there, with its slope.
    """
    e, _, _ = exponential(-0.5 * delta)
    inverse = tl.sqrt_rn(precision) * e
    is_open = tl.abs(x_0) > _EDGE
    side = tl.where(is_open, x_0, difference).to(tl.uint32, bitcast=True)
    off = flip(difference, side)
    if TANH:
        log_p, by_y, by_scale = _tanh_level(off, inverse, is_open)
    else:
        log_p, by_y, by_scale = _level(off, inverse, is_open)
    return -log_p, flip(-by_y * inverse, side), 0.5 * by_scale


@triton.jit
def _level(off, inverse, is_open):
    """log(Q(a) - Q(b)), a and b the edges' distances from the mean in deviations, Q the normal's upper tail; its derivative by
    y, the centre's distance, and that by log inverse (by y times y, and by w, the half-width, times w).

    With v = y w, E = e^-2v = phi(b) / phi(a) and M = P / phi(a), the derivative by y is expm1(-2v) / M, that by w (1 + E) / M.
        narrow (w < 1/2, v < 1):  P = 2 w phi(y) G,  G = integral_0^1 e^(-w^2 s^2 / 2) cosh(v s) ds
        tail (a >= 0):            M = R(a) - E R(b)
        middle (a < 0):           P = 1 - Q(-a) - Q(b) = 1 - phi(a) (R(-a) + E R(b))
    Where b is open, v is far out and E = 0.
    """
    y, w = off * inverse, inverse * _HALF_WIDTH
    a, b = (off - _HALF_WIDTH) * inverse, (off + _HALF_WIDTH) * inverse
    v = tl.where(is_open, _FAR, y * w)
    root, expm1, _ = exponential(-v)
    falls, rises = root * root, expm1 * (expm1 + 2.0)  # E, E - 1
    narrow = tl.maximum(2.0 * w, v) < 1.0
    middle = (a < 0) & ~narrow

    integral = 2.0 * w * _integral(w * w, v * v)
    density, _, _ = exponential(tl.where(narrow, 0.5 * w * w, -0.5 * a * a))
    ratios = tl.fma(tl.where(middle, falls, -falls), _mills(tl.abs(b)), _mills(tl.abs(a)))
    outside = density * _PHI_0 * ratios
    inside = 1.0 - outside

    centre = tl.where(narrow, y, a)
    start = tl.where(middle, (1.0 - inside) - outside, tl.fma(-0.5 * centre, centre, -_LOG_ROOT_2_PI))
    log_p = tl.fma(-0.5, minus_2_ln(tl.where(narrow, integral, tl.where(middle, inside, ratios))), start)

    m = tl.where(narrow, integral * density * root, tl.where(middle, inside, ratios))
    inverse_m = tl.where(middle, density * _PHI_0, 1.0) / m
    scaled = tl.where(narrow, tl.fma(y, rises, tl.fma(w, falls, w)), tl.fma(falls, b, -a))
    return log_p, rises * inverse_m, scaled * inverse_m


@triton.jit
def _mills(x):
    """R(x) = Q(x) / phi(x) for x >= 0: (x + 4) R(x) is a polynomial in (x - 4) / (x + 4)."""
    r = 1.0 / (x + 4.0)
    u = tl.fma(r, -8.0, 1.0)
    p = tl.fma(tl.fma(tl.fma(tl.fma(u, _R9, _R8), u, _R7), u, _R6), u, _R5)
    return r * tl.fma(tl.fma(tl.fma(tl.fma(tl.fma(p, u, _R4), u, _R3), u, _R2), u, _R1), u, _R0)


@triton.jit
def _integral(x, y):
    """G for x = w^2 <= 1/4 and y = v^2 <= 1."""
    g0 = tl.fma(tl.fma(tl.fma(x, _G03, _G02), x, _G01), x, 1.0)
    g1 = tl.fma(tl.fma(tl.fma(x, _G13, _G12), x, _G11), x, _G10)
    g2, g3 = tl.fma(tl.fma(x, _G22, _G21), x, _G20), tl.fma(x, _G31, _G30)
    return tl.fma(tl.fma(tl.fma(tl.fma(y, _G40, g3), y, g2), y, g1), y, g0)


@triton.jit
def _tanh_level(off, inverse, is_open):
    """As `_level`, with (1 + tanh A) / 2, A = k (x + 0.044715 x^3), for Phi, and no derivative where P < 1e-12.

    With u = A - B of the edges b and a, P = sinh u / (2 cosh A cosh B); the derivatives by A and B are cosh B / (cosh A sinh u)
    and -cosh A / (cosh B sinh u). In that by y their difference is written out, or a narrow level would lose it. Where b is
    open, A is far out.
    """
    y, w = off * inverse, inverse * _HALF_WIDTH
    minus, plus = (off - _HALF_WIDTH) * inverse, (off + _HALF_WIDTH) * inverse
    minus_2, plus_2 = minus * minus, plus * plus
    upper = tl.where(is_open, _FAR, plus * _K * tl.fma(plus_2, _CUBIC, 1.0))
    lower = minus * _K * tl.fma(minus_2, _CUBIC, 1.0)
    u = tl.where(is_open, _FAR, w * (2 * _K) * tl.fma(plus_2 + minus_2 + plus * minus, _CUBIC, 1.0))
    e_a, expm1_a, _ = exponential(-2.0 * upper)
    e_b, expm1_b, _ = exponential(-2.0 * tl.abs(lower))
    e_u, expm1_u, _ = exponential(-2.0 * u)

    inverse_ab = 1.0 / ((1.0 + e_a) * (1.0 + e_b))
    inverse_a, inverse_b = inverse_ab * (1.0 + e_b), inverse_ab * (1.0 + e_a)
    beyond = tl.maximum(lower, 0.0, propagate_nan=tl.PropagateNan.ALL)
    log_p = tl.fma(-0.5, minus_2_ln(-expm1_u * inverse_ab), -2.0 * beyond)

    inverse_u = -2.0 / expm1_u
    by_a = tl.where(lower > 0, e_u, e_a) * (1.0 + e_b) * inverse_a * inverse_u
    by_b = tl.where(lower > 0, 1.0, e_b) * (1.0 + e_a) * inverse_b * inverse_u  # negated
    tanh_a, tanh_b = -expm1_a * inverse_a, tl.where(lower > 0, -expm1_b, expm1_b) * inverse_b
    slope_a, slope_b = tl.fma(plus_2, 3 * _CUBIC * _K, _K), tl.fma(minus_2, 3 * _CUBIC * _K, _K)
    by_y = w * y * (12 * _CUBIC * _K) * by_a - slope_b * (tanh_a + tanh_b)
    by_w = slope_a * by_a + slope_b * by_b
    floored = log_p < _LOG_FLOOR
    by_scale = tl.where(floored, 0.0, tl.fma(y, by_y, w * by_w))
    return tl.where(floored, _LOG_FLOOR, log_p), tl.where(floored, 0.0, by_y), by_scale
