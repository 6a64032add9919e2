// The negative log-likelihood of a pixel's bin under a normal, its derivatives, in double (fastddpm/reference/gaussian.py derives it).
//
// With y = (x_0 - mean) / deviation and w = (1/255) / deviation the bin is [y - w, y + w]; at -1 and +1 it is open to one side.
// exact: by Mills' ratio R = Q / phi, so that no tail is ever lost:
//
//   a = |y| - w, b = |y| + w, v = |y| w, E = e^(-2 v), M = P / phi(a)
//   narrow (w, v < 1/100)     P = 2 w phi(y) (1 + (v^2 - w^2) / 6 + (v^4 - 6 v^2 w^2 + 3 w^4) / 120): else it would cancel
//   tail (a >= 0)             M = R(a) - E R(b)
//   middle                    P = 1 - Q(-a) - Q(b)
//   d log P / dy = sign(y) (E - 1) / M;  d log P / dw = (1 + E) / M
//
// tanh: Phi(x) = (1 + tanh A) / 2, A = k (x + 0.044715 x^3), probabilities clamped at 1e-12 (OpenAI's), with
// (tanh A - tanh B) / 2 = sinh(A - B) / (2 cosh A cosh B).
//
// It is reached at index 0 alone, one step of T, so it is plain code on one element at a time.
#pragma once
#include <cmath>

#include "simd.h"

namespace FASTDDPM_ISA {

constexpr double kHalfWidth = 1.0 / 255, kEdge = 0.999, kNarrow = 0.01;
constexpr double kLogRoot2Pi = 0.91893853320467274178, kRootHalf = 0.70710678118654752440;

// A value and its derivatives: log P by y and w; the loss by the difference of means and by delta.
struct Slopes {
  double value, first, second;
};

// R(x) for x >= 0: (x + 5) R is a polynomial in (x - 5) / (x + 5), fitted minimax in relative error (1e-15).
inline double mills(double x) {
  constexpr double kC[] = {
      0x1.ed96b8318f6c2p+0,  -0x1.aaf94e206d734p+0,  0x1.3dd60739e7bbfp+0,   -0x1.9262efbe0f494p-1,  0x1.a7927af8d6b3ap-2,
      -0x1.62d360c77ebe2p-3, 0x1.ab031a12ead22p-5,   -0x1.ebbc30b0d8de4p-8,  -0x1.06239e5778808p-9,  0x1.660d1bd6dc9b7p-10,
      -0x1.381da9fa90197p-13, -0x1.0592d23ab6cebp-13, 0x1.5ea5019a27735p-15, 0x1.4e2176718e937p-17,  -0x1.d01bb2d390b41p-18,
      -0x1.b40f5f2650558p-21, 0x1.1b51ef7bea816p-20,  0x1.440a27be8495dp-24, -0x1.3722c45e0cf6dp-23, -0x1.a0e99a839e83ap-28,
      0x1.b5ec806571386p-27};
  const double r = 1 / (x + 5), u = 1 - 10 * r;
  double p = 0;
  for (int i = 20; i >= 0; --i) p = p * u + kC[i];
  return p * r;
}

inline double density(double x) { return std::exp(-x * x / 2 - kLogRoot2Pi); }
inline double upper(double x) { return std::erfc(x * kRootHalf) / 2; }

// log Phi(s), and phi / Phi
inline Slopes log_tail(double s) {
  if (s < 0) {
    const double ratio = mills(-s);
    return {-s * s / 2 - kLogRoot2Pi + std::log(ratio), 1 / ratio, 0};
  }
  const double rest = upper(s);
  return {std::log1p(-rest), density(s) / (1 - rest), 0};
}

inline Slopes log_bin(double y, double w) {
  const double a = std::fabs(y) - w, b = std::fabs(y) + w, v = std::fabs(y) * w, falls = std::expm1(-2 * v);
  double value, inverse;  // inverse: 1 / M
  if (w < kNarrow && v < kNarrow) {
    const double vv = v * v, ww = w * w, mean = 1 + (vv - ww) / 6 + (vv * (vv - 6 * ww) + 3 * ww * ww) / 120;
    value = std::log(2 * w) - y * y / 2 - kLogRoot2Pi + std::log(mean);
    inverse = std::exp(v - w * w / 2) / (2 * w * mean);
  } else if (a >= 0) {
    const double ratio = mills(a) - (1 + falls) * mills(b);
    value = -a * a / 2 - kLogRoot2Pi + std::log(ratio);
    inverse = 1 / ratio;
  } else {
    const double outside = upper(-a) + upper(b);
    value = std::log1p(-outside);
    inverse = density(a) / (1 - outside);
  }
  return {value, (y > 0 ? falls : -falls) * inverse, (2 + falls) * inverse};
}

// ---- the peers' tanh form ----

constexpr double kRoot2OverPi = 0.79788456080286535588, kCubic = 0.044715;
constexpr double kLogFloor = -27.631021115928547;  // log 1e-12

inline double warped(double x) { return kRoot2OverPi * x * (1 + kCubic * x * x); }
inline double warped_rise(double x) { return kRoot2OverPi * (1 + 3 * kCubic * x * x); }

// Below the floor the value stays there, with no gradient.
inline Slopes floored(const Slopes& s) { return s.value < kLogFloor ? Slopes{kLogFloor, 0, 0} : s; }

inline Slopes tanh_tail(double s) {
  const double a = warped(s), e = std::exp(-2 * std::fabs(a));
  const double value = (a < 0 ? 2 * a : 0) - std::log1p(e);
  return floored({value, 2 * (a < 0 ? 1 / (1 + e) : e / (1 + e)) * warped_rise(s), 0});
}

inline Slopes tanh_bin(double y, double w) {
  const double plus = y + w, minus = y - w, a = warped(plus), b = warped(minus);
  const double u = 2 * kRoot2OverPi * w * (1 + kCubic * (plus * plus + plus * minus + minus * minus));
  const double e_a = std::exp(-2 * std::fabs(a)), e_b = std::exp(-2 * std::fabs(b)), gap = -std::expm1(-2 * u);
  const double farther = std::fmax(std::fmax(b, -a), 0);
  const double value = -2 * farther + std::log(gap) - std::log1p(e_a) - std::log1p(e_b);
  // cosh B / (cosh A sinh u) and cosh A / (cosh B sinh u); in d/dy their difference is written out
  const double by_a = 2 * std::exp(-2 * std::fmax(std::fmin(a, u), 0)) * (1 + e_b) / ((1 + e_a) * gap);
  const double by_b = 2 * std::exp(-2 * std::fmax(std::fmin(-b, u), 0)) * (1 + e_a) / ((1 + e_b) * gap);
  const double by_y = 12 * kCubic * kRoot2OverPi * w * y * by_a - warped_rise(minus) * (std::tanh(a) + std::tanh(b));
  return floored({value, by_y, warped_rise(plus) * by_a + warped_rise(minus) * by_b});
}

// -log P in nats, by difference = x_0 - mean and by delta, where the variance is e^delta / precision.
inline Slopes nll(double difference, double delta, double precision, double x_0, bool tanh_cdf) {
  const double inverse = std::sqrt(precision) * std::exp(-delta / 2), y = difference * inverse, w = kHalfWidth * inverse;
  Slopes log_p;
  if (std::fabs(x_0) > kEdge) {  // the bin's one edge, seen from its open side
    const double side = x_0 > 0 ? -1 : 1, s = w + side * y;
    log_p = tanh_cdf ? tanh_tail(s) : log_tail(s);
    log_p.second = log_p.first;
    log_p.first *= side;
  } else {
    log_p = tanh_cdf ? tanh_bin(y, w) : log_bin(y, w);
  }
  return {-log_p.value, -log_p.first * inverse, (y * log_p.first + w * log_p.second) / 2};
}

}  // namespace FASTDDPM_ISA
