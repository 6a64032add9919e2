// reverse: one update of any sampler, for the row of the sample's step
// (Ho et al. 2020, algorithm 2, for DDPM's rows; Nichol & Dhariwal 2021, 3.1, for a learned variance v; Ho & Salimans 2022,
// eq. 6, for the guidance with u, the output without the condition; h_j: what earlier steps kept).
//
//   out'    = fma(g, out - u, u), or out
//   x_0_hat = clamp(fma(p_o, out', p_x x), -bound, bound)
//   x_prev  = fma(sigma', z, fma(k_h3, h_3, fma(k_h2, h_2, fma(k_h1, h_1, fma(k_o, out', fma(k_0, x_0_hat, k_x x)))))),
//             sigma' = sigma, or sigma e^(k_v v)
//   kept    = fma(c_0, x_0_hat, c_x x)
//
// An operand whose factor is 0 counts as 0, whatever it holds: an infinity that is clipped leaves x_prev finite.
//
// A sample's own g takes the row's place; its own bound b makes clamp(x_0_hat, -b, b) / b: p_x / b, p_o / b and a bound of 1.
//
// The backward finds again where the clamp let through (G, H, M the gradients of x_prev, x_0_hat, kept; e = 0 where clamped):
//
//   e = fma(c_0, M, k_0 G + H);  grad_x = fma(p_x, e, fma(c_x, M, k_x G));  grad_v = G sigma' z k_v
//   grad_out' = fma(p_o, e, k_o G), grad_out's without u;  grad_out = g grad_out';  grad_u = fma(-g, grad_out', grad_out')
//
// Moves: reads x and out (v, u, each h), writes x_prev (x_0_hat, kept); backward reads x, out, G (H, M, u, v), writes gradients.
#pragma once
#include "exponential.h"
#include "chunk.h"

namespace FASTDDPM_ISA {

template <class T> StepRow<T> step_row(const StepArgs& args, const Chunk& chunk) {
  StepRow<T> k = chunk.row<StepRow<T>>(args.rows);
  if (args.guidance) k.g = T(args.guidance[chunk.sample]);
  if (args.bound) {
    const T inverse = 1 / T(args.bound[chunk.sample]);
    k.p_x *= inverse, k.p_o *= inverse, k.bound = 1;
  }
  return k;
}

// x, or 0 where its factor k is 0
template <class T> inline T masked(T k, T x) { return k != T(0) ? x : T(0); }

// out'. The buffer may be where out lies.
template <class T> const T* guided(const StepArgs& args, const Chunk& chunk, T g, const T* out, Buffer<T>& buffer) {
  Buffer<T> u_buffer;
  const T* u = chunk.fetch(args.uncond, u_buffer);
  if (!u) return out;
  for (int64_t i = 0; i < chunk.count; ++i) buffer.values[i] = fused(g, masked(g, out[i] - u[i]), u[i]);
  return buffer.values;
}

// sigma' z
template <class T> inline void scale_noise(const T* z, const T* v, T sigma, T k_v, int64_t n, T* scaled) {
  for (int64_t i = 0; i < n; ++i) scaled[i] = sigma * exponential(k_v * masked(k_v, v[i])).value * z[i];
}

// What a coefficient of x or out' multiplies: zeros where it is 0, which costs less than a choice an element.
template <class T> struct Operands {
  const T *p_x, *p_o, *k_x, *k_o;
  Operands(const StepRow<T>& k, const T* x, const T* out) {
    static const Buffer<T> zeros{};
    const auto of = [](T factor, const T* values) { return factor != T(0) ? values : zeros.values; };
    p_x = of(k.p_x, x), p_o = of(k.p_o, out), k_x = of(k.k_x, x), k_o = of(k.k_o, out);
  }
};

// x_0_hat before the clamp
template <class T> inline T prediction(const StepRow<T>& k, const Operands<T>& of, int64_t i) {
  return fused(k.p_o, of.p_o[i], k.p_x * of.p_x[i]);
}

// x_0_hat, and x_prev with the first J terms. In one pass: of so many tensors, pieces that lie alike in their pages would drive
// each other out of the first-level cache between two.
template <int J, class T>
void combine(const StepRow<T>& k, const Operands<T>& of, const T* const* terms, const T* factors, int64_t n, T* __restrict x_0,
             T* __restrict prev) {
  for (int64_t i = 0; i < n; ++i) {
    const T v = prediction(k, of, i);
    const T low = v < -k.bound ? -k.bound : v;  // a NaN passes both
    x_0[i] = low > k.bound ? k.bound : low;
    T sum = fused(k.k_o, of.k_o[i], fused(k.k_0, masked(k.k_0, x_0[i]), k.k_x * of.k_x[i]));
    for (int j = 0; j < J; ++j) sum = fused(factors[j], terms[j][i], sum);
    prev[i] = sum;
  }
}

template <class T> void reverse(const ReverseArgs& args, int64_t begin, int64_t end) {
  Buffer<T> out_buffer, v_buffer, x_buffer, h_buffers[kHistory], z_buffer, prev_buffer, x_0_buffer, kept_buffer;
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    const auto k = step_row<T>(args, chunk);
    T sigma = k.sigma;
    const T* out = guided(args, chunk, k.g, chunk.fetch(args.model_output, out_buffer), out_buffer);
    const T* x = chunk.fetch(args.x_t, x_buffer);
    const T* z = sigma != T(0) ? chunk.noise(args.noise, z_buffer) : nullptr;
    if (const T* v = z ? chunk.fetch(args.variance, v_buffer) : nullptr) {
      scale_noise(z, v, sigma, k.k_v, chunk.count, z_buffer.values);
      z = z_buffer.values, sigma = 1;
    }
    const Operands<T> of(k, x, out);
    T* prev = chunk.target(args.x_prev, prev_buffer);
    T* returned = chunk.target(args.x_0, x_0_buffer);
    T* x_0 = returned ? returned : x_0_buffer.values;
    const T* terms[kHistory + 1];
    T factors[kHistory + 1];
    int count = 0;
    const auto add = [&](T factor, const T* term) {
      if (term) factors[count] = factor, terms[count++] = term;
    };
    const T of_history[kHistory] = {k.k_h1, k.k_h2, k.k_h3};
    for (int j = 0; j < kHistory; ++j)
      if (of_history[j] != T(0)) add(of_history[j], chunk.fetch(args.history[j], h_buffers[j]));
    add(sigma, z);
    constexpr decltype(&combine<0, T>) with[] = {combine<0, T>, combine<1, T>, combine<2, T>, combine<3, T>, combine<4, T>};
    with[count](k, of, terms, factors, chunk.count, x_0, prev);
    chunk.commit(args.x_prev, prev, prev_buffer);
    if (returned) chunk.commit(args.x_0, returned, x_0_buffer);
    if (T* kept = chunk.target(args.kept, kept_buffer)) {
      for (int64_t i = 0; i < chunk.count; ++i) kept[i] = fused(k.c_0, masked(k.c_0, x_0[i]), k.c_x * masked(k.c_x, x[i]));
      chunk.commit(args.kept, kept, kept_buffer);
    }
  }
}

// grad_out' and grad_x, which lie apart: of so many tensors that GCC would not check it, and find no vectors.
template <class T>
inline void differentiate(const StepRow<T>& k, const Operands<T>& of, const T* g, const T* h, const T* m, int64_t n,
                          T* __restrict grad_out, T* __restrict grad_x) {
  for (int64_t i = 0; i < n; ++i) {
    const T v = prediction(k, of, i);
    const T through = v < -k.bound || v > k.bound ? T(0) : fused(k.c_0, m[i], k.k_0 * g[i] + h[i]);
    grad_out[i] = fused(k.p_o, through, k.k_o * g[i]);
    grad_x[i] = fused(k.p_x, through, fused(k.c_x, m[i], k.k_x * g[i]));
  }
}

template <class T> void reverse_backward(const ReverseBackwardArgs& args, int64_t begin, int64_t end) {
  Buffer<T> g_buffer, h_buffer, m_buffer, out_buffer, x_buffer, v_buffer, z_buffer;
  Buffer<T> grad_out_buffer, grad_u_buffer, grad_x_buffer, grad_v_buffer;
  const Buffer<T> zeros{};
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    const auto k = step_row<T>(args, chunk);
    const T* g = chunk.fetch(args.grad_x_prev, g_buffer);
    const T* h = chunk.fetch(args.grad_x_0, h_buffer);
    const T* m = chunk.fetch(args.grad_kept, m_buffer);
    if (!g) g = zeros.values;
    if (!h) h = zeros.values;
    if (!m) m = zeros.values;
    const T* out = guided(args, chunk, k.g, chunk.fetch(args.model_output, out_buffer), out_buffer);
    const Operands<T> of(k, chunk.fetch(args.x_t, x_buffer), out);
    T* grad_out = chunk.target(args.grad_model_output, grad_out_buffer);
    T* grad_x = chunk.target(args.grad_x_t, grad_x_buffer);
    differentiate(k, of, g, h, m, chunk.count, grad_out, grad_x);
    chunk.commit(args.grad_x_t, grad_x, grad_x_buffer);
    if (T* grad_u = chunk.target(args.grad_uncond, grad_u_buffer)) {
      for (int64_t i = 0; i < chunk.count; ++i) {
        grad_u[i] = fused(-k.g, grad_out[i], grad_out[i]);
        grad_out[i] *= k.g;
      }
      chunk.commit(args.grad_uncond, grad_u, grad_u_buffer);
    }
    if (T* rest = chunk.target(args.grad_uncond_variance, v_buffer)) {
      std::memset(rest, 0, size_t(chunk.count) * sizeof(T));
      chunk.commit(args.grad_uncond_variance, rest, v_buffer);
    }
    if (T* grad_v = chunk.target(args.grad_variance, grad_v_buffer)) {
      const T* z = k.sigma != T(0) ? chunk.noise(args.noise, z_buffer) : nullptr;
      if (z) scale_noise(z, chunk.fetch(args.variance, v_buffer), k.sigma * k.k_v, k.k_v, chunk.count, z_buffer.values);
      for (int64_t i = 0; i < chunk.count; ++i) grad_v[i] = z ? g[i] * z_buffer.values[i] : T(0);
      chunk.commit(args.grad_model_output, grad_out, grad_out_buffer, args.grad_variance, grad_v, grad_v_buffer);
    } else {
      chunk.commit(args.grad_model_output, grad_out, grad_out_buffer);
    }
  }
}

}  // namespace FASTDDPM_ISA
