// The ops on vlb.h: one pass, then the chunks' sums become losses, added in their order.
#pragma once
#include <cmath>
#include <tuple>

#include "bind.h"

namespace fastddpm {
namespace {

// What every op on the bound is given.
struct Bound {
  const Tensor &model_output, &x_0;
  const MaybeTensor &x_t, &noise;
  const Tensor &t, &rows;
  bool tanh_cdf;
};

constexpr double kLn2 = 0.69314718055994530942;

class Vlb {
 public:
  Vlb(const Bound& given, bool hybrid, const Tensor* grad, const Tensor* next = nullptr, const MaybeTensor& next_noise = {}) {
    const Halves output(given.model_output, given.x_0), grads(grad ? *grad : given.model_output, given.x_0);
    args_.plan = bind({{&args_.x_0, &given.x_0},
                       {&args_.x_t, pointer(given.x_t)},
                       output.first(args_.model_output),
                       output.second(args_.variance),
                       {&args_.noise.tensor, noise_tensor(given.noise)},
                       grad ? grads.first(args_.grad) : Binding{},
                       grad ? grads.second(args_.grad_variance) : Binding{},
                       {&args_.next, next},
                       {&args_.next_noise.tensor, noise_tensor(next_noise)}});
    STD_TORCH_CHECK(given.x_t || given.noise, "expected x_t, or the noise to make it of");
    numbers_ = row_numbers("t", given.t, given.rows, batch());
    args_.rows = rows_of(given.rows, numbers_, 16);
    bind_key(args_.noise, given.noise, batch());
    bind_key(args_.next_noise, next_noise, batch());
    args_.tanh_cdf = given.tanh_cdf;
    args_.hybrid = hybrid;
  }

  int64_t batch() const { return args_.plan.batch; }
  VlbArgs& args() { return args_; }

  // The next step's rows, for the x_t that this pass makes for it.
  void walk_to(const Tensor& next_t, const Tensor& rows) {
    next_numbers_ = row_numbers("next_t", next_t, rows, batch());
    args_.next_rows = rows_of(rows, next_numbers_, 16);
  }

  // What the gradients of a sample's nats, and of its squares / 2 times w, are scaled by.
  template <class ToVlb, class ToMse> void scale(int64_t reduction, ToVlb to_vlb, ToMse to_mse) {
    const double count = double(args_.plan.numel) * double(reduction == kMean ? batch() : 1);
    for (int64_t b = 0; b < batch(); ++b) {
      vlb_scale_.push_back(to_vlb(b) / (count * kLn2));
      mse_scale_.push_back(2 * to_mse(b) / count);
    }
    args_.vlb_scale = vlb_scale_.data(), args_.mse_scale = mse_scale_.data();
  }

  void run_pass() { run(kernels->vlb, args_); }

  // Runs the pass and keeps each sample's sums of nats and of squares.
  void run_sums() {
    std::vector<double> sums(static_cast<size_t>(2 * batch() * args_.plan.chunks));
    args_.sums = sums.data();
    run_pass();
    const double* chunk = sums.data();
    for (int64_t b = 0; b < batch(); ++b) {
      double nats = 0, squares = 0;
      for (int64_t c = 0; c < args_.plan.chunks; ++c, chunk += 2) nats += chunk[0], squares += chunk[1];
      nats_.push_back(nats), squares_.push_back(squares);
    }
  }

  double vlb(int64_t b) const { return nats_[size_t(b)] / (double(args_.plan.numel) * kLn2); }
  double squared_error(int64_t b) const { return squares_[size_t(b)] / double(args_.plan.numel); }
  double mse(int64_t b) const {
    const int64_t at = 16 * numbers_[size_t(b)] + 15;
    const double w = args_.rows.wide ? static_cast<const double*>(args_.rows.table)[at]
                                     : double(static_cast<const float*>(args_.rows.table)[at]);
    return w * squared_error(b);
  }

  // [B], its mean or its sum, of the rows' dtype.
  template <class PerSample> Tensor reduced(const Tensor& rows, int64_t reduction, PerSample loss) const {
    Tensor out = fresh(rows, reduction == kNone ? std::optional<int64_t>(batch()) : std::nullopt);
    if (reduction == kNone) {
      for (int64_t b = 0; b < batch(); ++b) store(out, b, loss(b));
      return out;
    }
    double total = 0;
    for (int64_t b = 0; b < batch(); ++b) total += loss(b);
    store(out, 0, reduction == kMean ? total / double(batch()) : total);
    return out;
  }

  void store(const Tensor& out, int64_t at, double value) const {
    if (args_.rows.wide) static_cast<double*>(out.data_ptr())[at] = value;
    else static_cast<float*>(out.data_ptr())[at] = float(value);
  }

 private:
  VlbArgs args_;
  std::vector<int64_t> numbers_, next_numbers_;
  std::vector<double> vlb_scale_, mse_scale_, nats_, squares_;
};

double value_at(const Tensor& x, int64_t stride, int64_t b) {
  return x.scalar_type() == ScalarType::Double ? static_cast<const double*>(x.data_ptr())[b * stride]
                                               : double(static_cast<const float*>(x.data_ptr())[b * stride]);
}

// A sample's upstream gradient; 0 where there is none.
struct Upstream {
  const Tensor* tensor;
  int64_t stride = 0;
  Upstream(const Tensor* given, const Tensor& rows, int64_t batch) : tensor(given) {
    if (given) stride = upstream_stride(*given, batch, rows.scalar_type() == ScalarType::Double);
  }
  double operator()(int64_t b) const { return tensor ? value_at(*tensor, stride, b) : 0; }
};

// ---- the bound alone ----

Tensor vlb_loss(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t, const MaybeTensor& noise, const Tensor& t,
                const Tensor& rows, bool tanh_cdf, int64_t reduction) {
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, false, nullptr);
  pass.run_sums();
  return pass.reduced(rows, reduction, [&](int64_t b) { return pass.vlb(b); });
}

std::tuple<Tensor, Tensor> vlb_loss_with_grad(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t,
                                              const MaybeTensor& noise, const Tensor& t, const Tensor& rows, bool tanh_cdf,
                                              int64_t reduction) {
  Tensor grad = fresh_like(model_output);
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, false, &grad);
  pass.scale(reduction, [](int64_t) { return 1.0; }, [](int64_t) { return 0.0; });
  pass.run_sums();
  return {pass.reduced(rows, reduction, [&](int64_t b) { return pass.vlb(b); }), grad};
}

Tensor vlb_loss_backward(const Tensor& grad_loss, const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t,
                         const MaybeTensor& noise, const Tensor& t, const Tensor& rows, bool tanh_cdf, int64_t reduction) {
  Tensor grad = fresh_like(model_output);
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, false, &grad);
  pass.scale(reduction, Upstream(&grad_loss, rows, pass.batch()), [](int64_t) { return 0.0; });
  pass.run_pass();
  return grad;
}

// ---- the hybrid loss: mse + vlb_weight vlb ----

std::tuple<Tensor, Tensor, Tensor> hybrid_losses(Vlb& pass, const Tensor& rows, double vlb_weight, int64_t reduction) {
  pass.run_sums();
  const auto mse = [&](int64_t b) { return pass.mse(b); };
  const auto vlb = [&](int64_t b) { return pass.vlb(b); };
  const auto both = [&](int64_t b) { return pass.mse(b) + vlb_weight * pass.vlb(b); };
  return {pass.reduced(rows, reduction, both), pass.reduced(rows, reduction, mse), pass.reduced(rows, reduction, vlb)};
}

std::tuple<Tensor, Tensor, Tensor> hybrid_loss(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t,
                                               const MaybeTensor& noise, const Tensor& t, const Tensor& rows, bool tanh_cdf,
                                               double vlb_weight, int64_t reduction) {
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, true, nullptr);
  return hybrid_losses(pass, rows, vlb_weight, reduction);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hybrid_loss_with_grad(const Tensor& model_output, const Tensor& x_0,
                                                                 const MaybeTensor& x_t, const MaybeTensor& noise,
                                                                 const Tensor& t, const Tensor& rows, bool tanh_cdf,
                                                                 double vlb_weight, int64_t reduction) {
  Tensor grad = fresh_like(model_output);
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, true, &grad);
  pass.scale(reduction, [&](int64_t) { return vlb_weight; }, [](int64_t) { return 1.0; });
  auto [loss, mse, vlb] = hybrid_losses(pass, rows, vlb_weight, reduction);
  return {loss, mse, vlb, grad};
}

Tensor hybrid_loss_backward(const MaybeTensor& grad_loss, const MaybeTensor& grad_mse, const MaybeTensor& grad_vlb,
                            const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t, const MaybeTensor& noise,
                            const Tensor& t, const Tensor& rows, bool tanh_cdf, double vlb_weight, int64_t reduction) {
  Tensor grad = fresh_like(model_output);
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, true, &grad);
  const Upstream both(pointer(grad_loss), rows, pass.batch()), to_mse(pointer(grad_mse), rows, pass.batch()),
      to_vlb(pointer(grad_vlb), rows, pass.batch());
  pass.scale(reduction, [&](int64_t b) { return vlb_weight * both(b) + to_vlb(b); },
             [&](int64_t b) { return both(b) + to_mse(b); });
  pass.run_pass();
  return grad;
}

// ---- a step of bits/dim ----

std::tuple<Tensor, Tensor> vlb_terms(const Tensor& model_output, const Tensor& x_0, const MaybeTensor& x_t,
                                     const MaybeTensor& noise, const Tensor& t, const Tensor& rows, bool tanh_cdf,
                                     const MaybeTensor& next_noise, const MaybeTensor& next_t) {
  Tensor next = next_noise ? fresh_like(x_0) : fresh(x_0, 0);
  Vlb pass({model_output, x_0, x_t, noise, t, rows, tanh_cdf}, false, nullptr, next_noise ? &next : nullptr, next_noise);
  if (next_noise) {
    STD_TORCH_CHECK(next_t.has_value(), "expected next_t with next_noise");
    pass.walk_to(*next_t, rows);
  }
  pass.args().terms = true;
  pass.run_sums();
  const int64_t sizes[] = {2, pass.batch()}, strides[] = {pass.batch(), 1};
  Tensor terms = empty(sizes, strides, 2, raw_dtype(rows));
  for (int64_t b = 0; b < pass.batch(); ++b) {
    pass.store(terms, b, pass.vlb(b));
    pass.store(terms, pass.batch() + b, pass.squared_error(b));
  }
  return {terms, next};
}

}  // namespace
}  // namespace fastddpm
