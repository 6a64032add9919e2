// The ops of the losses, on mse.h and vlb.h: one pass makes the sums, the gradient or both; the sums become losses.
#pragma once
#include <tuple>

#include "bind.h"

namespace fastddpm {
namespace {

constexpr double kLn2 = 0.69314718055994530942;

void store(const Tensor& out, int64_t at, double value) {
  if (out.scalar_type() == ScalarType::Double) static_cast<double*>(out.data_ptr())[at] = value;
  else static_cast<float*>(out.data_ptr())[at] = float(value);
}

// loss(b) of each sample: [B], the mean or the sum, of the rows' dtype.
template <class Loss> Tensor reduced(const Tensor& rows, int64_t batch, int64_t reduction, Loss loss) {
  const bool each = reduction == kNone;
  Tensor out = fresh(rows, each ? std::optional<int64_t>(batch) : std::nullopt);
  double total = 0;
  for (int64_t b = 0; b < batch; ++b) each ? store(out, b, loss(b)) : void(total += loss(b));
  if (!each) store(out, 0, reduction == kMean ? total / double(batch) : total);
  return out;
}

// ---- mse ----

struct Mse {
  Tensor grad;
  MseArgs args;
  std::vector<int64_t> numbers;

  Mse(const Tensor& model_output, const MaybeTensor& noise, const MaybeTensor& x_0, const MaybeTensor& x_t, const Tensor& t,
      const Tensor& rows, int64_t reduction, bool with_grad)
      : grad(fresh_like(model_output, with_grad)) {
    args.plan = bind({{"model_output", &args.model_output, &model_output},
                      {"x_0", &args.x_0, pointer(x_0)},
                      {"x_t", &args.x_t, pointer(x_t)},
                      {"grad", &args.grad, with_grad ? &grad : nullptr},
                      {"noise", &args.noise.tensor, noise_tensor(noise)}});
    numbers = bind_rows<MseRow>(args.rows, "t", t, rows, args.plan.batch);
    bind_key(args.noise, "noise", noise, args.plan.batch);
    args.count = count_of(args.plan, reduction);
  }

  Samples squares() {
    auto chunks = per_chunk(args.plan);
    args.squares = chunks.data();
    run(kernels->mse, args);
    return added(args.plan, chunks);
  }
};

std::tuple<Tensor, Tensor> mse_loss(const Tensor& model_output, const MaybeTensor& noise, const MaybeTensor& x_0,
                                    const MaybeTensor& x_t, const Tensor& t, const Tensor& rows, int64_t reduction,
                                    bool with_grad) {
  Mse pass(model_output, noise, x_0, x_t, t, rows, reduction, with_grad);
  const Samples squares = pass.squares();
  const Plan& plan = pass.args.plan;
  const auto loss = [&](int64_t b) { return weight<MseRow>(pass.args.rows, b) * squares[size_t(b)] / double(plan.numel); };
  return {reduced(rows, plan.batch, reduction, loss), pass.grad};
}

Tensor mse_loss_backward(const Tensor& model_output, const MaybeTensor& noise, const MaybeTensor& x_0, const MaybeTensor& x_t,
                         const Tensor& t, const Tensor& rows, int64_t reduction, const Tensor& grad_loss) {
  Mse pass(model_output, noise, x_0, x_t, t, rows, reduction, true);
  const Samples upstream = bind_samples("grad_loss", grad_loss, pass.args.plan.batch, pass.args.rows.wide);
  pass.args.upstream = upstream.data();
  run(kernels->mse, pass.args);
  return pass.grad;
}

void scale_grad_(const Tensor& grad, const Tensor& grad_loss) {
  ScaleArgs args;
  args.wide = grad_loss.scalar_type() == ScalarType::Double;
  const Samples upstream = bind_samples("grad_loss", grad_loss, grad.size(0), args.wide);
  const auto is_one = [](double g) { return g == 1; };
  if (std::all_of(upstream.begin(), upstream.end(), is_one)) return;  // most losses are the last node: no thread need wake
  args.plan = bind({{"grad", &args.grad, &grad}});
  args.upstream = upstream.data();
  run(kernels->scale, args);
}

// ---- vlb, and hybrid: mse + vlb_weight vlb ----

// What every op on the bound is given.
struct Bound {
  const Tensor &model_output, &x_0;
  const MaybeTensor &x_t, &noise;
  const Tensor &t, &rows;
  bool tanh_cdf;
};

struct Vlb {
  Tensor grad;
  VlbArgs args;
  std::vector<int64_t> numbers, next_numbers;
  Samples vlb_scale, mse_scale, nats, squares;

  Vlb(const Bound& given, bool with_grad, const Tensor* next = nullptr, const MaybeTensor& next_noise = {})
      : grad(fresh_like(given.model_output, with_grad)) {
    const Halves output("model_output", given.model_output, given.x_0), to("grad", grad, given.x_0);
    if (!given.x_t && !given.noise) refuse("x_t", "a tensor, or the noise to make it of", "neither");
    args.plan = bind({{"x_0", &args.x_0, &given.x_0},
                      {"x_t", &args.x_t, pointer(given.x_t)},
                      output.first(args.model_output),
                      output.second(args.variance),
                      {"noise", &args.noise.tensor, noise_tensor(given.noise)},
                      with_grad ? to.first(args.grad) : Binding{},
                      with_grad ? to.second(args.grad_variance) : Binding{},
                      {"next_x_t", &args.next, next},
                      {"next_noise", &args.next_noise.tensor, noise_tensor(next_noise)}});
    numbers = bind_rows<VlbRow>(args.rows, "t", given.t, given.rows, args.plan.batch);
    bind_key(args.noise, "noise", given.noise, args.plan.batch);
    bind_key(args.next_noise, "next_noise", next_noise, args.plan.batch);
    args.tanh_cdf = given.tanh_cdf;
  }

  // By the upstream gradients of vlb and mse: what the gradients of a sample's nats, and of its squares / 2 times w, are scaled by.
  void scale(int64_t reduction, Samples to_vlb, Samples to_mse) {
    const double count = double(count_of(args.plan, reduction));
    for (double& g : to_vlb) g /= count * kLn2;
    for (double& g : to_mse) g = 2 * g / count;
    vlb_scale = std::move(to_vlb), mse_scale = std::move(to_mse);
    args.vlb_scale = vlb_scale.data(), args.mse_scale = mse_scale.data();
  }

  void sums() {
    auto nats_of = per_chunk(args.plan), squares_of = per_chunk(args.plan);
    args.nats = nats_of.data(), args.squares = squares_of.data();
    run(kernels->vlb, args);
    nats = added(args.plan, nats_of), squares = added(args.plan, squares_of);
  }

  Samples all(double g) const { return Samples(size_t(args.plan.batch), g); }
  Samples upstream(const char* name, const Tensor& grad) const { return bind_samples(name, grad, args.plan.batch, args.rows.wide); }

  double vlb(int64_t b) const { return nats[size_t(b)] / (double(args.plan.numel) * kLn2); }
  double squared_error(int64_t b) const { return squares[size_t(b)] / double(args.plan.numel); }
  double mse(int64_t b) const { return weight<VlbRow>(args.rows, b) * squared_error(b); }
};

std::tuple<Tensor, Tensor> vlb_loss(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t,
                                    const MaybeTensor& noise, const Tensor& t, const Tensor& rows, bool tanh_cdf,
                                    int64_t reduction, bool with_grad) {
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, with_grad);
  pass.scale(reduction, pass.all(1), {});
  pass.sums();
  return {reduced(rows, pass.args.plan.batch, reduction, [&](int64_t b) { return pass.vlb(b); }), pass.grad};
}

Tensor vlb_loss_backward(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t, const MaybeTensor& noise,
                         const Tensor& t, const Tensor& rows, bool tanh_cdf, int64_t reduction, const Tensor& grad_loss) {
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, true);
  pass.scale(reduction, pass.upstream("grad_loss", grad_loss), {});
  run(kernels->vlb, pass.args);
  return pass.grad;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hybrid_loss(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t,
                                                       const MaybeTensor& noise, const Tensor& t, const Tensor& rows,
                                                       bool tanh_cdf, double vlb_weight, int64_t reduction, bool with_grad) {
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, with_grad);
  pass.args.hybrid = true;
  pass.scale(reduction, pass.all(vlb_weight), pass.all(1));
  pass.sums();
  const auto loss = [&](auto of) { return reduced(rows, pass.args.plan.batch, reduction, of); };
  return {loss([&](int64_t b) { return pass.mse(b) + vlb_weight * pass.vlb(b); }),
          loss([&](int64_t b) { return pass.mse(b); }), loss([&](int64_t b) { return pass.vlb(b); }), pass.grad};
}

Tensor hybrid_loss_backward(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t, const MaybeTensor& noise,
                            const Tensor& t, const Tensor& rows, bool tanh_cdf, double vlb_weight, int64_t reduction,
                            const MaybeTensor& grad_loss, const MaybeTensor& grad_mse, const MaybeTensor& grad_vlb) {
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, true);
  pass.args.hybrid = true;
  Samples to_vlb = grad_vlb ? pass.upstream("grad_vlb", *grad_vlb) : pass.all(0);
  Samples to_mse = grad_mse ? pass.upstream("grad_mse", *grad_mse) : pass.all(0);
  const Samples both = grad_loss ? pass.upstream("grad_loss", *grad_loss) : pass.all(0);
  for (size_t b = 0; b < both.size(); ++b) to_vlb[b] += vlb_weight * both[b], to_mse[b] += both[b];
  pass.scale(reduction, std::move(to_vlb), std::move(to_mse));
  run(kernels->vlb, pass.args);
  return pass.grad;
}

// ---- a step of bits/dim ----

std::tuple<Tensor, Tensor> vlb_terms(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t,
                                     const MaybeTensor& noise, const Tensor& t, const Tensor& rows, bool tanh_cdf,
                                     const MaybeTensor& next_noise, const MaybeTensor& next_t) {
  if (next_noise && !next_t) refuse("next_t", "a tensor where next_noise is given", "None");
  Tensor next = fresh_like(x_0, next_noise.has_value());
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, false, next_noise ? &next : nullptr, next_noise);
  const int64_t batch = pass.args.plan.batch, sizes[] = {2, batch}, strides[] = {batch, 1};
  if (next_noise) pass.next_numbers = bind_rows<VlbRow>(pass.args.next_rows, "next_t", *next_t, rows, batch);
  pass.args.terms = true;
  pass.sums();
  Tensor terms = empty(sizes, strides, 2, raw_dtype(rows));
  for (int64_t b = 0; b < batch; ++b) store(terms, b, pass.vlb(b)), store(terms, batch + b, pass.squared_error(b));
  return {terms, next};
}

}  // namespace
}  // namespace fastddpm
