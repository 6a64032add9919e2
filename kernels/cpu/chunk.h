// A kernel's chunk of each tensor as a plain array of float or double: in place where it can be, else staged in a buffer.
#pragma once
#include "elements.h"
#include "philox.h"

namespace FASTDDPM_ISA {

using namespace fastddpm;

template <class T> struct Buffer {
  alignas(64) T values[kChunk + kSlack];
};

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

  template <class T> T* place(const View& v) const { return reinterpret_cast<T*>(v.data) + offset(v) + first; }

  // Where to write the chunk of v: its own memory, or the buffer, to be committed. Null where there is no such tensor.
  template <class T> T* target(const View& v, Buffer<T>& buffer) const {
    if (!v.data) return nullptr;
    const bool in_place = direct(v) && v.dtype == native<T>() && !v.large;
    return in_place ? place<T>(v) : buffer.values;
  }
  template <class T> void commit(const View& v, const T* from, const Buffer<T>& buffer) const {
    if (from != buffer.values) return;
    if (direct(v) && v.dtype == native<T>()) return stream(from, place<T>(v), count);
    if (direct(v)) return write(v, offset(v) + first, 1, count, from);
    if (pitched(v)) return write_pitched(v, pitched_offset(v), plan.channels, count / plan.channels, from);
    runs(v, [&](int64_t i, int64_t at, int64_t stride, int64_t n) { write(v, at, stride, n, from + i); });
  }

  // Two halves of one tensor.
  template <class T>
  void commit(const View& v, const T* from, const Buffer<T>& buffer, const View& w, const T* second, const Buffer<T>& other) const {
    if constexpr (sizeof(T) == 4) {
      const bool threes = pitched(v) && plan.channels == 3 && v.pitch == 6 && v.dtype == native<T>();
      if (threes && w.data == v.data + 3 * sizeof(T))
        return write_threes(from, second, reinterpret_cast<T*>(v.data) + pitched_offset(v), count / 3);
    }
    commit(v, from, buffer);
    commit(w, second, other);
  }

  template <class Row> const Row& row(const Rows& rows) const {
    return static_cast<const Row*>(rows.table)[rows.index[sample]];
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

  // Whether each_step can walk these two (the second may be absent): noise from a key, float32 in logical order.
  bool in_steps(const Noise& n, const View& a, const View& b) const {
    return n.key && plan.layout == Layout::kFlat && a.dtype == Dtype::kFloat32 && (!b.data || b.dtype == Dtype::kFloat32);
  }

  // Calls use(position in the chunk, count, normals) for each step of the noise. Reads (asked for ahead), arithmetic and writes of
  // neighbouring steps then overlap: beyond the caches a noising takes 0.7 of the time that it takes chunk by chunk.
  template <class F> void each_step(const Noise& n, const float* ahead, F use) const {
    const int64_t* key = n.key + sample * n.key_strides[0];
    const Philox philox(key[0], key[n.key_strides[1]]);
    alignas(64) float z[kStep];
    for (int64_t at = 0; at < count; at += kStep) {
      for (int64_t i = 0; i < kStep; i += 16) __builtin_prefetch(ahead + at + kChunk + i);  // past a tensor's end it does nothing
      block_normals(philox, uint64_t(first + at) / 4, kStep, z);
      use(at, count - at < kStep ? count - at : kStep, z);
    }
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

  // Of many channels a tile has a run too short for a step of its own: the blocks of all runs, end to end, share the steps.
  void many_channels(const Philox& philox, float* z) const {
    const int64_t channels = plan.channels, length = count / channels, position = first / channels;
    uint64_t blocks[kChunk / 4 + 2 * kMaxChannels + kStep / 4];
    alignas(64) float normals[kChunk + 8 * kMaxChannels + kStep];
    int64_t total = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t element = c * plan.inner + position;
      for (int64_t block = element / 4; 4 * block < element + length; ++block) blocks[total++] = uint64_t(block);
    }
    std::memset(blocks + total, 0, sizeof(uint64_t) * kStep / 4);  // the last step reads on
    block_normals(philox, blocks, total, normals);
    const float* from = normals;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t skip = (c * plan.inner + position) % 4;
      for (int64_t i = 0; i < length; ++i) z[i * channels + c] = from[skip + i];
      from += (skip + length + 3) / 4 * 4;
    }
  }
};

template <class T> inline T fused(T a, T b, T c) { return sizeof(T) == 4 ? __builtin_fmaf(a, b, c) : __builtin_fma(a, b, c); }

}  // namespace FASTDDPM_ISA
