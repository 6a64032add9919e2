// Tensors of a call to plans, views, keys and rows (plan.h), the tensors that it returns, and its chunks to threads.
//
// What the public functions have checked is checked again only as far as memory is at stake; the range of t is checked here,
// before any thread starts.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "pages.h"
#include "plan.h"

namespace fastddpm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr size_t kBeyondCaches = size_t(32) << 20;  // bytes of a tensor that nobody will find in a cache
constexpr int kNone = 0, kMean = 1;  // a reduction; 2 is the sum
constexpr int64_t kMaxElements = int64_t(1) << 34;  // of a sample: 2^32 Philox blocks

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

// In some order of its dimensions x lies without gaps: then a tensor like it has its strides.
inline bool is_dense(const Tensor& x) {
  if (x.is_contiguous()) return true;
  int64_t expected = 1;
  for (int64_t d = 0; d < x.dim(); ++d) {
    int64_t next = 0;
    while (next < x.dim() && (x.stride(next) != expected || x.size(next) == 1)) ++next;
    if (next == x.dim()) break;
    expected *= x.size(next);
  }
  return expected == x.numel();
}

// Like x. A large one lies in pages that an earlier one of its size may have left (pages.h).
inline Tensor fresh_like(const Tensor& x) {
  if (!is_dense(x)) return torch::stable::empty_like(x);
  const size_t bytes = size_t(x.numel()) * x.element_size();
  if (bytes >= kWorthPages)
    if (auto handle = empty_in_pages(x.sizes().data(), x.strides().data(), x.dim(), raw_dtype(x), bytes)) return Tensor(handle);
  return empty(x.sizes().data(), x.strides().data(), x.dim(), raw_dtype(x));
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

// kFirst and kSecond are the halves of a network's output [B, 2C, ...]: its prediction and its variance.
enum class Half : uint8_t { kNeither, kFirst, kSecond };

struct Binding {
  View* view;
  const Tensor* tensor;
  Half half = Half::kNeither;
};

// The tensors that a call was given; no op has more than nine.
struct Bindings {
  Binding all[9];
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
  const bool halved = b.half != Half::kNeither;
  bool same = x.is_cpu() && x.dim() == first.dim();
  for (int64_t d = 0; same && d < first.dim(); ++d) same = x.size(d) == first.size(d) * (halved && d == 1 ? 2 : 1);
  STD_TORCH_CHECK(same, "expected tensors of one shape on the CPU");
  b.view->dtype = dtype_of(x);
  b.view->batch_stride = x.stride(0);
  b.view->large = size_t(x.numel()) * x.element_size() >= kBeyondCaches;
  b.view->data = static_cast<char*>(x.data_ptr());
  if (b.half == Half::kSecond) b.view->data += first.size(1) * x.stride(1) * size_of(b.view->dtype);
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
    v.pitch = v.strides[1];
    interleaved = interleaved && v.strides[0] == 1 && v.pitch >= plan.sizes[0];
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

// A network's output, or its gradient: [B, C, ...] as x, or [B, 2C, ...] with a variance in the second half.
class Halves {
 public:
  Halves(const Tensor& output, const Tensor& x)
      : output_(&output), learned_(x.dim() > 1 && output.dim() == x.dim() && output.size(1) != x.size(1)) {}
  bool learned() const { return learned_; }
  Binding first(View& view) const { return {&view, output_, learned_ ? Half::kFirst : Half::kNeither}; }
  Binding second(View& view) const { return {&view, learned_ ? output_ : nullptr, Half::kSecond}; }

 private:
  const Tensor* output_;
  bool learned_;
};

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

// The upstream gradient: one value or [B], of the arithmetic's type.
int64_t upstream_stride(const Tensor& upstream, int64_t batch, bool wide) {
  STD_TORCH_CHECK(upstream.is_cpu() && upstream.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float) &&
                      (upstream.dim() == 0 || (upstream.dim() == 1 && upstream.size(0) == batch)),
                  "expected an upstream gradient of the loss's dtype and shape");
  return upstream.dim() == 0 ? 0 : upstream.stride(0);
}

// ---- chunks to threads ----

constexpr int64_t kGrain = 32;  // chunks a thread takes at least: some 10 us of work

const Kernels* kernels = nullptr;  // chosen when the module is loaded

template <class Args> void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  const int64_t chunks = args.plan.batch * args.plan.chunks;
  if (chunks <= kGrain) return kernel(args, 0, chunks);
  torch::stable::parallel_for(0, chunks, kGrain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace
}  // namespace fastddpm
