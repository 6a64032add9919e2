// The ops (fastddpm/ops.py holds their schemas): each binds its tensors and hands the chunks to threads.
//
// On libtorch's stable ABI: one binary for torch >= 2.10. Errors are raised before any thread starts.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <tuple>

#include "bind.h"
#include "vlb_ops.h"

namespace fastddpm {
namespace {

constexpr int64_t kStepBits = 28, kStepMask = (int64_t(1) << kStepBits) - 1;

// ---- keys ----

void fill_key_(const Tensor& key, int64_t seed, int64_t subsequence) {
  Noise noise;
  bind_key(noise, key, key.size(0));
  auto* at = const_cast<int64_t*>(noise.key);
  for (int64_t b = 0; b < key.size(0); ++b, at += noise.key_strides[0]) {
    at[0] = seed;
    at[noise.key_strides[1]] = int64_t(uint64_t(subsequence) + uint64_t(b));
  }
}

void advance_(const Tensor& key, int64_t steps) {
  Noise noise;
  bind_key(noise, key, key.size(0));
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
  Tensor t = fresh(key, key.size(0));
  Noise noise;
  bind_key(noise, key, key.size(0));
  kernels->timesteps(noise, num_timesteps, key.size(0), static_cast<int64_t*>(t.data_ptr()));
  return t;
}

void randn_(const Tensor& out, const Tensor& key) {
  RandnArgs args;
  args.plan = bind({{&args.out, &out}});
  bind_key(args.noise, key, args.plan.batch);
  run(kernels->randn, args);
}

void box_muller_(const Tensor& out, const Tensor& words) {
  const int64_t n = words.size(0);
  STD_TORCH_CHECK(words.is_contiguous() && words.scalar_type() == ScalarType::Long && words.numel() == 4 * n &&
                      out.is_contiguous() && out.scalar_type() == ScalarType::Float && out.numel() == 4 * n,
                  "expected contiguous int64 words [N, 4] and a float32 out [N, 4]");
  torch::stable::parallel_for(0, n, 1 << 16, [&](int64_t begin, int64_t end) {
    kernels->box_muller(static_cast<const int64_t*>(words.data_ptr()), static_cast<float*>(out.data_ptr()), begin, end);
  });
}

// ---- noising ----

Tensor noising(const Tensor& x, const MaybeTensor& noise, const Tensor& t, const Tensor& rows) {
  Tensor out = fresh_like(x);
  NoisingArgs args;
  args.plan = bind({{&args.x, &x}, {&args.out, &out}, {&args.noise.tensor, noise_tensor(noise)}});
  const auto numbers = row_numbers("t", t, rows, args.plan.batch);
  args.rows = rows_of(rows, numbers, 2);
  bind_key(args.noise, noise, args.plan.batch);
  run(kernels->noising, args);
  return out;
}

// ---- mse ----

struct Mse {
  MseArgs args;
  std::vector<int64_t> numbers;

  Mse(const Tensor& model_output, const MaybeTensor& noise, const MaybeTensor& x_0, const MaybeTensor& x_t,
      const Tensor& t, const Tensor& rows, int64_t reduction, const Tensor* grad) {
    args.plan = bind({{&args.model_output, &model_output},
                      {&args.x_0, pointer(x_0)},
                      {&args.x_t, pointer(x_t)},
                      {&args.grad, grad},
                      {&args.noise.tensor, noise_tensor(noise)}});
    numbers = row_numbers("t", t, rows, args.plan.batch);
    args.rows = rows_of(rows, numbers, 4);
    bind_key(args.noise, noise, args.plan.batch);
    args.count = args.plan.numel * (reduction == kMean ? args.plan.batch : 1);
  }

  // Runs the pass, then adds up each sample's chunks in their order.
  template <class T> void losses(int64_t reduction, T* loss) {
    std::vector<double> sums(static_cast<size_t>(args.plan.batch * args.plan.chunks));
    args.sums = sums.data();
    run(kernels->mse, args);
    double total = 0;
    for (int64_t b = 0; b < args.plan.batch; ++b) {
      double sum = 0;
      for (int64_t c = 0; c < args.plan.chunks; ++c) sum += sums[static_cast<size_t>(b * args.plan.chunks + c)];
      const double w = double(static_cast<const T*>(args.rows.table)[4 * numbers[static_cast<size_t>(b)] + 3]);
      const double mean = w * sum / double(args.plan.numel);
      if (reduction == kNone) loss[b] = T(mean);
      total += mean;
    }
    if (reduction != kNone) *loss = T(reduction == kMean ? total / double(args.plan.batch) : total);
  }

  Tensor loss(const Tensor& rows, int64_t reduction) {
    Tensor out = fresh(rows, reduction == kNone ? std::optional<int64_t>(args.plan.batch) : std::nullopt);
    if (args.rows.wide) losses(reduction, static_cast<double*>(out.data_ptr()));
    else losses(reduction, static_cast<float*>(out.data_ptr()));
    return out;
  }
};

Tensor mse_loss(const Tensor& model_output, const MaybeTensor& noise, const MaybeTensor& x_0, const MaybeTensor& x_t,
                const Tensor& t, const Tensor& rows, int64_t reduction) {
  return Mse(model_output, noise, x_0, x_t, t, rows, reduction, nullptr).loss(rows, reduction);
}

std::tuple<Tensor, Tensor> mse_loss_with_grad(const Tensor& model_output, const MaybeTensor& noise, const MaybeTensor& x_0,
                                              const MaybeTensor& x_t, const Tensor& t, const Tensor& rows, int64_t reduction) {
  Tensor grad = fresh_like(model_output);
  Tensor loss = Mse(model_output, noise, x_0, x_t, t, rows, reduction, &grad).loss(rows, reduction);
  return {loss, grad};
}

Tensor mse_loss_backward(const Tensor& grad_loss, const Tensor& model_output, const MaybeTensor& noise, const MaybeTensor& x_0,
                         const MaybeTensor& x_t, const Tensor& t, const Tensor& rows, int64_t reduction) {
  Tensor grad = fresh_like(model_output);
  Mse mse(model_output, noise, x_0, x_t, t, rows, reduction, &grad);
  mse.args.upstream_stride = upstream_stride(grad_loss, mse.args.plan.batch, mse.args.rows.wide);
  mse.args.upstream = grad_loss.data_ptr();
  run(kernels->mse, mse.args);
  return grad;
}

void scale_grad_(const Tensor& grad, const Tensor& grad_loss) {
  if (grad_loss.dim() == 0 && grad_loss.scalar_type() == ScalarType::Float && *static_cast<const float*>(grad_loss.data_ptr()) == 1)
    return;  // most losses are the last node: no thread need wake
  ScaleArgs args;
  args.plan = bind({{&args.grad, &grad}});
  args.wide = grad_loss.scalar_type() == ScalarType::Double;
  args.upstream_stride = upstream_stride(grad_loss, args.plan.batch, args.wide);
  args.upstream = grad_loss.data_ptr();
  run(kernels->scale, args);
}

// ---- reverse ----

std::tuple<Tensor, Tensor> reverse_step(const Tensor& model_output, const Tensor& x_t, const MaybeTensor& noise,
                                        const Tensor& index, const Tensor& rows, bool return_x_0) {
  Tensor x_prev = fresh_like(x_t);
  Tensor x_0 = return_x_0 ? fresh_like(x_t) : fresh(x_t, 0);
  const Halves output(model_output, x_t);
  ReverseArgs args;
  args.plan = bind({{&args.x_t, &x_t},
                    output.first(args.model_output),
                    output.second(args.variance),
                    {&args.x_prev, &x_prev},
                    {&args.x_0, return_x_0 ? &x_0 : nullptr},
                    {&args.noise.tensor, noise_tensor(noise)}});
  const auto numbers = row_numbers("i", index, rows, args.plan.batch);
  args.rows = rows_of(rows, numbers, 8);
  bind_key(args.noise, noise, args.plan.batch);
  run(kernels->reverse, args);
  return {x_prev, x_0};
}

std::tuple<Tensor, Tensor> reverse_step_backward(const MaybeTensor& grad_x_prev, const MaybeTensor& grad_x_0,
                                                 const Tensor& model_output, const Tensor& x_t, const MaybeTensor& noise,
                                                 const Tensor& index, const Tensor& rows) {
  Tensor grad_model_output = fresh_like(model_output), grad_x_t = fresh_like(x_t);
  const Halves output(model_output, x_t), grad(grad_model_output, x_t);
  ReverseBackwardArgs args;
  args.plan = bind({{&args.x_t, &x_t},
                    output.first(args.model_output),
                    output.second(args.variance),
                    {&args.grad_x_prev, pointer(grad_x_prev)},
                    {&args.grad_x_0, pointer(grad_x_0)},
                    grad.first(args.grad_model_output),
                    grad.second(args.grad_variance),
                    {&args.grad_x_t, &grad_x_t},
                    {&args.noise.tensor, output.learned() ? noise_tensor(noise) : nullptr}});
  const auto numbers = row_numbers("i", index, rows, args.plan.batch);
  args.rows = rows_of(rows, numbers, 8);
  bind_key(args.noise, noise, args.plan.batch);
  run(kernels->reverse_backward, args);
  return {grad_model_output, grad_x_t};
}

}  // namespace

// ---- the module ----

namespace {

// The fastest set that runs here, or the one that FASTDDPM_ISA names. Null, with a Python error, where that one does not run.
const Kernels* choose_kernels() {
  const char* wanted = std::getenv("FASTDDPM_ISA");
  for (const Kernels* k : {&kAvx512, &kAvx2, &kPortable})
    if (k->runs_here() && (!wanted || !*wanted || std::strcmp(wanted, k->name) == 0)) return k;
  PyErr_Format(PyExc_ImportError, "FASTDDPM_ISA: expected avx512, avx2 or portable, and one that this CPU runs, got %s", wanted);
  return nullptr;
}

PyObject* names_of_those_that_run() {
  PyObject* names = PyList_New(0);
  for (const Kernels* k : {&kAvx512, &kAvx2, &kPortable}) {
    if (!k->runs_here()) continue;
    PyObject* name = PyUnicode_FromString(k->name);
    PyList_Append(names, name);
    Py_DECREF(name);
  }
  PyObject* tuple = PyList_AsTuple(names);
  Py_DECREF(names);
  return tuple;
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
  m.impl("mse_loss", TORCH_BOX(&fastddpm::mse_loss));
  m.impl("mse_loss_with_grad", TORCH_BOX(&fastddpm::mse_loss_with_grad));
  m.impl("mse_loss_backward", TORCH_BOX(&fastddpm::mse_loss_backward));
  m.impl("scale_grad_", TORCH_BOX(&fastddpm::scale_grad_));
  m.impl("vlb_loss", TORCH_BOX(&fastddpm::vlb_loss));
  m.impl("vlb_loss_with_grad", TORCH_BOX(&fastddpm::vlb_loss_with_grad));
  m.impl("vlb_loss_backward", TORCH_BOX(&fastddpm::vlb_loss_backward));
  m.impl("hybrid_loss", TORCH_BOX(&fastddpm::hybrid_loss));
  m.impl("hybrid_loss_with_grad", TORCH_BOX(&fastddpm::hybrid_loss_with_grad));
  m.impl("hybrid_loss_backward", TORCH_BOX(&fastddpm::hybrid_loss_backward));
  m.impl("vlb_terms", TORCH_BOX(&fastddpm::vlb_terms));
  m.impl("reverse_step", TORCH_BOX(&fastddpm::reverse_step));
  m.impl("reverse_step_backward", TORCH_BOX(&fastddpm::reverse_step_backward));
}

#if defined(__clang__)
#define FASTDDPM_COMPILER "clang " __clang_version__
#else
#define FASTDDPM_COMPILER "gcc " __VERSION__
#endif

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "fastddpm's kernels for CPUs", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  fastddpm::kernels = fastddpm::choose_kernels();
  if (!fastddpm::kernels) return nullptr;
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  PyModule_AddStringConstant(module, "isa", fastddpm::kernels->name);
  PyModule_AddObject(module, "isas", fastddpm::names_of_those_that_run());
  PyModule_AddStringConstant(module, "compiler", FASTDDPM_COMPILER);
  return module;
}
