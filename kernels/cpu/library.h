// The ops (fastddpm/ops.py holds their schemas), but for the losses' and the optimizer's: each binds its tensors and hands the
// chunks to threads.
//
// On libtorch's stable ABI: one binary for torch >= 2.10. Errors are raised before any thread starts.
#pragma once
#include "losses.h"
#include "optimizer.h"

namespace fastddpm {
namespace {

constexpr int64_t kStepBits = 28, kStepMask = (int64_t(1) << kStepBits) - 1;

// ---- keys ----

Noise noise_of(const Tensor& key) {
  Noise noise;
  bind_key(noise, "key", key, key.dim() ? key.size(0) : 1);
  return noise;
}

void fill_key_(const Tensor& key, int64_t seed, int64_t subsequence) {
  const Noise noise = noise_of(key);
  auto* at = const_cast<int64_t*>(noise.key);
  for (int64_t b = 0; b < key.size(0); ++b, at += noise.key_strides[0]) {
    at[0] = seed;
    at[noise.key_strides[1]] = int64_t(uint64_t(subsequence) + uint64_t(b));
  }
}

void advance_(const Tensor& key, int64_t steps) {
  const Noise noise = noise_of(key);
  auto* column = const_cast<int64_t*>(noise.key) + noise.key_strides[1];
  const auto step = [&](int64_t b) { return (column[b * noise.key_strides[0]] >> 32) & kStepMask; };
  if (steps < -kStepMask || steps > kStepMask) throw std::overflow_error("steps: expected less than 2^28, got " + std::to_string(steps));
  for (int64_t b = 0; b < key.size(0); ++b)
    if (step(b) + steps < 0 || step(b) + steps > kStepMask)
      throw std::overflow_error("steps: expected every step to stay in 0 .. 2^28 - 1, got " + std::to_string(steps) +
                                " more than " + std::to_string(step(b)));
  for (int64_t b = 0; b < key.size(0); ++b) column[b * noise.key_strides[0]] += steps << 32;
}

Tensor timesteps(const Tensor& key, int64_t num_timesteps) {
  const Noise noise = noise_of(key);
  Tensor t = fresh(key, key.size(0));
  kernels->timesteps(noise, num_timesteps, key.size(0), static_cast<int64_t*>(t.data_ptr()));
  return t;
}

void randn_(const Tensor& out, const Tensor& key) {
  RandnArgs args;
  args.plan = bind({{"out", &args.out, &out}});
  bind_key(args.noise, "key", key, args.plan.batch);
  run(kernels->randn, args);
}

void box_muller_(const Tensor& out, const Tensor& words) {
  const int64_t n = words.size(0);
  if (!words.is_contiguous() || words.scalar_type() != ScalarType::Long || words.numel() != 4 * n)
    refuse("words", "contiguous int64 [N, 4]", text(words));
  if (!out.is_contiguous() || out.scalar_type() != ScalarType::Float || out.numel() != 4 * n)
    refuse("out", "contiguous float32 [N, 4]", text(out));
  torch::stable::parallel_for(0, n, 1 << 16, [&](int64_t begin, int64_t end) {
    kernels->box_muller(static_cast<const int64_t*>(words.data_ptr()), static_cast<float*>(out.data_ptr()), begin, end);
  });
}

// ---- noising ----

Tensor noising(const Tensor& x, const MaybeTensor& noise, const Tensor& t, const Tensor& rows) {
  Tensor out = fresh_like(x);
  NoisingArgs args;
  args.plan = bind({{"x", &args.x, &x}, {"out", &args.out, &out}, {"noise", &args.noise.tensor, noise_tensor(noise)}});
  const auto numbers = bind_rows<NoisingRow>(args.rows, "t", t, rows, args.plan.batch);
  bind_key(args.noise, "noise", noise, args.plan.batch);
  run(kernels->noising, args);
  return out;
}

std::tuple<Tensor, Tensor> noising_uniform(const Tensor& x, const Tensor& key, const Tensor& rows) {
  const Tensor t = timesteps(key, rows.size(0));
  return {noising(x, key, t, rows), t};
}

// ---- reverse ----

// What a step and its gradient are given for each sample. The args read it there: it must live as long.
struct StepSamples {
  std::vector<int64_t> numbers;
  Samples guidance, bound;

  StepSamples(StepArgs& args, const Tensor& index, const Tensor& rows, const MaybeTensor& g, const MaybeTensor& b)
      : numbers(bind_rows<StepRow>(args.rows, "i", index, rows, args.plan.batch)),
        guidance(bind_samples("guidance", g, args.plan.batch, args.rows.wide)),
        bound(bind_samples("bound", b, args.plan.batch, args.rows.wide)) {
    args.guidance = g ? guidance.data() : nullptr, args.bound = b ? bound.data() : nullptr;
  }
};

std::tuple<Tensor, Tensor, Tensor> reverse_step(const Tensor& model_output, const Tensor& x_t, const MaybeTensor& noise,
                                                const Tensor& index, const Tensor& rows, bool return_x_0,
                                                const MaybeTensor& uncond_output, const MaybeTensor& guidance,
                                                const MaybeTensor& bound, const std::optional<std::vector<Tensor>>& history,
                                                bool return_kept) {
  const size_t count = history ? history->size() : 0;
  if (count > kHistory) refuse("history", "at most 3 tensors", std::to_string(count));
  Tensor x_prev = fresh_like(x_t);
  Tensor x_0 = fresh_like(x_t, return_x_0), kept = fresh_like(x_t, return_kept, 1);
  const Halves output("model_output", model_output, x_t);
  const auto earlier = [&](size_t j) { return j < count ? &(*history)[j] : nullptr; };
  ReverseArgs args;
  args.plan = bind({{"x_t", &args.x_t, &x_t},
                    output.first(args.model_output),
                    output.second(args.variance),
                    output.first(args.uncond, "uncond_output", pointer(uncond_output)),
                    {"history", &args.history[0], earlier(0)},
                    {"history", &args.history[1], earlier(1)},
                    {"history", &args.history[2], earlier(2)},
                    {"x_prev", &args.x_prev, &x_prev},
                    {"x_0", &args.x_0, return_x_0 ? &x_0 : nullptr},
                    {"kept", &args.kept, return_kept ? &kept : nullptr},
                    {"noise", &args.noise.tensor, noise_tensor(noise)}});
  const StepSamples samples(args, index, rows, guidance, bound);
  bind_key(args.noise, "noise", noise, args.plan.batch);
  run(kernels->reverse, args);
  return {x_prev, x_0, kept};
}

std::tuple<Tensor, Tensor, Tensor> reverse_step_backward(const MaybeTensor& grad_x_prev, const MaybeTensor& grad_x_0,
                                                         const Tensor& model_output, const Tensor& x_t, const MaybeTensor& noise,
                                                         const Tensor& index, const Tensor& rows,
                                                         const MaybeTensor& uncond_output, const MaybeTensor& guidance,
                                                         const MaybeTensor& bound, const MaybeTensor& grad_kept) {
  Tensor grad_model_output = fresh_like(model_output), grad_x_t = fresh_like(x_t);
  Tensor grad_uncond = uncond_output ? fresh_like(*uncond_output) : fresh_like(x_t, false);
  const Tensor* wanted = uncond_output ? &grad_uncond : nullptr;
  const Halves output("model_output", model_output, x_t), grad("grad_model_output", grad_model_output, x_t);
  ReverseBackwardArgs args;
  args.plan = bind({{"x_t", &args.x_t, &x_t},
                    output.first(args.model_output),
                    output.second(args.variance),
                    output.first(args.uncond, "uncond_output", pointer(uncond_output)),
                    {"grad_x_prev", &args.grad_x_prev, pointer(grad_x_prev)},
                    {"grad_x_0", &args.grad_x_0, pointer(grad_x_0)},
                    {"grad_kept", &args.grad_kept, pointer(grad_kept)},
                    grad.first(args.grad_model_output),
                    grad.second(args.grad_variance),
                    grad.first(args.grad_uncond, "grad_uncond_output", wanted),
                    grad.second(args.grad_uncond_variance, "grad_uncond_output", wanted),
                    {"grad_x_t", &args.grad_x_t, &grad_x_t},
                    {"noise", &args.noise.tensor, output.learned() ? noise_tensor(noise) : nullptr}});
  const StepSamples samples(args, index, rows, guidance, bound);
  bind_key(args.noise, "noise", noise, args.plan.batch);
  run(kernels->reverse_backward, args);
  return {grad_model_output, grad_x_t, grad_uncond};
}

}  // namespace
}  // namespace fastddpm

STABLE_TORCH_LIBRARY_FRAGMENT(fastddpm, m) {
  m.def("box_muller_(Tensor(a!) out, Tensor words) -> ()");  // CPU only: the exhaustive proof's way to give it any word
}

STABLE_TORCH_LIBRARY_IMPL(fastddpm, CPU, m) {
  m.impl("fill_key_", TORCH_BOX(&fastddpm::fill_key_));
  m.impl("advance_", TORCH_BOX(&fastddpm::advance_));
  m.impl("timesteps", TORCH_BOX(&fastddpm::timesteps));
  m.impl("randn_", TORCH_BOX(&fastddpm::randn_));
  m.impl("box_muller_", TORCH_BOX(&fastddpm::box_muller_));
  m.impl("noising", TORCH_BOX(&fastddpm::noising));
  m.impl("noising_uniform", TORCH_BOX(&fastddpm::noising_uniform));
  m.impl("mse_loss", TORCH_BOX(&fastddpm::mse_loss));
  m.impl("mse_loss_backward", TORCH_BOX(&fastddpm::mse_loss_backward));
  m.impl("scale_grad_", TORCH_BOX(&fastddpm::scale_grad_));
  m.impl("vlb_loss", TORCH_BOX(&fastddpm::vlb_loss));
  m.impl("vlb_loss_backward", TORCH_BOX(&fastddpm::vlb_loss_backward));
  m.impl("hybrid_loss", TORCH_BOX(&fastddpm::hybrid_loss));
  m.impl("hybrid_loss_backward", TORCH_BOX(&fastddpm::hybrid_loss_backward));
  m.impl("vlb_terms", TORCH_BOX(&fastddpm::vlb_terms));
  m.impl("reverse_step", TORCH_BOX(&fastddpm::reverse_step));
  m.impl("reverse_step_backward", TORCH_BOX(&fastddpm::reverse_step_backward));
  m.impl("adamw_", TORCH_BOX(&fastddpm::adamw_));
  m.impl("total_norm", TORCH_BOX(&fastddpm::total_norm));
}
