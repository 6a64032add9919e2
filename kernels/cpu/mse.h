// mse: loss_b = w mean (out - target)^2, target = p z + q x_0 + r x_t, for the row of the sample's t
// (Ho et al. 2020, eq. 14; Salimans & Ho 2022 for v).
//
//   target = fma(r, x_t, fma(q, x_0, p z));  d = out - target;  sum += d d;  grad = ((2 w / D) d) g
//
// Forward and backward are one pass: sums where wanted, the gradient where wanted.
// Moves: reads out (and x_0, x_t where the target has them); writes grad.
#pragma once
#include "chunk.h"

namespace FASTDDPM_ISA {

constexpr int kSums = 16;  // partial sums, the same number for every instruction set so that all give the same bits

// Of value(0) .. value(n - 1), always in the same order.
template <class T, class F> inline double sum_of(int64_t n, F value) {
  T part[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int j = 0; j < kSums; ++j) part[j] += value(i + j);
  for (int j = 0; i + j < n; ++j) part[j] += value(i + j);
  double sum = 0;
  for (int j = 0; j < kSums; ++j) sum += double(part[j]);
  return sum;
}
template <class T> inline double sum_of_squares(const T* d, int64_t n) {
  return sum_of<T>(n, [&](int64_t i) { return d[i] * d[i]; });
}

// d = out - target, for a row that has p, q and r
template <class T, class Row>
inline void difference(const T* out, const T* z, const T* x_0, const T* x_t, const Row& row, int64_t n, T* d) {
  const T p = row.p, q = row.q, r = row.r;
  if (z && !x_0 && !x_t) {
    for (int64_t i = 0; i < n; ++i) d[i] = out[i] - p * z[i];
    return;
  }
  if (z) {
    for (int64_t i = 0; i < n; ++i) d[i] = p * z[i];
  } else {
    std::memset(d, 0, size_t(n) * sizeof(T));
  }
  if (x_0)
    for (int64_t i = 0; i < n; ++i) d[i] = fused(q, x_0[i], d[i]);
  if (x_t)
    for (int64_t i = 0; i < n; ++i) d[i] = fused(r, x_t[i], d[i]);
  for (int64_t i = 0; i < n; ++i) d[i] = out[i] - d[i];
}

// epsilon's target: the difference, and the gradient where wanted, while the noise is in registers' reach.
inline void epsilon_in_steps(const MseArgs& args, const Chunk& chunk, float p, float scale, float upstream, float* d) {
  Buffer<float> none;
  const float* out = chunk.fetch(args.model_output, none);
  float* grad = args.grad.data ? chunk.place<float>(args.grad) : nullptr;
  chunk.each_step(args.noise, out, [&](int64_t at, int64_t n, float* z) {
    for (int64_t i = 0; i < n; ++i) d[at + i] = out[at + i] - p * z[i];
    if (!grad) return;
    float* to = args.grad.large ? z : grad + at;
    for (int64_t i = 0; i < n; ++i) to[i] = scale * d[at + i] * upstream;
    if (args.grad.large) stream(z, grad + at, n);
  });
}

template <class T> void mse(const MseArgs& args, int64_t begin, int64_t end) {
  Buffer<T> out_buffer, z_buffer, x_0_buffer, x_t_buffer, d_buffer, grad_buffer;
  T* d = d_buffer.values;
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    const auto& row = chunk.row<MseRow<T>>(args.rows);
    const T scale = T(2) * row.w / T(args.count), upstream = args.upstream ? T(args.upstream[chunk.sample]) : T(1);
    if constexpr (sizeof(T) == 4) {
      if (chunk.in_steps(args.noise, args.model_output, args.grad) && !args.x_0.data && !args.x_t.data) {
        epsilon_in_steps(args, chunk, row.p, scale, upstream, d);
        if (args.squares) args.squares[number] = sum_of_squares(d, chunk.count);
        continue;
      }
    }
    difference(chunk.fetch(args.model_output, out_buffer), chunk.noise(args.noise, z_buffer),
               chunk.fetch(args.x_0, x_0_buffer), chunk.fetch(args.x_t, x_t_buffer), row, chunk.count, d);
    if (args.squares) args.squares[number] = sum_of_squares(d, chunk.count);
    T* grad = chunk.target(args.grad, grad_buffer);
    if (!grad) continue;
    for (int64_t i = 0; i < chunk.count; ++i) grad[i] = scale * d[i] * upstream;
    chunk.commit(args.grad, grad, grad_buffer);
  }
}

// grad *= g: the gradient made in the forward, scaled in place. Most losses are the last node, and g is 1: then nothing moves.
template <class T> void scale(const ScaleArgs& args, int64_t begin, int64_t end) {
  Buffer<T> buffer;
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    const T upstream = T(args.upstream[chunk.sample]);
    if (upstream == T(1)) continue;
    const T* from = chunk.fetch(args.grad, buffer);
    T* to = chunk.target(args.grad, buffer);
    for (int64_t i = 0; i < chunk.count; ++i) to[i] = from[i] * upstream;
    chunk.commit(args.grad, to, buffer);
  }
}

}  // namespace FASTDDPM_ISA
