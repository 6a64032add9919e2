// The negative log-likelihood of a pixel's bin under a normal, its derivatives, in double (fastddpm/reference/gaussian.py derives it).
//
// With y = (x_0 - mean) / deviation and w = (1/255) / deviation the bin is [y - w, y + w]; at -1 and +1 it is open to one side.
// Turned so that the mean lies `off` below the bin's centre (an open bin's edge is then its lower one, and off may be negative).
// exact: by Mills' ratio R = Q / phi, so that no tail is ever lost:
//
//   a = off - w, b = off + w, v = off w (of an open bin far out), E = e^(-2 v), M = P / phi(a)
//   narrow (w, v < 1/100)     P = 2 w phi(off) (1 + (v^2 - w^2) / 6 + (v^4 - 6 v^2 w^2 + 3 w^4) / 120): else it would cancel
//   tail (a >= 0)             M = R(a) - E R(b)
//   middle                    P = 1 - phi(a) (R(-a) + E R(b))
//   d log P / d off = (E - 1) / M;  d log P / dw = (1 + E) / M
//
// tanh: Phi(x) = (1 + tanh A) / 2, A = k (x + 0.044715 x^3), probabilities clamped at 1e-12 (OpenAI's), with
// (tanh A - tanh B) / 2 = sinh(A - B) / (2 cosh A cosh B).
//
// Every element goes through every case, and the one that holds is selected: so a compiler makes vectors of it.
#pragma once
#include <cmath>

#include "exponential.h"

namespace FASTDDPM_ISA {

constexpr double kHalfWidth = 1.0 / 255, kEdge = 0.999, kNarrow = 0.01, kFar = 1e30;
constexpr double kLogRoot2Pi = 0.91893853320467274178, kDensityAt0 = 0.39894228040143267794;

// log P and its derivatives by off and by w.
struct Slopes {
  double value, by_off, by_w;
};

// R(x) for x >= 0: (x + 5) R is a polynomial in (x - 5) / (x + 5), fitted minimax in relative error (1e-15).
FASTDDPM_INLINE double mills(double x) {
  constexpr double kC[] = {
      0x1.ed96b8318f6c2p+0,  -0x1.aaf94e206d734p+0,  0x1.3dd60739e7bbfp+0,   -0x1.9262efbe0f494p-1,  0x1.a7927af8d6b3ap-2,
      -0x1.62d360c77ebe2p-3, 0x1.ab031a12ead22p-5,   -0x1.ebbc30b0d8de4p-8,  -0x1.06239e5778808p-9,  0x1.660d1bd6dc9b7p-10,
      -0x1.381da9fa90197p-13, -0x1.0592d23ab6cebp-13, 0x1.5ea5019a27735p-15, 0x1.4e2176718e937p-17,  -0x1.d01bb2d390b41p-18,
      -0x1.b40f5f2650558p-21, 0x1.1b51ef7bea816p-20,  0x1.440a27be8495dp-24, -0x1.3722c45e0cf6dp-23, -0x1.a0e99a839e83ap-28,
      0x1.b5ec806571386p-27};
  const double r = 1 / (x + 5);
  return polynomial(kC, 1 - 10 * r) * r;
}

FASTDDPM_INLINE Slopes log_bin(double off, double w, double v) {
  const double a = off - w, b = off + w;
  const Exponential<double> e = exponential(-2 * v);
  const bool narrow = (w > v ? w : v) < kNarrow, middle = a < 0;

  const double vv = v * v, ww = w * w, mean = 1 + (vv - ww) / 6 + (vv * (vv - 6 * ww) + 3 * ww * ww) / 120;
  const double ratios = mills(std::fabs(a)) + (middle ? e.value : -e.value) * mills(std::fabs(b));
  const double density = exponential(narrow ? v - ww / 2 : -a * a / 2).value * (narrow ? 1 : kDensityAt0);
  const double outside = density * ratios, inside = 1 - outside;

  const double m = narrow ? 2 * w * mean : middle ? inside : ratios;
  const double log_density = (narrow ? -off * off / 2 : -a * a / 2) - kLogRoot2Pi;
  const double start = narrow ? log_density : middle ? (1 - inside) - outside : log_density;
  const double inverse = (narrow ? density : middle ? density : 1) / m;  // 1 / M
  return {start + logarithm(m), e.minus_one * inverse, (1 + e.value) * inverse};
}

// ---- the peers' tanh form ----

constexpr double kRoot2OverPi = 0.79788456080286535588, kCubic = 0.044715;
constexpr double kLogFloor = -27.631021115928547;  // log 1e-12

inline double warped(double x) { return kRoot2OverPi * x * (1 + kCubic * x * x); }
inline double warped_rise(double x) { return kRoot2OverPi * (1 + 3 * kCubic * x * x); }

// The same in the tanh form. Below the floor the value stays there, with no derivative.
FASTDDPM_INLINE Slopes tanh_bin(double off, double w, double v) {
  const bool open = v >= kFar;
  const double near = off - w, far = off + w, a = warped(near), b = warped(far);
  const double u = 2 * kRoot2OverPi * w * (1 + kCubic * (far * far + far * near + near * near));  // b - a
  const Exponential<double> e_a = exponential(-2 * std::fabs(a)), e_b = exponential(-2 * b), e_u = exponential(-2 * u);
  const double more_a = 1 + e_a.value, more_b = open ? 1 : 1 + e_b.value, gap = open ? 1 : -e_u.minus_one;
  const double value = logarithm(gap / (more_a * more_b)) - (a > 0 ? 2 * a : 0);
  // cosh B / (cosh A sinh u) and cosh A / (cosh B sinh u); in d / d off their difference is written out
  const double by_a = 2 * (a < 0 ? e_a.value : 1) * more_b / (more_a * gap) * warped_rise(near);
  const double by_b = open ? 0 : 2 * (a < 0 ? e_b.value : e_u.value) * more_a / (more_b * gap);
  const double tanh_a = std::copysign(e_a.minus_one / more_a, a), tanh_b = -e_b.minus_one / more_b;
  const double by_off = 12 * kCubic * kRoot2OverPi * w * off * by_b - warped_rise(near) * (tanh_a + tanh_b);
  const bool floored = value < kLogFloor;
  return {floored ? kLogFloor : value, floored ? 0 : open ? -by_a : by_off, floored ? 0 : warped_rise(far) * by_b + by_a};
}

// The log of a deviation where its reciprocal neither overflows nor vanishes. Wider by e^beyond, an inner bin has e^-beyond as much; in
// the tanh form it lies below the floor long since, and the edges of a narrow one are as hard as doubles tell.
template <bool kTanh> struct LogDeviation {
  static constexpr double kLeast = kTanh ? -100 : -600, kMost = 600;
  double bounded, beyond;

  explicit LogDeviation(double log) {
    const double above = log < kLeast ? kLeast : log;  // a NaN passes both
    bounded = above > kMost ? kMost : above;
    beyond = !kTanh && log > kMost ? log - kMost : 0;
  }
};

// Bins as log_bin takes them, for x_0 - mean and a deviation of 1 / inverse; and which way off turns with the difference.
struct Bin {
  double off, w, v, side;

  Bin(double difference, double inverse, double x_0) {
    const bool open = std::fabs(x_0) > kEdge;
    side = std::copysign(1.0, open ? x_0 : difference);
    off = side * difference * inverse, w = kHalfWidth * inverse, v = open ? kFar : off * w;
  }
};

}  // namespace FASTDDPM_ISA
