// Every kernel for one instruction set, and the table of them (fastddpm::Kernels).
#pragma once
#include "adamw.h"
#include "keys.h"
#include "mse.h"
#include "noising.h"
#include "reverse.h"
#include "torch_normals.h"
#include "vlb.h"

namespace FASTDDPM_ISA {

// float or double, as the rows are
template <auto kNarrow, auto kWide> struct ByRows {
  template <class Args> static void run(const Args& args, int64_t begin, int64_t end) {
    args.rows.wide ? kWide(args, begin, end) : kNarrow(args, begin, end);
    fence();
  }
};

inline void scale_any(const ScaleArgs& args, int64_t begin, int64_t end) {
  args.wide ? scale<double>(args, begin, end) : scale<float>(args, begin, end);
  fence();
}

// The normals of given words, a step's worth of rows of four at a time: how a test walks through all 2^32 words.
inline void box_muller_rows(const int64_t* rows, float* z, int64_t begin, int64_t end) {
  constexpr int kRows = kTogether * kBlocks;
  uint64_t lane[kBlocks];
  const Words order = block_lanes();
  std::memcpy(lane, &order, sizeof(lane));
  for (int64_t i = begin; i < end; i += kRows) {
    uint64_t column[4][kRows] = {};
    for (int b = 0; b < kRows; ++b) {
      const int64_t row = i + b / kBlocks * kBlocks + int64_t(lane[b % kBlocks]);
      for (int j = 0; j < 4 && row < end; ++j) column[j][b] = uint64_t(rows[4 * row + j]);
    }
    Counters w;
    std::memcpy(w.c0, column[0], sizeof(w.c0));
    std::memcpy(w.c1, column[1], sizeof(w.c1));
    std::memcpy(w.c2, column[2], sizeof(w.c2));
    std::memcpy(w.c3, column[3], sizeof(w.c3));
    float out[4 * kRows];
    box_muller(w, out);
    const int64_t left = end - i;
    std::memcpy(z + 4 * i, out, sizeof(float) * 4 * size_t(left < kRows ? left : kRows));
  }
}

constexpr Kernels table(const char* name, bool (*runs_here)()) {
  return {name,
          runs_here,
          timesteps,
          randn,
          ByRows<noising<float>, noising<double>>::template run<NoisingArgs>,
          ByRows<mse<float>, mse<double>>::template run<MseArgs>,
          scale_any,
          ByRows<vlb<float>, vlb<double>>::template run<VlbArgs>,
          ByRows<reverse<float>, reverse<double>>::template run<ReverseArgs>,
          ByRows<reverse_backward<float>, reverse_backward<double>>::template run<ReverseBackwardArgs>,
          squares,
          update,
          torch_words,
          torch_normals,
          box_muller_rows};
}

}  // namespace FASTDDPM_ISA
