// The normals of torch.randn, float32 on x86-64: the same bits, and the generator's state after them.
//
//   w = tempered MT19937 (Matsumoto & Nishimura 1998);  u = (w mod 2^24) 2^-24, sixteen at a time
//   z[i] = sqrt(-2 ln(1 - u[i])) cos(2 pi u[i + 8]),  z[i + 8] = sqrt(-2 ln(1 - u[i])) sin(2 pi u[i + 8]),  i = 0 .. 7
//
// ln, cos and sin are Cephes' (Moshier 1989), as torch's AVX2 code rounds them: its compiler fuses each product into the sum
// that follows. Nothing promises these bits: whoever calls this has compared them with torch's.
//
// Moves: writes z (4 bytes an element); the words lie there before, and are read in the caches.
#pragma once
#include "chunk.h"

namespace FASTDDPM_ISA {

constexpr int kState = fastddpm::kMtState, kAhead = 397;

inline uint32_t twist(uint32_t far, uint32_t here, uint32_t next) {
  const uint32_t mixed = (here & 0x80000000u) | (next & 0x7FFFFFFFu);
  return far ^ (mixed >> 1) ^ (-(next & 1u) & 0x9908B0DFu);
}

// The next 624 words in the place of these; untempered, as all that is kept.
inline void next_state(uint32_t* x) {
  constexpr int kBehind = kState - kAhead;
  for (int64_t i = 0; i < kBehind; ++i) x[i] = twist(x[i + kAhead], x[i], x[i + 1]);
  for (int64_t i = kBehind; i < kState - 1; ++i) x[i] = twist(x[i - kBehind], x[i], x[i + 1]);
  x[kState - 1] = twist(x[kState - 1 - kBehind], x[kState - 1], x[0]);
}

inline float uniform(uint32_t x) {
  x ^= x >> 11;
  x ^= (x << 7) & 0x9D2C5680u;
  x ^= (x << 15) & 0xEFC60000u;
  x ^= x >> 18;
  return float(int32_t(x & 0xFFFFFFu)) * 0x1p-24f;
}

// 2^-24 <= x <= 1
inline float cephes_log(float x) {
  const int32_t exponent = int32_t(bits_of(x) >> 23) - 126;
  const float m = float_of((bits_of(x) & 0x007FFFFFu) | 0x3F000000u);  // x = m 2^exponent, m in [1/2, 1)
  const bool low = m < 0.707106781186547524f;
  const float e = float(exponent - int32_t(low)), f = (m - 1.0f) + (low ? m : 0.0f), f2 = f * f;
  float y = fused(7.0376836292e-2f, f, -1.1514610310e-1f);
  y = fused(y, f, 1.1676998740e-1f);
  y = fused(y, f, -1.2420140846e-1f);
  y = fused(y, f, 1.4249322787e-1f);
  y = fused(y, f, -1.6668057665e-1f);
  y = fused(y, f, 2.0000714765e-1f);
  y = fused(y, f, -2.4999993993e-1f);
  y = fused(y, f, 3.3333331174e-1f);
  y = fused(y * f, f2, e * -2.12194440e-4f);
  return fused(e, 0.693359375f, f + fused(f2, -0.5f, y));
}

// 0 <= x < 2 pi
inline void cephes_sin_cos(float x, float& sin, float& cos) {
  const int32_t octant = (int32_t(x * 1.27323954473516f) + 1) & ~1;
  const float k = float(octant);
  x = fused(k, -0.78515625f, x);
  x = fused(k, -2.4187564849853515625e-4f, x);
  x = fused(k, -3.77489497744594108e-8f, x);
  const float x2 = x * x;
  float c = fused(2.443315711809948e-5f, x2, -1.388731625493765e-3f);
  c = fused(c, x2, 4.166664568298827e-2f);
  c = fused(c * x2, x2, x2 * -0.5f) + 1.0f;
  float s = fused(-1.9515295891e-4f, x2, 8.3321608736e-3f);
  s = fused(s, x2, -1.6666654611e-1f);
  s = fused(s * x2, x, x);
  const bool turned = octant & 2;
  sin = float_of(bits_of(turned ? c : s) ^ uint32_t(octant & 4) << 29);
  cos = float_of(bits_of(turned ? s : c) ^ uint32_t(~(octant - 2) & 4) << 29);
}

// So many words into z, untempered, as torch draws them; null: only passed over.
inline void torch_words(fastddpm::MtState& state, float* z, int64_t count) {
  while (count > 0) {
    if (state.left == 1) {
      next_state(state.words);
      state.left = kState + 1, state.next = 0;
    }
    const int64_t n = count < state.left - 1 ? count : state.left - 1;
    if (z) std::memcpy(z, state.words + state.next, size_t(n) * sizeof(float)), z += n;
    state.left -= int32_t(n), state.next += uint32_t(n);
    count -= n;
  }
}

constexpr int64_t kHalf = 8, kGroups = 16, kPairs = kHalf * kGroups;

// The halves of sixteens, end to end.
struct Halves {
  alignas(64) float first[kPairs], second[kPairs];

  void read(const float* z, int64_t groups) {
    for (int64_t g = 0; g < groups; ++g, z += 2 * kHalf) {
      std::memcpy(first + g * kHalf, z, sizeof(float) * kHalf);
      std::memcpy(second + g * kHalf, z + kHalf, sizeof(float) * kHalf);
    }
  }
  void write(float* z, int64_t groups) const {
    for (int64_t g = 0; g < groups; ++g, z += 2 * kHalf) {
      std::memcpy(z, first + g * kHalf, sizeof(float) * kHalf);
      std::memcpy(z + kHalf, second + g * kHalf, sizeof(float) * kHalf);
    }
  }
};

// So many sixteens of words to normals in their place.
inline void torch_normals(float* z, int64_t sixteens) {
  Halves of{};
  for (; sixteens > 0; sixteens -= kGroups, z += 2 * kPairs) {
    const int64_t groups = sixteens < kGroups ? sixteens : kGroups;
    of.read(z, groups);
    for (int64_t i = 0; i < kPairs; ++i) {
      const float radius = __builtin_sqrtf(-2.0f * cephes_log(1.0f - uniform(bits_of(of.first[i]))));
      float sin, cos;
      cephes_sin_cos(6.283185307179586f * uniform(bits_of(of.second[i])), sin, cos);
      of.first[i] = radius * cos + 0.0f;  // -0 to 0
      of.second[i] = radius * sin + 0.0f;
    }
    of.write(z, groups);
  }
}

}  // namespace FASTDDPM_ISA
