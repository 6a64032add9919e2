// adamw: the norm of all gradients, then clipping, AdamW (Loshchilov & Hutter 2019) and the weights' moving average in one pass.
//
//   sum += g g                                                     squares, in double
//   g' = scale g                                                   clipping's factor, the loss scale's inverse, maximize's sign
//   m = m + (1 - beta_1)(g' - m);   v = beta_2 v + (1 - beta_2)(g' g')
//   p = (1 - lr weight_decay) p - step m / (root sqrt(v) + eps)    step = lr / (1 - beta_1^n), root = 1 / sqrt(1 - beta_2^n)
//   e = e + (1 - decay)(p - e)
//
// A model is one line of elements, its tensors end to end, cut into pieces whatever the tensors' borders: the work is shared out
// evenly however small they are, and the norm adds the same numbers in the same order on any number of threads.
// Moves, of float32: squares reads 4 bytes an element, update reads 20 and writes 16 (16 and 12 without an average).
#pragma once
#include "mse.h"

namespace FASTDDPM_ISA {

// A weight's elements from `at` on, of those that are walked together.
struct Run {
  const Weight& weight;
  int64_t at, count;
  View view(char* data, Dtype dtype) const {
    View v;
    v.data = data, v.dtype = dtype;
    return v;
  }
  template <class T> T* of(char* data) const { return reinterpret_cast<T*>(data) + at; }
};

// Calls use(run) for a piece's part of each weight, at most kChunk elements at a time.
template <class F> inline void each_run(const AdamWArgs& args, int64_t piece, F use) {
  const int64_t begin = piece * kPiece, end = begin + kPiece;
  const Weight* w = args.weights;
  for (int64_t count = args.count; count > 1;) {  // the last weight that begins at `begin` or before
    const int64_t half = count / 2;
    if (w[half].first <= begin) w += half, count -= half;
    else count = half;
  }
  for (; w != args.weights + args.count && w->first < end; ++w) {
    const int64_t last = (end < w->first + w->numel ? end : w->first + w->numel) - w->first;
    for (int64_t at = begin > w->first ? begin - w->first : 0; at < last; at += kChunk)
      use(Run{*w, at, last - at < kChunk ? last - at : kChunk});
  }
}

// In a function of its own, which compilers vectorize; inside of its caller GCC 12 did not.
template <class T> inline double sum_of_wide_squares(const T* g, int64_t n) {
  return sum_of<double>(n, [g](int64_t i) { return double(g[i]) * double(g[i]); });
}

template <class T> inline double squares_of(const Run& run) {
  Buffer<T> buffer;
  if (run.weight.dtype == Chunk::native<T>()) return sum_of_wide_squares(run.of<T>(run.weight.grad), run.count);
  read(run.view(run.weight.grad, run.weight.dtype), run.at, 1, run.count, buffer.values);
  return sum_of_wide_squares(buffer.values, run.count);
}

inline void squares(const AdamWArgs& args, int64_t begin, int64_t end) {
  for (int64_t piece = begin; piece < end; ++piece) {
    double sum = 0;
    each_run(args, piece, [&](const Run& run) {
      if (run.weight.grad) sum += run.weight.wide ? squares_of<double>(run) : squares_of<float>(run);
    });
    args.squares[piece] = sum;
  }
}

inline float root_of(float x) { return __builtin_sqrtf(x); }
inline double root_of(double x) { return __builtin_sqrt(x); }

// One loop for all where it may be: with the average in a loop of its own the pass took a tenth longer.
template <bool kAverage, class T>
inline void step(T* __restrict p, const T* __restrict g, T* __restrict m, T* __restrict v, T* __restrict e, const StepSize& k,
                 T weight, int64_t n) {
  const T scale = T(k.scale), one_less = T(k.one_less_beta_1), beta_2 = T(k.beta_2), other = T(k.one_less_beta_2);
  const T kept = T(k.kept), step = T(k.step), root = T(k.root), eps = T(k.eps);
  for (int64_t i = 0; i < n; ++i) {
    const T x = scale * g[i];
    m[i] = m[i] + one_less * (x - m[i]);
    v[i] = beta_2 * v[i] + other * (x * x);
    p[i] = kept * p[i] - step * (m[i] / (root * root_of(v[i]) + eps));
    if (kAverage) e[i] = e[i] + weight * (p[i] - e[i]);
  }
}

template <class T> inline void average(T* __restrict e, const T* __restrict p, T weight, int64_t n) {
  for (int64_t i = 0; i < n; ++i) e[i] = e[i] + weight * (p[i] - e[i]);
}

// The weights as they are: float, or double.
template <class T> inline void update_direct(const AdamWArgs& args, const Run& run) {
  const Weight& w = run.weight;
  const auto size = args.steps[w.part];
  const T weight = T(args.one_less_decay);
  T *p = run.of<T>(w.param), *g = run.of<T>(w.grad), *m = run.of<T>(w.exp_avg), *v = run.of<T>(w.exp_avg_sq), *e = run.of<T>(w.average);
  if (w.grad && w.average) step<true>(p, g, m, v, e, size, weight, run.count);
  else if (w.grad) step<false>(p, g, m, v, e, size, weight, run.count);
  else if (w.average) average(e, p, weight, run.count);
}

// bfloat16 and float16 by way of float; the average is that of the weights as they were rounded.
inline void update_half(const AdamWArgs& args, const Run& run) {
  const Weight& w = run.weight;
  const View params = run.view(w.param, w.dtype);
  Buffer<float> p, g;
  read(params, run.at, 1, run.count, p.values);
  if (w.grad) {
    read(run.view(w.grad, w.dtype), run.at, 1, run.count, g.values);
    step<false>(p.values, g.values, run.of<float>(w.exp_avg), run.of<float>(w.exp_avg_sq), (float*)nullptr, args.steps[w.part], 0.0f,
                run.count);
    write(params, run.at, 1, run.count, p.values);
    if (w.average) read(params, run.at, 1, run.count, p.values);
  }
  if (w.average) average(run.of<float>(w.average), p.values, float(args.one_less_decay), run.count);
}

inline void update_run(const AdamWArgs& args, const Run& run) {
  const Weight& w = run.weight;
  const int64_t size = size_of(w.dtype);
  if (w.wide) update_direct<double>(args, run);
  else if (w.dtype == Dtype::kFloat32) update_direct<float>(args, run);
  else update_half(args, run);
  if (args.zero_grads && w.grad) std::memset(w.grad + run.at * size, 0, size_t(run.count * size));
}

inline void update(const AdamWArgs& args, int64_t begin, int64_t end) {
  for (int64_t piece = begin; piece < end; ++piece) each_run(args, piece, [&](const Run& run) { update_run(args, run); });
}

}  // namespace FASTDDPM_ISA
