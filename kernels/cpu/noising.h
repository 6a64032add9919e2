// noising: x_t = a x_0 + s z for the row of the sample's t (Ho et al. 2020, eq. 4; eq. 2 for one step).
//
//   out = fma(a, x, s z);  without noise, as in the backward, out = a x
//
// Moves: reads x, writes out (8 bytes an element in float32). Noise from a key moves nothing.
#pragma once
#include "chunk.h"

namespace FASTDDPM_ISA {

inline void noise_in_steps(const NoisingArgs& args, const Chunk& chunk, NoisingRow<float> k) {
  Buffer<float> none;
  const float* x = chunk.fetch(args.x, none);
  float* out = chunk.place<float>(args.out);
  chunk.each_step(args.noise, x, [&](int64_t at, int64_t n, float* z) {
    float* to = args.out.large ? z : out + at;
    for (int64_t i = 0; i < n; ++i) to[i] = fused(k.a, x[at + i], k.s * z[i]);
    if (args.out.large) stream(z, out + at, n);
  });
}

template <class T> void noising(const NoisingArgs& args, int64_t begin, int64_t end) {
  Buffer<T> x_buffer, z_buffer, out_buffer;
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    const auto k = chunk.row<NoisingRow<T>>(args.rows);
    if constexpr (sizeof(T) == 4) {
      if (chunk.in_steps(args.noise, args.x, args.out)) {
        noise_in_steps(args, chunk, k);
        continue;
      }
    }
    const T* x = chunk.fetch(args.x, x_buffer);
    const T* z = chunk.noise(args.noise, z_buffer);
    T* out = chunk.target(args.out, out_buffer);
    if (z) {
      for (int64_t i = 0; i < chunk.count; ++i) out[i] = fused(k.a, x[i], k.s * z[i]);
    } else {
      for (int64_t i = 0; i < chunk.count; ++i) out[i] = k.a * x[i];
    }
    chunk.commit(args.out, out, out_buffer);
  }
}

}  // namespace FASTDDPM_ISA
