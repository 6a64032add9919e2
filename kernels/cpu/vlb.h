// vlb: the variational bound's term of the sample's t, in nats (Ho et al. 2020, eq. 5 and 13; Nichol & Dhariwal 2021, 3.1),
// for the row of the sample's t, v the variance channel:
//
//   x_0_hat = clamp(fma(p_o, out, p_x x_t), bound);  missed = x_0 - x_0_hat, not clamped fma(-p_o, out, fma(-p_x, x_t, x_0))
//   diff  = mu~ - mu = c missed + e_0 x_0 + e_x x_t + e_o out        (the x_t terms of mu~ and mu have cancelled)
//   delta = log sigma^2 - log beta~ = fma(v_1, v, v_0)
//   t > 0:  KL  = (h(delta) + precision diff^2 e^-delta) / 2,  h(delta) = delta + expm1(-delta)
//           by diff: precision diff e^-delta;  by delta: (-expm1(-delta) - precision diff^2 e^-delta) / 2
//   t = 0:  NLL of x_0's bin, mean x_0 - diff, variance e^delta / precision (gaussian.h), in double
//
// and beside it in the same pass: hybrid's squared error (mse.h), which then has the mean channels'
// gradient to itself; for bits/dim the squared error of x_0_hat, and the next step's x_t. Forward and backward are one pass:
// sums where wanted, the gradient where wanted. An x_t that is not given is made again from x_0 and the noise.
// Moves: reads x_0, out (and x_t, v); writes the gradient (bits/dim: the next x_t).
#pragma once
#include "exponential.h"
#include "gaussian.h"
#include "mse.h"

namespace FASTDDPM_ISA {

// What a pass reads and makes of a chunk, each an array of the chunk's elements; v, by_out and by_v may be null.
template <class T> struct VlbChunk {
  const T *x_0, *x_t, *out, *v;
  T *nats, *by_out, *by_v;
  T scale;  // of the gradients by_out and by_v
};

// By how much the prediction of x_0 fails, and what follows for the means. Close numbers meet inside an fma.
template <class T> struct Prediction {
  bool clamped;
  T missed, diff;  // x_0 - x_0_hat; mu~ - mu

  Prediction(const VlbRow<T>& row, T x_0, T x_t, T out) {
    const T free = fused(row.p_o, out, row.p_x * x_t);
    const bool below = free < -row.bound, above = free > row.bound;  // a NaN is neither
    clamped = below || above;
    missed = fused(-row.p_o, out, fused(-row.p_x, x_t, x_0));
    missed = below ? x_0 + row.bound : above ? x_0 - row.bound : missed;
    diff = fused(row.e_o, out, fused(row.e_x, x_t, fused(row.e_0, x_0, row.c * missed)));
  }
  T by_output(const VlbRow<T>& row) const { return clamped ? row.e_o : row.e_o - row.c * row.p_o; }  // d diff / d out
};

// The results apart from c, since they are known to lie apart: GCC checks at most 10 pairs of pointers, and else has no vectors.
template <class T, bool kLearned, bool kByOut, bool kByV>
inline void kl(const VlbRow<T>& given, const VlbChunk<T>& c, int64_t n, T* __restrict nats, T* __restrict by_out, T* __restrict by_v) {
  const VlbRow<T> row = given;
  const Exponential<T> fixed = exponential(-row.v_0);
  const T scale = c.scale, half = T(0.5), half_v = half * row.v_1 * scale;
  for (int64_t i = 0; i < n; ++i) {
    const Prediction<T> p(row, c.x_0[i], c.x_t[i], c.out[i]);
    const Exponential<T> e = kLearned ? exponential(-fused(row.v_1, c.v[i], row.v_0)) : fixed;
    const T slope = row.precision * p.diff * e.value, squares = slope * p.diff;
    nats[i] = half * (e.excess + squares);
    if constexpr (kByOut) by_out[i] = scale * slope * p.by_output(row);
    if constexpr (kByV) by_v[i] = half_v * (-e.minus_one - squares);
  }
}

template <class T, bool kLearned, bool kByOut, bool kByV> inline void kl(const VlbRow<T>& row, const VlbChunk<T>& c, int64_t n) {
  kl<T, kLearned, kByOut, kByV>(row, c, n, c.nats, c.by_out, c.by_v);
}

// In two loops, with all that is made in buffers: else a compiler finds no vectors here.
template <class T, bool kTanh, bool kLearned> inline void first_step(const VlbRow<T>& given, const VlbChunk<T>& c, int64_t n) {
  const auto& g = given;
  const VlbRow<double> row{g.a, g.s, g.p_x, g.p_o, g.bound, g.c, g.e_0, g.e_x, g.e_o, g.v_0, g.v_1, g.precision, g.p, g.q, g.r, g.w};
  Buffer<double> off, w, v, off_by_out, beyond;
  const double root = std::sqrt(row.precision), fixed = root * exponential(-row.v_0 / 2).value;  // 1 / deviation
  for (int64_t i = 0; i < n; ++i) {
    const Prediction<double> p(row, c.x_0[i], c.x_t[i], c.out[i]);
    const LogDeviation<kTanh> deviation(kLearned ? fused(row.v_1, double(c.v[i]), row.v_0) / 2 : 0);
    const double inverse = kLearned ? root * exponential(-deviation.bounded).value : fixed;
    const Bin bin(p.diff, inverse, c.x_0[i]);
    beyond.values[i] = bin.v < kFar ? deviation.beyond : 0;  // of an open one half, whatever the deviation
    off.values[i] = bin.off, w.values[i] = bin.w, v.values[i] = bin.v;
    off_by_out.values[i] = bin.side * inverse * p.by_output(row);
  }
  const double scale = c.scale, scale_v = row.v_1 / 2 * scale;
  Buffer<T> nats, by_out, by_v;
  for (int64_t i = 0; i < n; ++i) {
    const double at = off.values[i], half = w.values[i];
    const Slopes log_p = kTanh ? tanh_bin(at, half, v.values[i]) : log_bin(at, half, v.values[i]);
    nats.values[i] = T(beyond.values[i] - log_p.value);
    by_out.values[i] = T(-scale * log_p.by_off * off_by_out.values[i]);
    by_v.values[i] = T(scale_v * (at * log_p.by_off + half * log_p.by_w));
  }
  std::memcpy(c.nats, nats.values, n * sizeof(T));
  if (c.by_out) std::memcpy(c.by_out, by_out.values, n * sizeof(T));
  if (c.by_v) std::memcpy(c.by_v, by_v.values, n * sizeof(T));
}

template <class T> inline void first_step(const VlbRow<T>& row, const VlbChunk<T>& c, bool tanh_cdf, int64_t n) {
  if (c.v) return tanh_cdf ? first_step<T, true, true>(row, c, n) : first_step<T, false, true>(row, c, n);
  return tanh_cdf ? first_step<T, true, false>(row, c, n) : first_step<T, false, false>(row, c, n);
}

template <class T> inline void term(bool first, const VlbRow<T>& row, const VlbChunk<T>& c, bool tanh_cdf, int64_t n) {
  if (first) return first_step(row, c, tanh_cdf, n);
  if (!c.v) return c.by_out ? kl<T, false, true, false>(row, c, n) : kl<T, false, false, false>(row, c, n);
  if (!c.by_v) return kl<T, true, false, false>(row, c, n);
  return c.by_out ? kl<T, true, true, true>(row, c, n) : kl<T, true, false, true>(row, c, n);
}

// x_t as q_sample made it: rounded to the dtype that it has in memory.
template <class T> inline void make_x_t(const T* x_0, const T* z, T a, T s, Dtype dtype, int64_t n, T* x_t) {
  for (int64_t i = 0; i < n; ++i) x_t[i] = fused(a, x_0[i], s * z[i]);
  if (dtype == Chunk::native<T>()) return;
  alignas(64) char memory[kChunk * sizeof(double)];
  View rounded;
  rounded.data = memory, rounded.dtype = dtype;
  write(rounded, 0, 1, n, x_t);
  read(rounded, 0, 1, n, x_t);
}

template <class T> void vlb(const VlbArgs& args, int64_t begin, int64_t end) {
  Buffer<T> x_0_buffer, x_t_buffer, out_buffer, v_buffer, z_buffer, d_buffer, nats, by_out, by_v, next_buffer;
  T* d = d_buffer.values;
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    const int64_t n = chunk.count, sample = chunk.sample;
    const auto row = chunk.row<VlbRow<T>>(args.rows);
    const T* z = chunk.noise(args.noise, z_buffer);
    VlbChunk<T> c;
    c.x_0 = chunk.fetch(args.x_0, x_0_buffer);
    c.x_t = chunk.fetch(args.x_t, x_t_buffer);
    if (!c.x_t) {
      make_x_t(c.x_0, z, row.a, row.s, args.x_0.dtype, n, x_t_buffer.values);
      c.x_t = x_t_buffer.values;
    }
    c.out = chunk.fetch(args.model_output, out_buffer);
    c.v = chunk.fetch(args.variance, v_buffer);
    T* grad = chunk.target(args.grad, by_out);
    T* grad_v = chunk.target(args.grad_variance, by_v);
    c.nats = nats.values, c.by_out = args.hybrid ? nullptr : grad, c.by_v = grad_v;  // hybrid's mean is detached here
    c.scale = grad ? T(args.vlb_scale[sample]) : T(0);
    term(args.rows.index[sample] == 0, row, c, args.tanh_cdf, n);
    if (args.hybrid)
      difference(c.out, z, row.q != 0 ? c.x_0 : nullptr, row.r != 0 ? c.x_t : nullptr, row, n, d);
    if (args.nats) {
      args.nats[number] = sum_of<T>(n, [&](int64_t i) { return c.nats[i]; });
      if (args.terms)
        for (int64_t i = 0; i < n; ++i) d[i] = Prediction<T>(row, c.x_0[i], c.x_t[i], c.out[i]).missed;
      args.squares[number] = args.hybrid || args.terms ? sum_of_squares(d, n) : 0;
    }
    if (grad) {
      if (args.hybrid) {
        const T to_mse = T(args.mse_scale[sample] * double(row.w));
        for (int64_t i = 0; i < n; ++i) grad[i] = to_mse * d[i];
      }
      if (grad_v) chunk.commit(args.grad, grad, by_out, args.grad_variance, grad_v, by_v);
      else chunk.commit(args.grad, grad, by_out);
    }
    if (T* next = chunk.target(args.next, next_buffer)) {
      const auto& next_row = chunk.row<VlbRow<T>>(args.next_rows);
      const T* next_z = chunk.noise(args.next_noise, z_buffer);
      for (int64_t i = 0; i < n; ++i) next[i] = fused(next_row.a, c.x_0[i], next_row.s * next_z[i]);
      chunk.commit(args.next, next, next_buffer);
    }
  }
}

}  // namespace FASTDDPM_ISA
