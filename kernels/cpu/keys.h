// The noise alone: timesteps and normals from keys.
//
// Moves: randn writes out; timesteps 8 bytes a sample.
#pragma once
#include "chunk.h"

namespace FASTDDPM_ISA {

// t = mulhi(w[0], T) of block 0 in the timestep's stream, whatever stream the key names
inline void timesteps(const Noise& noise, int64_t num_timesteps, int64_t batch, int64_t* t) {
  constexpr uint64_t kStream = uint64_t(3) << 60, kRest = (uint64_t(1) << 60) - 1;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t* key = noise.key + b * noise.key_strides[0];
    const uint64_t subsequence = (uint64_t(key[noise.key_strides[1]]) & kRest) | kStream;
    Counters w;
    Philox(key[0], int64_t(subsequence))(0, w);
    uint64_t first;
    std::memcpy(&first, w.c0, sizeof(first));
    t[b] = int64_t((first & 0xFFFFFFFFu) * uint64_t(num_timesteps) >> 32);
  }
}

inline void randn(const RandnArgs& args, int64_t begin, int64_t end) {
  Buffer<float> buffer;
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    chunk.normals(args.noise, buffer.values);
    chunk.commit(args.out, buffer.values, buffer);
  }
  fence();
}

}  // namespace FASTDDPM_ISA
