// Elements of every dtype in memory, to and from plain arrays of float or double.
#pragma once
#include <cstring>
#include <type_traits>

#include "plan.h"
#include "simd.h"

namespace FASTDDPM_ISA {

using namespace fastddpm;

// ---- one element of each dtype: narrowed to nearest, ties to even; a NaN stays one ----

inline float widen_bfloat16(uint16_t x) { return float_of(uint32_t(x) << 16); }
inline uint16_t narrow_bfloat16(float x) {
  const uint32_t b = bits_of(x);
  const uint32_t rounded = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
  return uint16_t((b & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
#if defined(FASTDDPM_AVX2) || defined(FASTDDPM_AVX512)
inline float widen_float16(uint16_t x) { return _cvtsh_ss(x); }
inline uint16_t narrow_float16(float x) { return uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
#else
// No step has a subnormal float, which a process may have told its CPU to take for 0. A float16's smallest is 2^-24, the
// spacing of the floats from 1/2 on.
inline float widen_float16(uint16_t x) {
  const uint32_t magnitude = x & 0x7FFFu, sign = uint32_t(x & 0x8000u) << 16;
  const float normal = float_of((magnitude << 13) + 0x70000000u) * 0x1p-112f, subnormal = float_of(magnitude + 0x3F000000u) - 0.5f;
  return float_of(bits_of(magnitude < 0x400u ? subnormal : normal) | sign);
}
inline uint16_t narrow_float16(float x) {
  const uint32_t magnitude = bits_of(x) & 0x7FFFFFFFu, sign = bits_of(x) >> 16 & 0x8000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal < 0x7C00u ? normal : 0x7C00u;
  return uint16_t(sign | (magnitude > 0x7F800000u ? 0x7E00u : finite));
}
#endif

// ---- runs of elements, `stride` apart in memory ----

template <class T, class S, class F> inline void read_run(const S* from, int64_t stride, int64_t n, T* to, F convert) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = T(convert(from[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = T(convert(from[i * stride]));
  }
}
template <class T, class S, class F> inline void write_run(S* to, int64_t stride, int64_t n, const T* from, F convert) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = S(convert(from[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * stride] = S(convert(from[i]));
  }
}

#if defined(FASTDDPM_AVX2) || defined(FASTDDPM_AVX512)
// compilers do not turn a loop of single conversions into this instruction's vector form
inline void read_float16(const uint16_t* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
  for (; i < n; ++i) to[i] = widen_float16(from[i]);
}
inline void write_float16(uint16_t* to, int64_t n, const float* from) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) to[i] = narrow_float16(from[i]);
}
#else
inline void read_float16(const uint16_t* from, int64_t n, float* to) { read_run(from, 1, n, to, widen_float16); }
inline void write_float16(uint16_t* to, int64_t n, const float* from) { write_run(to, 1, n, from, narrow_float16); }
#endif

template <class T> inline void read(const View& v, int64_t offset, int64_t stride, int64_t n, T* to) {
  const char* from = v.data + offset * size_of(v.dtype);
  const auto same = [](auto x) { return x; };
  switch (v.dtype) {
    case Dtype::kFloat32: return read_run((const float*)from, stride, n, to, same);
    case Dtype::kFloat64: return read_run((const double*)from, stride, n, to, same);
    case Dtype::kBFloat16: return read_run((const uint16_t*)from, stride, n, to, widen_bfloat16);
    case Dtype::kFloat16:
      if constexpr (sizeof(T) == 4) {
        if (stride == 1) return read_float16((const uint16_t*)from, n, to);
      }
      return read_run((const uint16_t*)from, stride, n, to, widen_float16);
  }
}
template <class T> inline void write(const View& v, int64_t offset, int64_t stride, int64_t n, const T* from) {
  char* to = v.data + offset * size_of(v.dtype);
  const auto same = [](auto x) { return x; };
  switch (v.dtype) {
    case Dtype::kFloat32: return write_run((float*)to, stride, n, from, same);
    case Dtype::kFloat64: return write_run((double*)to, stride, n, from, same);
    case Dtype::kBFloat16: return write_run((uint16_t*)to, stride, n, from, [](T x) { return narrow_bfloat16(float(x)); });
    case Dtype::kFloat16:
      if constexpr (sizeof(T) == 4) {
        if (stride == 1) return write_float16((uint16_t*)to, n, from);
      }
      return write_run((uint16_t*)to, stride, n, from, [](T x) { return narrow_float16(float(x)); });
  }
}

// ---- three channels of six: the halves of a network's output for RGB ----

// Eight positions at a time by shuffles: a loop of three is not vectorised, and cost as much as the bound's arithmetic. They
// return how many positions they did. gather leaves the last eight to others, since its vectors reach to the end of six
// channels, where the tensor may have ended. join writes both halves at once: one after the other would have to read, between,
// memory that has not arrived yet.

#if (defined(FASTDDPM_AVX2) || defined(FASTDDPM_AVX512)) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTDDPM_SHUFFLES
#endif
#endif

#ifdef FASTDDPM_SHUFFLES
#define SHUFFLE __builtin_shufflevector
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

inline int64_t gather_three_of_six(const float* from, float* to, int64_t n) {
  int64_t done = 0;
  for (; done + 8 < n; done += 8) {
    const Eight* v = reinterpret_cast<const Eight*>(from + 6 * done);
    Eight* a = reinterpret_cast<Eight*>(to + 3 * done);
    a[0] = SHUFFLE(v[0], v[1], 0, 1, 2, 6, 7, 8, 12, 13);
    a[1] = SHUFFLE(SHUFFLE(v[1], v[2], 6, 10, 11, 12, 6, 6, 6, 6), v[3], 0, 1, 2, 3, 8, 9, 10, 14);
    a[2] = SHUFFLE(SHUFFLE(v[3], v[4], 7, 8, 12, 13, 14, 7, 7, 7), v[5], 0, 1, 2, 3, 4, 10, 11, 12);
  }
  return done;
}
inline int64_t join_threes(const float* first, const float* second, float* to, int64_t n) {
  int64_t done = 0;
  for (; done + 8 <= n; done += 8) {
    const Eight* a = reinterpret_cast<const Eight*>(first + 3 * done);
    const Eight* b = reinterpret_cast<const Eight*>(second + 3 * done);
    Eight* v = reinterpret_cast<Eight*>(to + 6 * done);
    v[0] = SHUFFLE(a[0], b[0], 0, 1, 2, 8, 9, 10, 3, 4);
    v[1] = SHUFFLE(SHUFFLE(a[0], b[0], 5, 11, 12, 13, 6, 7, 0, 14), a[1], 0, 1, 2, 3, 4, 5, 8, 7);
    v[2] = SHUFFLE(SHUFFLE(b[0], a[1], 7, 0, 9, 10, 11, 0, 0, 0), b[1], 0, 8, 2, 3, 4, 9, 10, 11);
    v[3] = SHUFFLE(SHUFFLE(a[1], b[1], 4, 5, 6, 12, 13, 14, 7, 0), a[2], 0, 1, 2, 3, 4, 5, 6, 8);
    v[4] = SHUFFLE(SHUFFLE(a[2], b[2], 1, 0, 8, 9, 2, 3, 4, 10), b[1], 0, 15, 2, 3, 4, 5, 6, 7);
    v[5] = SHUFFLE(b[2], a[2], 3, 4, 13, 14, 15, 5, 6, 7);
  }
  return done;
}
#undef SHUFFLE
#else
inline int64_t gather_three_of_six(const float*, float*, int64_t) { return 0; }
inline int64_t join_threes(const float*, const float*, float*, int64_t) { return 0; }
#endif

// ---- past the caches ----

// Copies to memory that nobody reads soon, without first reading its lines: a third less traffic than a plain store's.
template <class T> inline void stream(const T* from, T* to, int64_t n) {
  int64_t i = 0;
#if defined(FASTDDPM_AVX2) || defined(FASTDDPM_AVX512)
  constexpr int64_t kVector = 32 / sizeof(T);
  if (reinterpret_cast<uintptr_t>(to) % 32 == 0)
    for (; i + kVector <= n; i += kVector)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
#endif
  for (; i < n; ++i) to[i] = from[i];
}

// Both halves' three channels of each position.
inline void write_threes(const float* first, const float* second, float* to, int64_t n) {
  for (int64_t i = join_threes(first, second, to, n); i < n; ++i)
    for (int64_t c = 0; c < 3; ++c) to[6 * i + c] = first[3 * i + c], to[6 * i + 3 + c] = second[3 * i + c];
}

// To be called before other threads are told that a streamed tensor is made.
inline void fence() {
#if defined(FASTDDPM_AVX2) || defined(FASTDDPM_AVX512)
  _mm_sfence();
#endif
}

// ---- positions, `pitch` apart in memory, of `channels` elements that lie together on the other side ----

template <int C, class To, class From, class F>
inline void copy_positions(const From* from, int64_t from_pitch, To* to, int64_t to_pitch, int64_t n, F convert) {
  for (int64_t i = 0; i < n; ++i)
    for (int c = 0; c < C; ++c) to[i * to_pitch + c] = To(convert(from[i * from_pitch + c]));
}
template <class To, class From, class F>
inline void copy_pitched(const From* from, int64_t from_pitch, To* to, int64_t to_pitch, int64_t channels, int64_t n, F convert) {
  int64_t done = 0;
  if constexpr (std::is_same_v<To, float> && std::is_same_v<From, float>) {
    if (channels == 3 && from_pitch == 6 && to_pitch == 3) done = gather_three_of_six(from, to, n);
  }
  from += done * from_pitch, to += done * to_pitch, n -= done;
  switch (channels) {
    case 2: return copy_positions<2>(from, from_pitch, to, to_pitch, n, convert);
    case 3: return copy_positions<3>(from, from_pitch, to, to_pitch, n, convert);
    case 4: return copy_positions<4>(from, from_pitch, to, to_pitch, n, convert);
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c) to[i * to_pitch + c] = To(convert(from[i * from_pitch + c]));
}
template <class T> inline void read_pitched(const View& v, int64_t offset, int64_t channels, int64_t n, T* to) {
  const char* from = v.data + offset * size_of(v.dtype);
  const auto same = [](auto x) { return x; };
  switch (v.dtype) {
    case Dtype::kFloat32: return copy_pitched((const float*)from, v.pitch, to, channels, channels, n, same);
    case Dtype::kFloat64: return copy_pitched((const double*)from, v.pitch, to, channels, channels, n, same);
    case Dtype::kBFloat16: return copy_pitched((const uint16_t*)from, v.pitch, to, channels, channels, n, widen_bfloat16);
    case Dtype::kFloat16: return copy_pitched((const uint16_t*)from, v.pitch, to, channels, channels, n, widen_float16);
  }
}
template <class T> inline void write_pitched(const View& v, int64_t offset, int64_t channels, int64_t n, const T* from) {
  char* to = v.data + offset * size_of(v.dtype);
  const auto same = [](auto x) { return x; };
  const auto to_bfloat16 = [](T x) { return narrow_bfloat16(float(x)); };
  const auto to_float16 = [](T x) { return narrow_float16(float(x)); };
  switch (v.dtype) {
    case Dtype::kFloat32: return copy_pitched(from, channels, (float*)to, v.pitch, channels, n, same);
    case Dtype::kFloat64: return copy_pitched(from, channels, (double*)to, v.pitch, channels, n, same);
    case Dtype::kBFloat16: return copy_pitched(from, channels, (uint16_t*)to, v.pitch, channels, n, to_bfloat16);
    case Dtype::kFloat16: return copy_pitched(from, channels, (uint16_t*)to, v.pitch, channels, n, to_float16);
  }
}

}  // namespace FASTDDPM_ISA
