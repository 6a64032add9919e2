// e^x with what the variational bound needs beside it, and ln x, in operations that a compiler turns into vectors.
//
//   x = n ln 2 + r, |r| <= ln(2) / 2;  q = r^2 P(r);  e^x = 2^n (1 + r + q)
//
// P is (e^r - 1 - r) / r^2, fitted minimax in relative error (degree 5, for double 10; coefficients as bits). Where n is 0
// nothing cancels near 0: expm1(x) is r + q and expm1(x) - x is q itself. Above the type's exponents e^x is infinite, below 0.
#pragma once
#include "simd.h"

namespace FASTDDPM_ISA {

template <class T> struct Exponential {
  T value, minus_one, excess;  // e^x, e^x - 1, e^x - 1 - x
};

inline Exponential<float> exponential(float x) {
  constexpr float kLow = -87.3f, kHigh = 88.3f;  // n = -126 .. 127
  const float above = x > kHigh ? HUGE_VALF : 0, within = x < kLow ? 0.0f : 1.0f;
  constexpr float kRound = 12582912.0f;          // 1.5 x 2^23: adding it rounds to an integer, left in the low bits
  const float low = x < kLow ? kLow : x, inside = low > kHigh ? kHigh : low;  // a NaN passes both
  const float shifted = __builtin_fmaf(inside, float_of(0x3FB8AA3Bu), kRound), n = shifted - kRound;
  const float scale = float_of((bits_of(shifted) << 23) + 0x3F800000u);
  const float r = __builtin_fmaf(n, -float_of(0xB102E308u), __builtin_fmaf(n, -float_of(0x3F317218u), inside));
  float p = __builtin_fmaf(float_of(0x39503962u), r, float_of(0x3AB6A16Du));
  p = __builtin_fmaf(p, r, float_of(0x3C0888A6u));
  p = __builtin_fmaf(p, r, float_of(0x3D2AAA75u));
  p = __builtin_fmaf(p, r, float_of(0x3E2AAAABu));
  p = __builtin_fmaf(p, r, 0.5f);
  const float q = r * r * p, m = r + q, value = __builtin_fmaf(scale, m, scale) * within + above;
  return {value, n == 0 ? m : value - 1, n == 0 ? q : value - 1 - x};
}

inline double double_of(uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}
inline uint64_t bits_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  return bits;
}

// c[0] + c[1] x + .., without a loop, which a compiler might leave inside the one that is to become vectors
template <int I = 0, int N> FASTDDPM_INLINE double polynomial(const double (&c)[N], double x) {
  if constexpr (I == N - 1) return c[I];
  else return polynomial<I + 1>(c, x) * x + c[I];
}

constexpr double kLn2 = 0x1.62e42feep-1, kLn2Rest = 0x1.a39ef35793c76p-33;  // n times the first is exact

FASTDDPM_INLINE Exponential<double> exponential(double x) {
  constexpr double kP[] = {0x1p-1,
                           0x1.5555555555557p-3,
                           0x1.555555555554ep-5,
                           0x1.11111111100ebp-7,
                           0x1.6c16c16c1a07fp-10,
                           0x1.a01a01abe0ceap-13,
                           0x1.a01a01905f9bfp-16,
                           0x1.71de024586817p-19,
                           0x1.27e510dd39d8bp-22,
                           0x1.af4dc499a3509p-26,
                           0x1.1f19f5a3d9131p-29};
  constexpr double kLow = -708.3, kHigh = 709.4;  // n = -1022 .. 1023
  constexpr double kRound = 0x1.8p52, kLog2E = 0x1.71547652b82fep+0;
  const double above = x > kHigh ? HUGE_VAL : 0, within = x < kLow ? 0.0 : 1.0;
  const double low = x < kLow ? kLow : x, inside = low > kHigh ? kHigh : low;
  const double shifted = inside * kLog2E + kRound, n = shifted - kRound;
  const double scale = double_of((bits_of(shifted) << 52) + 0x3FF0000000000000u);
  const double r = (inside - n * kLn2) - n * kLn2Rest;
  const double q = r * r * polynomial(kP, r), m = r + q, value = (scale * m + scale) * within + above;
  return {value, n == 0 ? m : value - 1, n == 0 ? q : value - 1 - x};
}

// ln x for a normal x > 0. x = 2^n m, m in [sqrt(1/2), sqrt(2));  s = (m - 1) / (m + 1), ln m = 2 s + s^3 Q(s^2), Q fitted as P.
FASTDDPM_INLINE double logarithm(double x) {
  constexpr double kQ[] = {0x1.5555555555558p-1, 0x1.999999999529cp-2, 0x1.2492492df8409p-2, 0x1.c71c62dd6d0d4p-3,
                           0x1.7462b6c810323p-3, 0x1.39fe1f34ad0c9p-3, 0x1.2b5b3c8226485p-3};
  constexpr uint64_t kRootHalf = 0x3FE6A09E667F3BCDu, kMantissa = 0xFFFFFFFFFFFFFu;
  const uint64_t above = bits_of(x) - kRootHalf + 0x3FF0000000000000u;  // its exponent is n's, its mantissa how far m is up
  const double n = double_of((above >> 52) + 0x4330000000000000u) - (0x1p52 + 1023);
  const double m = double_of((above & kMantissa) + kRootHalf);
  const double s = (m - 1) / (m + 1), z = s * s;
  const double value = n * kLn2 + (2 * s + (s * z * polynomial(kQ, z) + n * kLn2Rest));
  return x == x ? value : x;
}

}  // namespace FASTDDPM_ISA
