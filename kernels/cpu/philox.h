// Normals from a key: Philox4x32-10 (Salmon et al. 2011) and Box-Muller (1958), the noise contract of docs/noise.md.
//
//   w = Philox(key = seed, counter = (block, subsequence));  z[4 block .. + 3] = r(w0) cos(w1), r(w0) sin(w1), r(w2) cos(w3), ..
//
// Moves nothing: a chunk of normals is made into a buffer that stays in the first-level cache.
#pragma once
#include "plan.h"
#include "simd.h"

namespace FASTDDPM_ISA {

constexpr int kGroup = 4 * kBlocks;  // normals a step makes
constexpr uint64_t kMultiply0 = 0xD2511F53u, kMultiply1 = 0xCD9E8D57u;

struct Counter {
  Words c0, c1, c2, c3;
};

// The ten rounds for one sample, with what does not change from block to block folded away: counter words 2 and 3 are the
// subsequence's and block_hi is 0 (a sample has at most 2^34 elements here), so that one product of round 1 and one of
// round 2 are constants.
struct Philox {
  uint64_t round_key[10][2];  // 64 bits wide, to be broadcast straight from memory
  uint64_t subsequence[2];

  Philox(int64_t seed, int64_t sub) {
    uint32_t k0 = uint32_t(uint64_t(seed)), k1 = uint32_t(uint64_t(seed) >> 32);
    for (auto& k : round_key) {
      k[0] = k0, k[1] = k1;
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    subsequence[0] = uint32_t(uint64_t(sub)), subsequence[1] = uint32_t(uint64_t(sub) >> 32);
  }

  // The words of kBlocks blocks from `block` on.
  Counter operator()(uint64_t block) const {
    const uint64_t p1 = kMultiply1 * subsequence[0];
    const uint64_t c0 = (p1 >> 32) ^ round_key[0][0];
    const uint64_t p0 = kMultiply0 * c0;  // round 2's
    const Words first = multiply(words(kMultiply0), add64(words(block), block_lanes()));
    const Words c2 = exclusive_or(high(first), words(subsequence[1]), words(round_key[0][1]));
    const Words second = multiply(words(kMultiply1), c2);
    Counter c{exclusive_or(high(second), words(uint32_t(p1)), words(round_key[1][0])), second,
              exclusive_or(words(p0 >> 32), first, words(round_key[1][1])), words(uint32_t(p0))};
    for (int i = 2; i < 10; ++i) {
      const Words a = multiply(words(kMultiply0), c.c0), b = multiply(words(kMultiply1), c.c2);
      c = {exclusive_or(high(b), c.c1, words(round_key[i][0])), b, exclusive_or(high(a), c.c3, words(round_key[i][1])), a};
    }
    return c;
  }
};

inline Floats constant(uint32_t x) { return as_floats(bits(x)); }

// sqrt(-2 ln u), u = fma(float(w), 2^-32, 2^-33). With u = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)):
// -2 ln u = fma(e, -2 ln 2, fma(f^2, P(f), -2 f))
inline Floats radius(Bits word) {
  const Floats u = fma(from_unsigned(word), floats(0x1p-32f), floats(0x1p-33f));
  const Bits exponent = shift_right_signed<23>(subtract(as_bits(u), bits(0x3F3504F3u)));
  const Floats f = subtract(as_floats(subtract(as_bits(u), shift_left<23>(exponent))), floats(1.0f));
  Floats p = fma(constant(0x3E4D854Du), f, constant(0xBEA7474Bu));
  p = fma(fma(p, f, constant(0x3EB16AB0u)), f, constant(0xBECBA7DBu));
  p = fma(fma(p, f, constant(0x3EFF9B03u)), f, constant(0xBF2AAD32u));
  p = fma(p, f, constant(0x3F800062u));
  const Floats log = fma(multiply(f, f), p, multiply(floats(-2.0f), f));
  return square_root(fma(from_signed(exponent), constant(0xBFB17218u), log));
}

// cos and sin of 2 pi w / 2^32: the nearest quarter turn is w's top two bits after adding an eighth, and 4 (w - quarter) is
// w << 2 as a signed number, so there is no range reduction
inline void cos_sin(Bits word, Floats& cos, Floats& sin) {
  const Bits turned = add(word, bits(0x20000000u)), odd = shift_left<1>(turned);
  const Floats x = multiply(from_signed(shift_left<2>(word)), floats(0x1p-31f));
  const Floats x2 = multiply(x, x);
  Floats c = fma(fma(constant(0xB9A75889u), x2, constant(0x3C81D8C7u)), x2, constant(0xBE9DE9D1u));
  c = fma(c, x2, floats(1.0f));
  Floats s = fma(fma(constant(0xB8153B1Cu), x2, constant(0x3B2324B6u)), x2, constant(0xBDA55DB4u));
  s = multiply(x, fma(s, x2, constant(0x3F490FDAu)));
  cos = flip_sign(select(odd, c, s), exclusive_or(turned, odd, 0));
  sin = flip_sign(select(odd, s, c), turned);
}

inline void box_muller(const Counter& w, float* z) {
  const Floats r = radius(pack(w.c0, w.c2));
  Floats cos, sin;
  cos_sin(pack(w.c1, w.c3), cos, sin);
  store_interleaved(z, multiply(r, cos), multiply(r, sin));
}

// The normals of the blocks from first_block on, count of them, into z. Whole groups are written: z has room for kSlack more.
inline void block_normals(const Philox& philox, uint64_t first_block, int64_t count, float* z) {
  constexpr int kTogether = 4;  // groups whose rounds run side by side and hide each other's latency
  Counter w[kTogether];
  for (int64_t i = 0; i < count; i += kTogether * kGroup) {
    const uint64_t block = first_block + uint64_t(i / 4);
    const int groups = int((count - i + kGroup - 1) / kGroup);
    if (groups >= kTogether) {
      for (int g = 0; g < kTogether; ++g) w[g] = philox(block + uint64_t(g * kBlocks));
      for (int g = 0; g < kTogether; ++g) box_muller(w[g], z + i + g * kGroup);
    } else {
      for (int g = 0; g < groups; ++g) box_muller(philox(block + uint64_t(g * kBlocks)), z + i + g * kGroup);
    }
  }
}

}  // namespace FASTDDPM_ISA
