// A pass's sums: of each chunk, of each sample, as a loss divides them.
#pragma once
#include <vector>

#include "plan.h"

namespace fastddpm {
namespace {

constexpr int kNone = 0, kMean = 1;  // a reduction; 2 is the sum

using Samples = std::vector<double>;  // [B]

// Room for a number of each chunk.
std::vector<double> per_chunk(const Plan& plan) { return std::vector<double>(size_t(plan.batch * plan.chunks)); }

// Each sample's chunks, added up in their order.
Samples added(const Plan& plan, const std::vector<double>& chunks) {
  Samples sums(size_t(plan.batch), 0);
  auto chunk = chunks.begin();
  for (double& sum : sums)
    for (int64_t c = 0; c < plan.chunks; ++c) sum += *chunk++;
  return sums;
}

// What the gradient of a sample's sum is divided by.
int64_t count_of(const Plan& plan, int64_t reduction) { return plan.numel * (reduction == kMean ? plan.batch : 1); }

// A sample's w.
template <template <class> class Row> double weight(const Rows& rows, int64_t sample) {
  const int64_t n = rows.index[sample];
  return rows.wide ? static_cast<const Row<double>*>(rows.table)[n].w : double(static_cast<const Row<float>*>(rows.table)[n].w);
}

}  // namespace
}  // namespace fastddpm
