// Normals from a key: Philox4x32-10 (Salmon et al. 2011) and Box-Muller (1958), the noise contract of docs/noise.md.
//
//   w = Philox(key = seed, counter = (block, subsequence));  z[4 block .. + 3] = r(w0) cos(w1), r(w0) sin(w1), r(w2) cos(w3), ..
//
// Moves nothing: a chunk of normals is made into a buffer that stays in the first-level cache.
#pragma once
#include "plan.h"
#include "simd.h"

namespace FASTDDPM_ISA {

constexpr int kTogether = 4;  // vectors worked on side by side: each hides the latency of the others
constexpr int kStep = 4 * kBlocks * kTogether;  // normals made at a time
static_assert(fastddpm::kSlack >= kStep + 3, "a run may begin up to 3 normals into its block, and ends with a whole step");
constexpr uint64_t kMultiply0 = 0xD2511F53u, kMultiply1 = 0xCD9E8D57u;

template <class F> FASTDDPM_INLINE void each(F f) {
  static_assert(kTogether == 4, "written out, since compilers do not agree on how to ask for it");
  f(0), f(1), f(2), f(3);
}

// The four words of each block.
struct Counters {
  Words c0[kTogether], c1[kTogether], c2[kTogether], c3[kTogether];
};

// Numbers to a vector's lanes.
FASTDDPM_INLINE Words in_lanes(const uint64_t* numbers) {
  uint64_t lane[kBlocks], laid[kBlocks];
  Words order = block_lanes();
  std::memcpy(lane, &order, sizeof(lane));
  for (int b = 0; b < kBlocks; ++b) laid[b] = numbers[lane[b]];
  std::memcpy(&order, laid, sizeof(laid));
  return order;
}

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

  // The words of kTogether x kBlocks blocks from `block` on.
  FASTDDPM_INLINE void operator()(uint64_t block, Counters& c) const {
    rounds([&](int g) { return add64(words(block), add64(block_lanes(), words(uint64_t(g * kBlocks)))); }, c);
  }

  // The words of so many blocks of any numbers.
  FASTDDPM_INLINE void of_blocks(const uint64_t* blocks, Counters& c) const {
    rounds([&](int g) { return in_lanes(blocks + g * kBlocks); }, c);
  }

  // counter(g): the blocks' numbers of vector g
  template <class F> FASTDDPM_INLINE void rounds(F counter, Counters& c) const {
    const uint64_t p1 = kMultiply1 * subsequence[0];
    const uint64_t c0 = (p1 >> 32) ^ round_key[0][0];
    const uint64_t p0 = kMultiply0 * c0;  // round 2's
    each([&](int g) {
      const Words first = multiply(words(kMultiply0), counter(g));
      const Words c2 = exclusive_or(words(subsequence[1]), words(round_key[0][1]), high(first));
      const Words second = multiply(words(kMultiply1), c2);
      c.c0[g] = exclusive_or(words(uint32_t(p1)), words(round_key[1][0]), high(second));
      c.c1[g] = second;
      c.c2[g] = exclusive_or(words(p0 >> 32), words(round_key[1][1]), first);
      c.c3[g] = words(uint32_t(p0));
    });
    for (int i = 2; i < 10; ++i) {
      const Words k0 = words(round_key[i][0]), k1 = words(round_key[i][1]);
      each([&](int g) {
        const Words a = multiply(words(kMultiply0), c.c0[g]), b = multiply(words(kMultiply1), c.c2[g]);
        c.c0[g] = exclusive_or(high(b), c.c1[g], k0);
        c.c2[g] = exclusive_or(high(a), c.c3[g], k1);
        c.c1[g] = b;
        c.c3[g] = a;
      });
    }
  }
};

inline Floats constant(uint32_t x) { return as_floats(bits(x)); }

// sqrt(-2 ln u), u = fma(float(w), 2^-32, 2^-33). With u = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)):
// -2 ln u = fma(e, -2 ln 2, fma(f^2, P(f), -2 f))
FASTDDPM_INLINE void radius(const Bits* word, Floats* r) {
  Bits u[kTogether], exponent[kTogether];
  Floats f[kTogether], p[kTogether];
  each([&](int g) { u[g] = as_bits(fma(from_unsigned(word[g]), floats(0x1p-32f), floats(0x1p-33f))); });
  each([&](int g) { exponent[g] = shift_right_signed<23>(subtract(u[g], bits(0x3F3504F3u))); });
  each([&](int g) { f[g] = subtract(as_floats(subtract(u[g], shift_left<23>(exponent[g]))), floats(1.0f)); });
  each([&](int g) { p[g] = fma(constant(0x3E4D854Du), f[g], constant(0xBEA7474Bu)); });
  each([&](int g) { p[g] = fma(p[g], f[g], constant(0x3EB16AB0u)); });
  each([&](int g) { p[g] = fma(p[g], f[g], constant(0xBECBA7DBu)); });
  each([&](int g) { p[g] = fma(p[g], f[g], constant(0x3EFF9B03u)); });
  each([&](int g) { p[g] = fma(p[g], f[g], constant(0xBF2AAD32u)); });
  each([&](int g) { p[g] = fma(p[g], f[g], constant(0x3F800062u)); });
  each([&](int g) { p[g] = fma(multiply(f[g], f[g]), p[g], multiply(floats(-2.0f), f[g])); });
  each([&](int g) { r[g] = square_root(fma(from_signed(exponent[g]), constant(0xBFB17218u), p[g])); });
}

// cos and sin of 2 pi w / 2^32: the nearest quarter turn is w's top two bits after adding an eighth, and 4 (w - quarter) is
// w << 2 as a signed number, so there is no range reduction
FASTDDPM_INLINE void cos_sin(const Bits* word, Floats* cos, Floats* sin) {
  Floats x[kTogether], x2[kTogether], c[kTogether], s[kTogether];
  each([&](int g) { x[g] = multiply(from_signed(shift_left<2>(word[g])), floats(0x1p-31f)); });
  each([&](int g) { x2[g] = multiply(x[g], x[g]); });
  each([&](int g) {
    c[g] = fma(constant(0xB9A75889u), x2[g], constant(0x3C81D8C7u));
    s[g] = fma(constant(0xB8153B1Cu), x2[g], constant(0x3B2324B6u));
  });
  each([&](int g) {
    c[g] = fma(c[g], x2[g], constant(0xBE9DE9D1u));
    s[g] = fma(s[g], x2[g], constant(0xBDA55DB4u));
  });
  each([&](int g) {
    c[g] = fma(c[g], x2[g], floats(1.0f));
    s[g] = multiply(x[g], fma(s[g], x2[g], constant(0x3F490FDAu)));
  });
  each([&](int g) {
    const Bits turned = add(word[g], bits(0x20000000u)), odd = shift_left<1>(turned);
    cos[g] = flip_sign(select(odd, c[g], s[g]), exclusive_or(turned, odd));
    sin[g] = flip_sign(select(odd, s[g], c[g]), turned);
  });
}

FASTDDPM_INLINE void box_muller(const Counters& w, float* z) {
  Bits packed[kTogether];
  Floats r[kTogether], cos[kTogether], sin[kTogether];
  each([&](int g) { packed[g] = pack(w.c0[g], w.c2[g]); });
  radius(packed, r);
  each([&](int g) { packed[g] = pack(w.c1[g], w.c3[g]); });
  cos_sin(packed, cos, sin);
  each([&](int g) { store_interleaved(z + g * 4 * kBlocks, multiply(r[g], cos[g]), multiply(r[g], sin[g])); });
}

// The normals of blocks of any numbers, `count` of them; whole steps are read and written.
inline void block_normals(const Philox& philox, const uint64_t* blocks, int64_t count, float* z) {
  Counters w;
  for (int64_t i = 0; i < count; i += kStep / 4) {
    philox.of_blocks(blocks + i, w);
    box_muller(w, z + 4 * i);
  }
}

// The normals of the blocks from first_block on, count of them, into z. Whole steps are written: z has room for kSlack more.
inline void block_normals(const Philox& philox, uint64_t first_block, int64_t count, float* z) {
  Counters w;
  for (int64_t i = 0; i < count; i += kStep) {
    philox(first_block + uint64_t(i / 4), w);
    box_muller(w, z + i);
  }
}

}  // namespace FASTDDPM_ISA
