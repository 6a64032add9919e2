// e^x with what the variational bound needs beside it, in operations that a compiler turns into vectors.
//
//   x = n ln 2 + r, |r| <= ln(2) / 2;  q = r^2 P(r);  e^x = 2^n (1 + r + q)
//
// P is (e^r - 1 - r) / r^2, fitted minimax in relative error (degree 5, coefficients as bits). Where n is 0 nothing cancels
// near 0: expm1(x) is r + q and expm1(x) - x is q itself. Above float32's exponents e^x is infinite, below them 0.
#pragma once
#include "simd.h"

namespace FASTDDPM_ISA {

template <class T> struct Exponential {
  T value, minus_one, excess;  // e^x, e^x - 1, e^x - 1 - x
};

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline Exponential<float> exponential(float x) {
  constexpr float kLow = -87.3f, kHigh = 88.3f;  // n = -126 .. 127
  const float above = x > kHigh ? HUGE_VALF : 0, within = x < kLow ? 0.0f : 1.0f;
  constexpr float kRound = 12582912.0f;          // 1.5 x 2^23: adding it rounds to an integer, left in the low bits
  const float low = x < kLow ? kLow : x, inside = low > kHigh ? kHigh : low;  // a NaN passes both
  const float shifted = __builtin_fmaf(inside, float_of(0x3FB8AA3Bu), kRound), n = shifted - kRound;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  const float scale = float_of((bits << 23) + 0x3F800000u);
  const float r = __builtin_fmaf(n, -float_of(0xB102E308u), __builtin_fmaf(n, -float_of(0x3F317218u), inside));
  float p = __builtin_fmaf(float_of(0x39503962u), r, float_of(0x3AB6A16Du));
  p = __builtin_fmaf(p, r, float_of(0x3C0888A6u));
  p = __builtin_fmaf(p, r, float_of(0x3D2AAA75u));
  p = __builtin_fmaf(p, r, float_of(0x3E2AAAABu));
  p = __builtin_fmaf(p, r, 0.5f);
  const float q = r * r * p, m = r + q, value = __builtin_fmaf(scale, m, scale) * within + above;
  return {value, n == 0 ? m : value - 1, n == 0 ? q : value - 1 - x};
}

inline Exponential<double> exponential(double x) {
  const double minus_one = std::expm1(x);
  double excess = minus_one - x;
  if (std::fabs(x) < 0.5) {  // x^2/2 + x^3/6 + ..
    excess = 0;
    for (int n = 18; n >= 2; --n) excess = (excess + 1) * x / n;
    excess *= x;
  }
  return {std::exp(x), minus_one, excess};
}

}  // namespace FASTDDPM_ISA
