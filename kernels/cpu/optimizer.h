// The optimizer's op, on adamw.h: its tensors to one line of elements, then a pass for the norm and one for all the rest.
#pragma once
#include <cmath>

#include "losses.h"

namespace fastddpm {
namespace {

using Tensors = std::vector<Tensor>;

struct AdamWTensors {
  const Tensors &params, &exp_avgs, &exp_avg_sqs, &averages;
  Tensors grads;
};

// How a param lies. What is asked of it for each of its tensors is asked once: each question is a call into libtorch.
struct Placement {
  const Tensor& param;
  const int64_t numel = param.numel();
  const bool contiguous = param.is_contiguous();

  // Whether x has its shape and strides. (Two contiguous ones of as many elements are taken for alike: autograd sees to a
  // gradient's shape, and to ask for every size and stride cost 104 weights some 50 us.)
  bool holds(const Tensor& x) const {
    if (!x.is_cpu() || x.numel() != numel) return false;
    if (contiguous && x.is_contiguous()) return true;
    bool same = x.dim() == param.dim();
    for (int64_t d = 0; same && d < param.dim(); ++d)
      same = x.size(d) == param.size(d) && (x.size(d) == 1 || x.stride(d) == param.stride(d));
    return same;
  }
};

char* memory_of(const char* name, const Tensor& x, const Placement& place, ScalarType dtype) {
  if (x.scalar_type() != dtype || !place.holds(x))
    refuse(name, std::string("a tensor like its param (") + text(place.param) + "), of " + name_of(dtype) + " and its strides", text(x));
  return static_cast<char*>(x.data_ptr());
}

// Lays a gradient as its param lies: autograd nearly always has it so.
void lay_out(Tensor& grad, const Placement& place) {
  const Tensor& param = place.param;
  if (place.holds(grad) || grad.scalar_type() != param.scalar_type() || grad.dim() != param.dim()) return;
  for (int64_t d = 0; d < param.dim(); ++d)
    if (grad.size(d) != param.size(d)) return;  // refused
  Tensor copy = fresh_like(param);
  torch::stable::copy_(copy, grad);
  grad = copy;
}

// A weight whose grad is [0] has none: only its average moves.
Weight bind_weight(AdamWTensors& all, size_t i, int64_t first, int64_t part) {
  const Placement place{all.params[i]};
  const Tensor& param = place.param;
  Weight w{};
  w.dtype = dtype_of({"params", nullptr, &param});
  w.wide = w.dtype == Dtype::kFloat64;
  w.first = first, w.numel = place.numel, w.part = part;
  if (!param.is_cpu() || !(place.contiguous || is_dense(param))) refuse("params", "tensors on the CPU without gaps", text(param));
  const ScalarType own = param.scalar_type(), wide = w.wide ? ScalarType::Double : ScalarType::Float;
  w.param = static_cast<char*>(param.data_ptr());
  if (all.grads[i].numel()) {
    lay_out(all.grads[i], place);
    w.grad = memory_of("grads", all.grads[i], place, own);
    w.exp_avg = memory_of("exp_avgs", all.exp_avgs[i], place, wide);
    w.exp_avg_sq = memory_of("exp_avg_sqs", all.exp_avg_sqs[i], place, wide);
  }
  if (!all.averages.empty()) w.average = memory_of("averages", all.averages[i], place, wide);
  return w;
}

std::vector<Weight> bind_weights(AdamWTensors& all, const std::vector<int64_t>& counts) {
  const size_t count = all.params.size();
  using Named = std::pair<const char*, const Tensors*>;
  for (const auto& [name, tensors] : {Named{"grads", &all.grads}, {"exp_avgs", &all.exp_avgs}, {"exp_avg_sqs", &all.exp_avg_sqs}})
    if (tensors->size() != count) refuse(name, std::to_string(count) + " tensors", std::to_string(tensors->size()));
  if (!all.averages.empty() && all.averages.size() != count)
    refuse("averages", std::to_string(count) + " tensors, or none", std::to_string(all.averages.size()));
  int64_t total = 0;
  for (const int64_t n : counts) total += n;
  if (total != int64_t(count)) refuse("counts", std::to_string(count) + " in all, as params", std::to_string(total));
  std::vector<Weight> weights;
  weights.reserve(count);
  int64_t first = 0;
  for (size_t part = 0; part < counts.size(); ++part)
    for (int64_t j = 0; j < counts[part]; ++j) {
      weights.push_back(bind_weight(all, weights.size(), first, int64_t(part)));
      first += weights.back().numel;
    }
  return weights;
}

// The average's decay at its n-th update, n from 1: with warm-up that of diffusers' EMAModel, whose first update is a copy too.
double decay_at(double decay, double n, int64_t update_after, bool warmup) {
  const double since = n - 1 - double(update_after);
  if (since < 0 || (warmup && since == 0)) return 0;
  return warmup ? std::min(decay, (1 + since) / (10 + since)) : decay;
}

StepSize step_size(const AdamWRow<double>& row, double n, double scale) {
  StepSize k;
  k.scale = row.sign * scale;
  k.one_less_beta_1 = 1 - row.beta_1, k.beta_2 = row.beta_2, k.one_less_beta_2 = 1 - row.beta_2;
  k.kept = 1 - row.lr * row.weight_decay, k.eps = row.eps;
  k.step = row.lr / (1 - std::pow(row.beta_1, n));
  k.root = 1 / std::sqrt(1 - std::pow(row.beta_2, n));
  return k;
}

const float* scalar(const char* name, const MaybeTensor& x) {
  if (!x) return nullptr;
  if (!x->is_cpu() || x->scalar_type() != ScalarType::Float || x->numel() != 1) refuse(name, "one float32 on the CPU", text(*x));
  return static_cast<const float*>(x->data_ptr());
}

// A contiguous table of numbers.
template <class T> T* numbers_of(const char* name, const Tensor& x, ScalarType dtype, int64_t count) {
  if (!x.is_cpu() || x.scalar_type() != dtype || x.numel() != count || !x.is_contiguous())
    refuse(name, std::string("contiguous ") + name_of(dtype) + ", " + std::to_string(count) + " in all, on the CPU", text(x));
  return static_cast<T*>(x.data_ptr());
}

void run_pieces(void (*kernel)(const AdamWArgs&, int64_t, int64_t), const AdamWArgs& args) {
  constexpr int64_t kGrainOfPieces = 2;
  const Weight& last = args.weights[args.count - 1];
  const int64_t pieces = (last.first + last.numel + kPiece - 1) / kPiece;
  if (pieces <= kGrainOfPieces) return kernel(args, 0, pieces);
  torch::stable::parallel_for(0, pieces, kGrainOfPieces, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

double norm_of(AdamWArgs& args) {
  const Weight& last = args.weights[args.count - 1];
  std::vector<double> squares(size_t((last.first + last.numel + kPiece - 1) / kPiece), 0);
  args.squares = squares.data();
  run_pieces(kernels->squares, args);
  double sum = 0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum);
}

// As torch.nn.utils.clip_grad_norm_ has it; a norm that is no number stays one.
double clipping(double max_norm, double norm) {
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1 ? 1 : factor;
}

Tensor adamw_(const Tensors params, const Tensors grads, const Tensors exp_avgs, const Tensors exp_avg_sqs, const Tensors averages,
              const std::vector<int64_t> counts, const Tensor& rows, const Tensor& steps, const MaybeTensor& grad_scale,
              const MaybeTensor& found_inf, std::optional<double> max_grad_norm, double decay, int64_t update_after, bool warmup,
              bool zero_grads) {
  constexpr int64_t kColumns = sizeof(AdamWRow<double>) / sizeof(double);
  const int64_t parts = int64_t(counts.size());
  const auto* row = numbers_of<AdamWRow<double>>("rows", rows, ScalarType::Double, kColumns * parts);
  float* n = numbers_of<float>("steps", steps, ScalarType::Float, 1 + parts);
  AdamWTensors all{params, exp_avgs, exp_avg_sqs, averages, grads};
  const auto weights = bind_weights(all, counts);
  const float *scale = scalar("grad_scale", grad_scale), *skip = scalar("found_inf", found_inf);
  Tensor norm = fresh(steps, max_grad_norm ? std::nullopt : std::optional<int64_t>(0));
  if (weights.empty()) return norm;
  AdamWArgs args;
  args.weights = weights.data(), args.count = int64_t(weights.size()), args.zero_grads = zero_grads;
  double factor = scale ? 1 / double(*scale) : 1;
  if (max_grad_norm) {
    const double length = norm_of(args) * factor;
    store(norm, 0, length);
    factor *= clipping(*max_grad_norm, length);
  }
  const bool skipped = skip && *skip != 0;
  for (size_t i = 0; zero_grads && i < weights.size(); ++i)  // what the pass does not leave zeros in
    if (skipped || all.grads[i].data_ptr() != grads[i].data_ptr()) torch::stable::zero_(const_cast<Tensor&>(grads[i]));
  if (skipped) return norm;
  args.one_less_decay = 1 - decay_at(decay, ++n[0], update_after, warmup);
  std::vector<StepSize> sizes;
  for (int64_t i = 0; i < parts; ++i) sizes.push_back(step_size(row[i], ++n[1 + i], factor));
  args.steps = sizes.data();
  run_pieces(kernels->adamw, args);
  return norm;
}

// Of tensors, whose squares are added up as they lie.
Tensor total_norm(Tensors tensors) {
  std::vector<Weight> weights;
  weights.reserve(tensors.size());
  int64_t first = 0;
  for (Tensor& x : tensors) {
    if (!x.is_cpu()) refuse("tensors", "tensors on the CPU", text(x));
    if (!is_dense(x)) {
      Tensor copy = fresh_like(x);
      torch::stable::copy_(copy, x);
      x = copy;
    }
    Weight w{};
    w.dtype = dtype_of({"tensors", nullptr, &x});
    w.wide = w.dtype == Dtype::kFloat64;
    w.grad = static_cast<char*>(x.data_ptr());
    w.first = first, w.numel = x.numel();
    if (w.numel) weights.push_back(w);
    first += w.numel;
  }
  AdamWArgs args;
  args.weights = weights.data(), args.count = int64_t(weights.size());
  Tensor norm = empty(nullptr, nullptr, 0, aoti_torch_dtype_float64());
  store(norm, 0, weights.empty() ? 0.0 : norm_of(args));
  return norm;
}

}  // namespace
}  // namespace fastddpm
