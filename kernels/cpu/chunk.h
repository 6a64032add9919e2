// A kernel's chunk of each tensor as a plain array of float or double: in place where it can be, else staged in a buffer.
#pragma once
#include "philox.h"

namespace FASTDDPM_ISA {

using namespace fastddpm;

template <class T> struct Buffer {
  alignas(64) T values[kChunk + kSlack];
};

// ---- one element of each dtype ----

inline float widen_bfloat16(uint16_t x) {
  const uint32_t wide = uint32_t(x) << 16;
  float r;
  std::memcpy(&r, &wide, 4);
  return r;
}
inline uint16_t narrow_bfloat16(float x) {  // to nearest, ties to even; a NaN stays one
  uint32_t b;
  std::memcpy(&b, &x, 4);
  const uint32_t rounded = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
  return uint16_t((b & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
inline float widen_float16(uint16_t x) {
#if defined(FASTDDPM_AVX2) || defined(FASTDDPM_AVX512)
  return _cvtsh_ss(x);
#else
  return torch::headeronly::detail::fp16_ieee_to_fp32_value(x);
#endif
}
inline uint16_t narrow_float16(float x) {
#if defined(FASTDDPM_AVX2) || defined(FASTDDPM_AVX512)
  return uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  return torch::headeronly::detail::fp16_ieee_from_fp32_value(x);
#endif
}

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

// ---- positions, `pitch` apart in memory, of `channels` elements that lie together on the other side ----

// Copies between a pitched tensor and a dense buffer. Few channels are unrolled: a loop of three would not be vectorised.
template <int C, class To, class From, class F>
inline void copy_positions(const From* from, int64_t from_pitch, To* to, int64_t to_pitch, int64_t channels, int64_t n, F convert) {
  const int64_t width = C ? C : channels;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < width; ++c) to[i * to_pitch + c] = To(convert(from[i * from_pitch + c]));
}
template <class To, class From, class F>
inline void copy_pitched(const From* from, int64_t from_pitch, To* to, int64_t to_pitch, int64_t channels, int64_t n, F convert) {
  if (channels == 3 && from_pitch == 6) return copy_positions<3>(from, 6, to, 3, 3, n, convert);
  if (channels == 3 && to_pitch == 6) return copy_positions<3>(from, 3, to, 6, 3, n, convert);
  copy_positions<0>(from, from_pitch, to, to_pitch, channels, n, convert);
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

// ---- the chunk ----

struct Chunk {
  const Plan& plan;
  int64_t sample, first, count;  // first: the offset of its first element within the sample, in the order it is walked

  Chunk(const Plan& p, int64_t number) : plan(p), sample(number / p.chunks) {
    const int64_t width = p.layout == Layout::kInterleaved ? p.tile * p.channels : kChunk;
    first = number % p.chunks * width;
    count = p.numel - first < width ? p.numel - first : width;
  }

  bool pitched(const View& v) const { return plan.layout == Layout::kInterleaved && v.pitch != plan.channels; }
  bool direct(const View& v) const { return plan.layout == Layout::kStrided ? v.contiguous : !pitched(v); }
  int64_t offset(const View& v) const { return sample * v.batch_stride; }
  int64_t pitched_offset(const View& v) const { return offset(v) + first / plan.channels * v.pitch; }

  // Calls run(position in the chunk, offset in memory, stride, length) for each run of a tensor that is not direct.
  template <class F> void runs(const View& v, F run) const {
    const int last = plan.dims - 1;
    int64_t at[kMaxDims], rest = first, memory = offset(v);
    for (int d = last; d >= 0; --d) {
      at[d] = rest % plan.sizes[d];
      rest /= plan.sizes[d];
      memory += at[d] * v.strides[d];
    }
    for (int64_t done = 0; done < count;) {
      const int64_t room = plan.sizes[last] - at[last], n = room < count - done ? room : count - done;
      run(done, memory, v.strides[last], n);
      done += n;
      memory += n * v.strides[last];
      at[last] += n;
      for (int d = last; d > 0 && at[d] == plan.sizes[d]; --d) {
        memory += v.strides[d - 1] - at[d] * v.strides[d];
        at[d] = 0;
        ++at[d - 1];
      }
    }
  }

  template <class T> static constexpr Dtype native() { return sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32; }

  // Asks for the chunk of v while its noise is being made: memory then runs under arithmetic.
  template <int kForWriting> void prefetch(const View& v) const {
    constexpr int64_t kLine = 64;
    if (!v.data || !direct(v)) return;
    const char* at = v.data + (offset(v) + first) * size_of(v.dtype);
    for (int64_t i = 0; i < count * size_of(v.dtype); i += kLine) __builtin_prefetch(at + i, kForWriting);
  }

  // The chunk of v for reading, or null where there is no such tensor.
  template <class T> const T* fetch(const View& v, Buffer<T>& buffer) const {
    if (!v.data) return nullptr;
    if (direct(v)) {
      const int64_t at = offset(v) + first;
      if (v.dtype == native<T>()) return reinterpret_cast<const T*>(v.data) + at;
      read(v, at, 1, count, buffer.values);
    } else if (pitched(v)) {
      read_pitched(v, pitched_offset(v), plan.channels, count / plan.channels, buffer.values);
    } else {
      runs(v, [&](int64_t i, int64_t at, int64_t stride, int64_t n) { read(v, at, stride, n, buffer.values + i); });
    }
    return buffer.values;
  }

  // Where to write the chunk of v: its own memory, or the buffer, to be committed. Null where there is no such tensor.
  template <class T> T* target(const View& v, Buffer<T>& buffer) const {
    if (!v.data) return nullptr;
    const bool in_place = direct(v) && v.dtype == native<T>();
    return in_place ? reinterpret_cast<T*>(v.data) + offset(v) + first : buffer.values;
  }
  template <class T> void commit(const View& v, const T* from, const Buffer<T>& buffer) const {
    if (from != buffer.values) return;
    if (direct(v)) return write(v, offset(v) + first, 1, count, from);
    if (pitched(v)) return write_pitched(v, pitched_offset(v), plan.channels, count / plan.channels, from);
    runs(v, [&](int64_t i, int64_t at, int64_t stride, int64_t n) { write(v, at, stride, n, from + i); });
  }

  template <class T> const T* row(const Rows& rows, int columns) const {
    return static_cast<const T*>(rows.table) + rows.index[sample] * columns;
  }

  // The chunk's noise, in the order that the chunk is walked. Null where there is none.
  template <class T> const T* noise(const Noise& n, Buffer<T>& buffer) const {
    if (!n.key) return fetch(n.tensor, buffer);
    if constexpr (sizeof(T) == 4) {
      normals(n, buffer.values);
    } else {
      Buffer<float> narrow;
      normals(n, narrow.values);
      for (int64_t i = 0; i < count; ++i) buffer.values[i] = narrow.values[i];
    }
    return buffer.values;
  }

  void normals(const Noise& n, float* z) const {
    const int64_t* key = n.key + sample * n.key_strides[0];
    const Philox philox(key[0], key[n.key_strides[1]]);
    if (plan.layout != Layout::kInterleaved) return block_normals(philox, uint64_t(first) / 4, count, z);
    switch (plan.channels) {
      case 2: return few_channels<2>(philox, z);
      case 3: return few_channels<3>(philox, z);
      case 4: return few_channels<4>(philox, z);
      default: return many_channels(philox, z);
    }
  }

  // One channel's run of the tile into a buffer: the run's first normal, which need not begin a block.
  const float* channel_normals(const Philox& philox, int64_t c, float* buffer) const {
    const int64_t element = c * plan.inner + first / plan.channels, skip = element % 4;
    block_normals(philox, uint64_t(element) / 4, count / plan.channels + skip, buffer);
    return buffer + skip;
  }

  // All channels first, so that the compiler interleaves whole vectors of them.
  template <int C> void few_channels(const Philox& philox, float* z) const {
    Buffer<float> buffers[C];
    const float* from[C];
    for (int c = 0; c < C; ++c) from[c] = channel_normals(philox, c, buffers[c].values);
    const int64_t length = count / C;
    for (int64_t i = 0; i < length; ++i)
      for (int c = 0; c < C; ++c) z[i * C + c] = from[c][i];
  }

  void many_channels(const Philox& philox, float* z) const {
    Buffer<float> buffer;
    const int64_t channels = plan.channels, length = count / channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float* from = channel_normals(philox, c, buffer.values);
      for (int64_t i = 0; i < length; ++i) z[i * channels + c] = from[i];
    }
  }
};

template <class T> inline T fused(T a, T b, T c) { return sizeof(T) == 4 ? __builtin_fmaf(a, b, c) : __builtin_fma(a, b, c); }

}  // namespace FASTDDPM_ISA
