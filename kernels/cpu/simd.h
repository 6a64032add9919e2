// The vector types of one instruction set, chosen by the file that includes this (avx512.cpp, avx2.cpp, neon.cpp, portable.cpp).
//
// Words   two, four or eight 64-bit lanes, of which the low 32 bits count: the products of Philox need no shuffles there
// Bits    twice as many 32-bit lanes
// Floats  the same lanes as float32
//
// Every float operation is one correctly rounded IEEE operation, so all instruction sets give the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

#define FASTDDPM_INLINE inline __attribute__((always_inline))  // kept apart, vectors would go through memory, or not be found

namespace FASTDDPM_ISA {

#if defined(FASTDDPM_AVX512)

constexpr int kBlocks = 8;  // Philox blocks a vector
using Words = __m512i;
using Bits = __m512i;
using Floats = __m512;

inline Words words(uint64_t x) { return _mm512_set1_epi64(int64_t(x)); }
// lane order 0 4 1 5 2 6 3 7: store_interleaved then writes the blocks in order with no permutation across lanes
inline Words block_lanes() { return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); }
inline Words add64(Words a, Words b) { return _mm512_add_epi64(a, b); }
inline Words multiply(Words a, Words b) { return _mm512_mul_epu32(a, b); }
inline Words high(Words a) { return _mm512_srli_epi64(a, 32); }
inline Words exclusive_or(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline Bits pack(Words even, Words odd) { return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)); }

inline Bits bits(uint32_t x) { return _mm512_set1_epi32(int32_t(x)); }
inline Bits add(Bits a, Bits b) { return _mm512_add_epi32(a, b); }
inline Bits subtract(Bits a, Bits b) { return _mm512_sub_epi32(a, b); }
template <int N> inline Bits shift_left(Bits a) { return _mm512_slli_epi32(a, N); }
template <int N> inline Bits shift_right_signed(Bits a) { return _mm512_srai_epi32(a, N); }
inline Bits exclusive_or(Bits a, Bits b) { return _mm512_xor_si512(a, b); }

inline Floats floats(float x) { return _mm512_set1_ps(x); }
inline Floats from_unsigned(Bits a) { return _mm512_cvtepu32_ps(a); }
inline Floats from_signed(Bits a) { return _mm512_cvtepi32_ps(a); }
inline Bits as_bits(Floats a) { return _mm512_castps_si512(a); }
inline Floats as_floats(Bits a) { return _mm512_castsi512_ps(a); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats square_root(Floats a) { return _mm512_sqrt_ps(a); }
// where the top bit of choice is set b, else a
inline Floats select(Bits choice, Floats a, Floats b) { return _mm512_mask_blend_ps(_mm512_movepi32_mask(choice), a, b); }
inline Floats flip_sign(Floats a, Bits sign) {  // a ^ (sign & 0x80000000)
  return as_floats(_mm512_ternarylogic_epi32(as_bits(a), sign, bits(0x80000000u), 0x78));
}
inline void store_interleaved(float* out, Floats even, Floats odd) {
  _mm512_storeu_ps(out, _mm512_unpacklo_ps(even, odd));
  _mm512_storeu_ps(out + 16, _mm512_unpackhi_ps(even, odd));
}

#elif defined(FASTDDPM_AVX2)

constexpr int kBlocks = 4;
using Words = __m256i;
using Bits = __m256i;
using Floats = __m256;

inline Words words(uint64_t x) { return _mm256_set1_epi64x(int64_t(x)); }
inline Words block_lanes() { return _mm256_setr_epi64x(0, 2, 1, 3); }
inline Words add64(Words a, Words b) { return _mm256_add_epi64(a, b); }
inline Words multiply(Words a, Words b) { return _mm256_mul_epu32(a, b); }
inline Words high(Words a) { return _mm256_srli_epi64(a, 32); }
inline Words exclusive_or(Words a, Words b, Words c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
inline Bits pack(Words even, Words odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA); }

inline Bits bits(uint32_t x) { return _mm256_set1_epi32(int32_t(x)); }
inline Bits add(Bits a, Bits b) { return _mm256_add_epi32(a, b); }
inline Bits subtract(Bits a, Bits b) { return _mm256_sub_epi32(a, b); }
template <int N> inline Bits shift_left(Bits a) { return _mm256_slli_epi32(a, N); }
template <int N> inline Bits shift_right_signed(Bits a) { return _mm256_srai_epi32(a, N); }
inline Bits exclusive_or(Bits a, Bits b) { return _mm256_xor_si256(a, b); }

inline Floats floats(float x) { return _mm256_set1_ps(x); }
inline Floats from_signed(Bits a) { return _mm256_cvtepi32_ps(a); }
inline Bits as_bits(Floats a) { return _mm256_castps_si256(a); }
inline Floats as_floats(Bits a) { return _mm256_castsi256_ps(a); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats square_root(Floats a) { return _mm256_sqrt_ps(a); }
inline Floats select(Bits choice, Floats a, Floats b) { return _mm256_blendv_ps(a, b, as_floats(choice)); }
inline Floats flip_sign(Floats a, Bits sign) { return _mm256_xor_ps(a, _mm256_and_ps(as_floats(sign), floats(-0.0f))); }
inline Floats from_unsigned(Bits a) {  // both halves convert exactly, so the one rounding is the fma's
  const Bits upper = _mm256_srli_epi32(a, 16), lower = _mm256_blend_epi16(a, _mm256_setzero_si256(), 0xAA);
  return fma(from_signed(upper), floats(65536.0f), from_signed(lower));
}
inline void store_interleaved(float* out, Floats even, Floats odd) {
  _mm256_storeu_ps(out, _mm256_unpacklo_ps(even, odd));
  _mm256_storeu_ps(out + 8, _mm256_unpackhi_ps(even, odd));
}

#elif defined(FASTDDPM_NEON)

constexpr int kBlocks = 2;
using Words = uint64x2_t;
using Bits = uint32x4_t;
using Floats = float32x4_t;

inline Words words(uint64_t x) { return vdupq_n_u64(x); }
inline Words block_lanes() { return Words{0, 1}; }
inline Words add64(Words a, Words b) { return vaddq_u64(a, b); }
inline Words multiply(Words a, Words b) { return vmull_u32(vmovn_u64(a), vmovn_u64(b)); }
inline Words high(Words a) { return vshrq_n_u64(a, 32); }
inline Words exclusive_or(Words a, Words b, Words c) { return veorq_u64(veorq_u64(a, b), c); }
inline Bits pack(Words even, Words odd) { return vtrn1q_u32(vreinterpretq_u32_u64(even), vreinterpretq_u32_u64(odd)); }

inline Bits bits(uint32_t x) { return vdupq_n_u32(x); }
inline Bits add(Bits a, Bits b) { return vaddq_u32(a, b); }
inline Bits subtract(Bits a, Bits b) { return vsubq_u32(a, b); }
template <int N> inline Bits shift_left(Bits a) { return vshlq_n_u32(a, N); }
template <int N> inline Bits shift_right_signed(Bits a) {
  return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), N));
}
inline Bits exclusive_or(Bits a, Bits b) { return veorq_u32(a, b); }

inline Floats floats(float x) { return vdupq_n_f32(x); }
inline Floats from_unsigned(Bits a) { return vcvtq_f32_u32(a); }
inline Floats from_signed(Bits a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
inline Bits as_bits(Floats a) { return vreinterpretq_u32_f32(a); }
inline Floats as_floats(Bits a) { return vreinterpretq_f32_u32(a); }
inline Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats square_root(Floats a) { return vsqrtq_f32(a); }
inline Floats select(Bits choice, Floats a, Floats b) { return vbslq_f32(shift_right_signed<31>(choice), b, a); }
inline Floats flip_sign(Floats a, Bits sign) { return as_floats(veorq_u32(as_bits(a), vandq_u32(sign, bits(0x80000000u)))); }
inline void store_interleaved(float* out, Floats even, Floats odd) { vst2q_f32(out, {{even, odd}}); }

#else  // portable: plain loops over small arrays, which a compiler turns into whatever vectors there are

constexpr int kBlocks = 4;
template <class T, int N> struct Lanes { T v[N]; };
struct Words : Lanes<uint64_t, kBlocks> {};
struct Bits : Lanes<uint32_t, 2 * kBlocks> {};
struct Floats : Lanes<float, 2 * kBlocks> {};

template <class V, class F> inline V each(F f) {
  V r;
  for (int i = 0; i < int(sizeof(r.v) / sizeof(r.v[0])); ++i) r.v[i] = f(i);
  return r;
}
inline Words words(uint64_t x) { return each<Words>([&](int) { return x; }); }
inline Words block_lanes() { return each<Words>([](int i) { return uint64_t(i); }); }
inline Words add64(Words a, Words b) { return each<Words>([&](int i) { return a.v[i] + b.v[i]; }); }
inline Words multiply(Words a, Words b) {
  return each<Words>([&](int i) { return uint64_t(uint32_t(a.v[i])) * uint32_t(b.v[i]); });
}
inline Words high(Words a) { return each<Words>([&](int i) { return a.v[i] >> 32; }); }
inline Words exclusive_or(Words a, Words b, Words c) { return each<Words>([&](int i) { return a.v[i] ^ b.v[i] ^ c.v[i]; }); }
inline Bits pack(Words even, Words odd) { return each<Bits>([&](int i) { return uint32_t((i % 2 ? odd : even).v[i / 2]); }); }

inline Bits bits(uint32_t x) { return each<Bits>([&](int) { return x; }); }
inline Bits add(Bits a, Bits b) { return each<Bits>([&](int i) { return a.v[i] + b.v[i]; }); }
inline Bits subtract(Bits a, Bits b) { return each<Bits>([&](int i) { return a.v[i] - b.v[i]; }); }
template <int N> inline Bits shift_left(Bits a) { return each<Bits>([&](int i) { return a.v[i] << N; }); }
template <int N> inline Bits shift_right_signed(Bits a) {
  return each<Bits>([&](int i) { return uint32_t(int32_t(a.v[i]) >> N); });
}
inline Bits exclusive_or(Bits a, Bits b) { return each<Bits>([&](int i) { return a.v[i] ^ b.v[i]; }); }

inline Floats floats(float x) { return each<Floats>([&](int) { return x; }); }
inline Floats from_unsigned(Bits a) { return each<Floats>([&](int i) { return float(a.v[i]); }); }
inline Floats from_signed(Bits a) { return each<Floats>([&](int i) { return float(int32_t(a.v[i])); }); }
inline Bits as_bits(Floats a) {
  Bits r;
  std::memcpy(&r, &a, sizeof(r));
  return r;
}
inline Floats as_floats(Bits a) {
  Floats r;
  std::memcpy(&r, &a, sizeof(r));
  return r;
}
inline Floats multiply(Floats a, Floats b) { return each<Floats>([&](int i) { return a.v[i] * b.v[i]; }); }
inline Floats subtract(Floats a, Floats b) { return each<Floats>([&](int i) { return a.v[i] - b.v[i]; }); }
inline Floats fma(Floats a, Floats b, Floats c) { return each<Floats>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); }); }
inline Floats square_root(Floats a) { return each<Floats>([&](int i) { return __builtin_sqrtf(a.v[i]); }); }
inline Floats select(Bits choice, Floats a, Floats b) {
  return each<Floats>([&](int i) { return choice.v[i] >> 31 ? b.v[i] : a.v[i]; });
}
inline Floats flip_sign(Floats a, Bits sign) {
  const Bits flipped = each<Bits>([&](int i) { return as_bits(a).v[i] ^ (sign.v[i] & 0x80000000u); });
  return as_floats(flipped);
}
inline void store_interleaved(float* out, Floats even, Floats odd) {
  for (int i = 0; i < 2 * kBlocks; ++i) {
    out[2 * i] = even.v[i];
    out[2 * i + 1] = odd.v[i];
  }
}

#endif

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

}  // namespace FASTDDPM_ISA
