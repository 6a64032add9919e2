// reverse: one update of any sampler, for the row of the sample's step
// (Ho et al. 2020, algorithm 2, for DDPM's rows; Nichol & Dhariwal 2021, 3.1, for a learned variance v).
//
//   x_0_hat = clamp(fma(p_o, out, p_x x), -bound, bound)
//   x_prev  = fma(sigma', z, fma(k_o, out, fma(k_0, x_0_hat, k_x x))),  sigma' = sigma, or sigma e^(k_v v)
//
// The backward finds again where the clamp let through (g the gradient of x_prev, h of x_0_hat; e = 0 where clamped):
//
//   e = k_0 g + h;  grad_out = fma(p_o, e, k_o g);  grad_x = fma(p_x, e, k_x g);  grad_v = g sigma' z k_v
//
// Moves: reads x and out (and v), writes x_prev (and x_0_hat); backward reads x, out, g (and h, v), writes the gradients.
#pragma once
#include "exponential.h"
#include "chunk.h"

namespace FASTDDPM_ISA {

// sigma' z
template <class T> inline void scale_noise(const T* z, const T* v, T sigma, T k_v, int64_t n, T* scaled) {
  for (int64_t i = 0; i < n; ++i) scaled[i] = sigma * exponential(k_v * v[i]).value * z[i];
}

template <class T> void reverse(const ReverseArgs& args, int64_t begin, int64_t end) {
  Buffer<T> out_buffer, v_buffer, x_buffer, z_buffer, prev_buffer, x_0_buffer;
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    const auto k = chunk.row<StepRow<T>>(args.rows);
    T sigma = k.sigma;
    const T* out = chunk.fetch(args.model_output, out_buffer);
    const T* x = chunk.fetch(args.x_t, x_buffer);
    const T* z = sigma != T(0) ? chunk.noise(args.noise, z_buffer) : nullptr;
    if (const T* v = z ? chunk.fetch(args.variance, v_buffer) : nullptr) {
      scale_noise(z, v, sigma, k.k_v, chunk.count, z_buffer.values);
      z = z_buffer.values, sigma = 1;
    }
    T* prev = chunk.target(args.x_prev, prev_buffer);
    T* kept = chunk.target(args.x_0, x_0_buffer);
    T* x_0 = kept ? kept : x_0_buffer.values;
    for (int64_t i = 0; i < chunk.count; ++i) {
      const T v = fused(k.p_o, out[i], k.p_x * x[i]);
      const T low = v < -k.bound ? -k.bound : v;  // a NaN passes both
      x_0[i] = low > k.bound ? k.bound : low;
    }
    if (z) {
      for (int64_t i = 0; i < chunk.count; ++i)
        prev[i] = fused(sigma, z[i], fused(k.k_o, out[i], fused(k.k_0, x_0[i], k.k_x * x[i])));
    } else {
      for (int64_t i = 0; i < chunk.count; ++i) prev[i] = fused(k.k_o, out[i], fused(k.k_0, x_0[i], k.k_x * x[i]));
    }
    chunk.commit(args.x_prev, prev, prev_buffer);
    if (kept) chunk.commit(args.x_0, kept, x_0_buffer);
  }
}

template <class T> void reverse_backward(const ReverseBackwardArgs& args, int64_t begin, int64_t end) {
  Buffer<T> g_buffer, h_buffer, out_buffer, x_buffer, v_buffer, z_buffer, grad_out_buffer, grad_x_buffer, grad_v_buffer;
  const Buffer<T> zeros{};
  for (int64_t number = begin; number < end; ++number) {
    const Chunk chunk(args.plan, number);
    const auto k = chunk.row<StepRow<T>>(args.rows);
    const T* g = chunk.fetch(args.grad_x_prev, g_buffer);
    const T* h = chunk.fetch(args.grad_x_0, h_buffer);
    if (!g) g = zeros.values;
    if (!h) h = zeros.values;
    const T* out = chunk.fetch(args.model_output, out_buffer);
    const T* x = chunk.fetch(args.x_t, x_buffer);
    T* grad_out = chunk.target(args.grad_model_output, grad_out_buffer);
    T* grad_x = chunk.target(args.grad_x_t, grad_x_buffer);
    for (int64_t i = 0; i < chunk.count; ++i) {
      const T v = fused(k.p_o, out[i], k.p_x * x[i]);
      const T through = v < -k.bound || v > k.bound ? T(0) : k.k_0 * g[i] + h[i];
      grad_out[i] = fused(k.p_o, through, k.k_o * g[i]);
      grad_x[i] = fused(k.p_x, through, k.k_x * g[i]);
    }
    chunk.commit(args.grad_x_t, grad_x, grad_x_buffer);
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
