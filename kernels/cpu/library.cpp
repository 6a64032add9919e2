// The boundary: tensors of the ops (fastddpm/ops.py holds their schemas) become plans and views, and chunks go to threads.
//
// On libtorch's stable ABI: one binary for torch >= 2.10. What the public functions have checked is checked again only as
// far as memory is at stake; the range of t is this file's to check. Errors are raised before any thread starts.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "plan.h"

namespace fastddpm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr int kNone = 0, kMean = 1;
constexpr int64_t kGrain = 32;                     // chunks a thread takes at least: some 10 us of work
constexpr int64_t kMaxElements = int64_t(1) << 34;  // of a sample: 2^32 Philox blocks
constexpr int64_t kStepBits = 28, kStepMask = (int64_t(1) << kStepBits) - 1;

const Kernels* kernels = nullptr;  // chosen when the module is loaded

// ---- outputs ----

Tensor empty(const int64_t* sizes, const int64_t* strides, int64_t dims, int32_t dtype) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

int32_t raw_dtype(const Tensor& x) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return dtype;
}

// [count] of x's dtype, or a scalar where there is no count.
Tensor fresh(const Tensor& x, std::optional<int64_t> count) {
  const int64_t size = count.value_or(1), stride = 1;
  return empty(&size, &stride, count ? 1 : 0, raw_dtype(x));
}

// Like x, in pages of 2 MiB where it is large. The system gives a fresh large tensor page by page as it is first written, and
// in pages of 4 KiB that costs more than a kernel's arithmetic and its traffic together.
Tensor fresh_like(const Tensor& x) {
  Tensor out = x.is_contiguous() ? empty(x.sizes().data(), x.strides().data(), x.dim(), raw_dtype(x))
                                 : torch::stable::empty_like(x);  // a microsecond dearer: it goes through the dispatcher
#if defined(__linux__)
  constexpr uintptr_t kWorthwhile = 1 << 20;
  static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(out.data_ptr()) + page - 1) / page * page;
  const size_t bytes = size_t(out.numel()) * out.element_size();
  if (bytes >= kWorthwhile) madvise(reinterpret_cast<void*>(begin), (bytes - page) / page * page, MADV_HUGEPAGE);
#endif
  return out;
}

// ---- tensors to views ----

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default: STD_TORCH_CHECK(false, "expected a float32, float64, bfloat16 or float16 tensor"); return Dtype::kFloat32;
  }
}

struct Binding {
  View* view;
  const Tensor* tensor;
};

// The tensors that a call was given; no op has more than six.
struct Bindings {
  Binding all[6];
  int count = 0;
  Bindings(std::initializer_list<Binding> given) {
    for (const auto& b : given)
      if (b.tensor) all[count++] = b;
  }
  const Binding* begin() const { return all; }
  const Binding* end() const { return all + count; }
};

void bind_one(const Binding& b, const Tensor& first) {
  const Tensor& x = *b.tensor;
  bool same = x.is_cpu() && x.dim() == first.dim();
  for (int64_t d = 0; same && d < first.dim(); ++d) same = x.size(d) == first.size(d);
  STD_TORCH_CHECK(same, "expected tensors of one shape on the CPU");
  b.view->data = static_cast<char*>(x.data_ptr());
  b.view->dtype = dtype_of(x);
  b.view->batch_stride = x.stride(0);
}

// The per-sample sizes and each view's strides, with sizes of one dropped and neighbours merged where every view allows it.
void merge_dims(Plan& plan, const Bindings& bindings, const Tensor& first) {
  for (int64_t d = 1; d < first.dim(); ++d) {
    const int64_t size = first.size(d);
    if (size == 1) continue;
    bool merge = plan.dims > 0;
    for (const auto& b : bindings) merge = merge && b.view->strides[plan.dims - 1] == b.tensor->stride(d) * size;
    const int at = merge ? plan.dims - 1 : plan.dims++;
    plan.sizes[at] = merge ? plan.sizes[at] * size : size;
    for (const auto& b : bindings) b.view->strides[at] = b.tensor->stride(d);
  }
}

bool is_contiguous(const Plan& plan, const View& v) {
  int64_t expected = 1;
  for (int d = plan.dims - 1; d >= 0; --d) {
    if (v.strides[d] != expected) return false;
    expected *= plan.sizes[d];
  }
  return true;
}

void choose_layout(Plan& plan, const Bindings& bindings) {
  bool flat = true, interleaved = plan.dims == 2 && plan.sizes[0] <= kMaxChannels;
  for (const auto& b : bindings) {
    View& v = *b.view;
    v.contiguous = is_contiguous(plan, v);
    flat = flat && v.contiguous;
    interleaved = interleaved && v.strides[0] == 1 && v.strides[1] == plan.sizes[0];
  }
  plan.layout = flat ? Layout::kFlat : interleaved ? Layout::kInterleaved : Layout::kStrided;
  int64_t width = kChunk;
  if (interleaved && !flat) {
    plan.channels = plan.sizes[0], plan.inner = plan.sizes[1];
    plan.tile = kChunk / plan.channels;
    plan.tile -= plan.tile % (plan.tile >= 128 ? 128 : 4);  // whole steps of the noise, or at least whole blocks
    width = plan.tile * plan.channels;
  }
  plan.chunks = (plan.numel + width - 1) / width;
}

Plan bind(const Bindings& bindings) {
  const Tensor& first = *bindings.all[0].tensor;
  STD_TORCH_CHECK(first.dim() >= 1 && first.dim() <= kMaxDims, "expected 1 to 16 dimensions, got ", first.dim());
  Plan plan;
  plan.batch = first.size(0);
  plan.numel = 1;
  for (int64_t d = 1; d < first.dim(); ++d) plan.numel *= first.size(d);
  STD_TORCH_CHECK(plan.numel <= kMaxElements, "expected at most 2^34 elements a sample, got ", plan.numel);
  for (const auto& b : bindings) bind_one(b, first);
  if (plan.numel) merge_dims(plan, bindings, first);
  choose_layout(plan, bindings);
  return plan;
}

const Tensor* pointer(const MaybeTensor& x) { return x ? &*x : nullptr; }

// ---- keys and rows ----

bool is_key(const MaybeTensor& noise) { return noise && noise->scalar_type() == ScalarType::Long; }
const Tensor* noise_tensor(const MaybeTensor& noise) { return is_key(noise) ? nullptr : pointer(noise); }

void bind_key(Noise& noise, const Tensor& key, int64_t batch) {
  STD_TORCH_CHECK(key.is_cpu() && key.scalar_type() == ScalarType::Long && key.dim() == 2 && key.size(0) == batch &&
                      key.size(1) == 2,
                  "expected an int64 key [", batch, ", 2] on the CPU");
  noise.key = static_cast<const int64_t*>(key.data_ptr());
  noise.key_strides[0] = key.stride(0);
  noise.key_strides[1] = key.stride(1);
}
void bind_key(Noise& noise, const MaybeTensor& key, int64_t batch) {
  if (is_key(key)) bind_key(noise, *key, batch);
}

// Each sample's row number, checked.
std::vector<int64_t> row_numbers(const char* name, const Tensor& t, const Tensor& rows, int64_t batch) {
  const bool wide = t.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(t.is_cpu() && (wide || t.scalar_type() == ScalarType::Int) && t.dim() <= 1 &&
                      (t.numel() == 1 || t.numel() == batch),
                  "expected an int32 or int64 index [", batch, "] on the CPU");
  const int64_t stride = t.numel() == 1 ? 0 : t.stride(0), count = rows.size(0);
  std::vector<int64_t> numbers(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t n = wide ? static_cast<const int64_t*>(t.data_ptr())[b * stride]
                           : int64_t(static_cast<const int32_t*>(t.data_ptr())[b * stride]);
    if (n < 0 || n >= count)
      throw std::out_of_range(std::string(name) + ": expected 0 .. " + std::to_string(count - 1) + ", got " + std::to_string(n));
    numbers[static_cast<size_t>(b)] = n;
  }
  return numbers;
}

Rows rows_of(const Tensor& rows, const std::vector<int64_t>& numbers, int64_t columns) {
  const bool wide = rows.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(rows.is_cpu() && (wide || rows.scalar_type() == ScalarType::Float) && rows.dim() == 2 &&
                      rows.size(1) == columns && rows.is_contiguous(),
                  "expected contiguous float rows [T, ", columns, "] on the CPU");
  return {rows.data_ptr(), numbers.data(), wide};
}

template <class Args> void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  const int64_t chunks = args.plan.batch * args.plan.chunks;
  if (chunks <= kGrain) return kernel(args, 0, chunks);
  torch::stable::parallel_for(0, chunks, kGrain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

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

// The upstream gradient: one value or [B], of the arithmetic's type.
int64_t upstream_stride(const Tensor& upstream, int64_t batch, bool wide) {
  STD_TORCH_CHECK(upstream.is_cpu() && upstream.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float) &&
                      (upstream.dim() == 0 || (upstream.dim() == 1 && upstream.size(0) == batch)),
                  "expected an upstream gradient of the loss's dtype and shape");
  return upstream.dim() == 0 ? 0 : upstream.stride(0);
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
  ReverseArgs args;
  args.plan = bind({{&args.x_t, &x_t},
                    {&args.model_output, &model_output},
                    {&args.x_prev, &x_prev},
                    {&args.x_0, return_x_0 ? &x_0 : nullptr},
                    {&args.noise.tensor, noise_tensor(noise)}});
  const auto numbers = row_numbers("i", index, rows, args.plan.batch);
  args.rows = rows_of(rows, numbers, 7);
  bind_key(args.noise, noise, args.plan.batch);
  run(kernels->reverse, args);
  return {x_prev, x_0};
}

std::tuple<Tensor, Tensor> reverse_step_backward(const MaybeTensor& grad_x_prev, const MaybeTensor& grad_x_0,
                                                 const Tensor& model_output, const Tensor& x_t, const Tensor& index,
                                                 const Tensor& rows) {
  Tensor grad_model_output = fresh_like(model_output), grad_x_t = fresh_like(x_t);
  ReverseBackwardArgs args;
  args.plan = bind({{&args.x_t, &x_t},
                    {&args.model_output, &model_output},
                    {&args.grad_x_prev, pointer(grad_x_prev)},
                    {&args.grad_x_0, pointer(grad_x_0)},
                    {&args.grad_model_output, &grad_model_output},
                    {&args.grad_x_t, &grad_x_t}});
  const auto numbers = row_numbers("i", index, rows, args.plan.batch);
  args.rows = rows_of(rows, numbers, 7);
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
