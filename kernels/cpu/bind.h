// Tensors of a call to plans, views, keys and rows (plan.h), and its chunks to threads.
//
// What the public functions have checked is checked again only as far as memory is at stake; the range of t is checked here,
// before any thread starts.
#pragma once
#include <algorithm>

#include "sums.h"
#include "tensors.h"

namespace fastddpm {
namespace {

constexpr int64_t kMaxElements = int64_t(1) << 34;  // of a sample: 2^32 Philox blocks

// ---- tensors to views ----

// kFirst and kSecond are the halves of a network's output [B, 2C, ...]: its prediction and its variance.
enum class Half : uint8_t { kNeither, kFirst, kSecond };

// An argument of a call. Without a tensor it is left out.
struct Binding {
  const char* name;
  View* view;
  const Tensor* tensor;
  Half half = Half::kNeither;
};

struct Bindings {
  const Binding *from, *to;
  const Binding* begin() const { return from; }
  const Binding* end() const { return to; }
};

Dtype dtype_of(const Binding& b) {
  switch (b.tensor->scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default: refuse(b.name, "a float32, float64, bfloat16 or float16 tensor", text(*b.tensor));
  }
}

void bind_one(const Binding& b, const Tensor& first) {
  const Tensor& x = *b.tensor;
  const auto size = [&](int64_t d) { return first.size(d) * (d == 1 && b.half != Half::kNeither ? 2 : 1); };
  bool same = x.is_cpu() && x.dim() == first.dim();
  for (int64_t d = 0; same && d < first.dim(); ++d) same = x.size(d) == size(d);
  if (!same) refuse(b.name, brackets(first.dim(), size) + " on the CPU", text(x));
  b.view->dtype = dtype_of(b);
  b.view->batch_stride = x.stride(0);
  b.view->large = bytes_of(x) >= thresholds.streamed;
  b.view->data = static_cast<char*>(x.data_ptr());
  if (b.half == Half::kSecond && b.view->data) b.view->data += first.size(1) * x.stride(1) * size_of(b.view->dtype);
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

Plan bind_all(const Bindings& bindings) {
  const auto& [name, view, tensor, half] = *bindings.from;
  const Tensor& first = *tensor;
  if (first.dim() < 1 || first.dim() > kMaxDims) refuse(name, "1 to 16 dimensions", std::to_string(first.dim()));
  Plan plan;
  plan.batch = first.size(0);
  plan.numel = 1;
  for (int64_t d = 1; d < first.dim(); ++d) plan.numel *= first.size(d);
  if (plan.numel > kMaxElements) refuse(name, "at most 2^34 elements a sample", std::to_string(plan.numel));
  for (const auto& b : bindings) bind_one(b, first);
  if (plan.numel) merge_dims(plan, bindings, first);
  choose_layout(plan, bindings);
  return plan;
}

// The first argument has the shape of them all.
template <size_t N> Plan bind(const Binding (&given)[N]) {
  Binding present[N];
  return bind_all({present, std::copy_if(given, given + N, present, [](const Binding& b) { return b.tensor; })});
}

const Tensor* pointer(const MaybeTensor& x) { return x ? &*x : nullptr; }

// A network's output, or its gradient: [B, C, ...] as x, or [B, 2C, ...] with a variance in the second half.
class Halves {
 public:
  Halves(const char* name, const Tensor& output, const Tensor& x)
      : name_(name), output_(&output), learned_(x.dim() > 1 && output.dim() == x.dim() && output.size(1) != x.size(1)) {}
  bool learned() const { return learned_; }
  Binding first(View& view) const { return first(view, name_, output_); }
  Binding second(View& view) const { return second(view, name_, output_); }
  // Of another tensor of its kind, or of none.
  Binding first(View& view, const char* name, const Tensor* x) const {
    return {name, &view, x, learned_ ? Half::kFirst : Half::kNeither};
  }
  Binding second(View& view, const char* name, const Tensor* x) const {
    return {name, &view, learned_ ? x : nullptr, Half::kSecond};
  }

 private:
  const char* name_;
  const Tensor* output_;
  bool learned_;
};

// ---- keys and rows ----

bool is_key(const MaybeTensor& noise) { return noise && noise->scalar_type() == ScalarType::Long; }
const Tensor* noise_tensor(const MaybeTensor& noise) { return is_key(noise) ? nullptr : pointer(noise); }

void bind_key(Noise& noise, const char* name, const Tensor& key, int64_t batch) {
  if (!key.is_cpu() || key.scalar_type() != ScalarType::Long || key.dim() != 2 || key.size(0) != batch || key.size(1) != 2)
    refuse(name, "an int64 key [" + std::to_string(batch) + ", 2] on the CPU", text(key));
  noise.key = static_cast<const int64_t*>(key.data_ptr());
  noise.key_strides[0] = key.stride(0);
  noise.key_strides[1] = key.stride(1);
}
void bind_key(Noise& noise, const char* name, const MaybeTensor& key, int64_t batch) {
  if (is_key(key)) bind_key(noise, name, *key, batch);
}

// Element `at` of data that is of the wider of two types, or of the narrower.
template <class Wide, class Narrow> Wide value(const void* data, bool wide, int64_t at) {
  return wide ? static_cast<const Wide*>(data)[at] : Wide(static_cast<const Narrow*>(data)[at]);
}

// Each sample's row number, checked. The rows bound read it there: it must live as long.
template <template <class> class Row>
[[nodiscard]] std::vector<int64_t> bind_rows(Rows& bound, const char* name, const Tensor& t, const Tensor& rows, int64_t batch) {
  constexpr int64_t kColumns = sizeof(Row<float>) / sizeof(float);
  bound.wide = rows.scalar_type() == ScalarType::Double;
  if (!rows.is_cpu() || (!bound.wide && rows.scalar_type() != ScalarType::Float) || rows.dim() != 2 ||
      rows.size(1) != kColumns || !rows.is_contiguous())
    refuse("rows", "contiguous float32 or float64 [T, " + std::to_string(kColumns) + "] on the CPU", text(rows));
  const bool wide = t.scalar_type() == ScalarType::Long;
  if (!t.is_cpu() || (!wide && t.scalar_type() != ScalarType::Int) || t.dim() > 1 || (t.numel() != 1 && t.numel() != batch))
    refuse(name, "int32 or int64 [" + std::to_string(batch) + "], or one value, on the CPU", text(t));
  const int64_t stride = t.numel() == 1 ? 0 : t.stride(0), count = rows.size(0);
  std::vector<int64_t> numbers(size_t(batch), 0);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t n = value<int64_t, int32_t>(t.data_ptr(), wide, b * stride);
    if (n < 0 || n >= count)
      throw std::out_of_range(std::string(name) + ": expected 0 .. " + std::to_string(count - 1) + ", got " + std::to_string(n));
    numbers[size_t(b)] = n;
  }
  bound.table = rows.data_ptr(), bound.index = numbers.data();
  return numbers;
}

// One value, or [B], of the arithmetic's type as [B].
Samples bind_samples(const char* name, const Tensor& x, int64_t batch, bool wide) {
  const auto dtype = wide ? ScalarType::Double : ScalarType::Float;
  const bool one = x.dim() == 0;
  if (!x.is_cpu() || x.scalar_type() != dtype || !(one || (x.dim() == 1 && x.size(0) == batch)))
    refuse(name, std::string(name_of(dtype)) + " [] or [" + std::to_string(batch) + "] on the CPU", text(x));
  const int64_t stride = one ? 0 : x.stride(0);
  Samples values(size_t(batch), 0);
  for (int64_t b = 0; b < batch; ++b) values[size_t(b)] = value<double, float>(x.data_ptr(), wide, b * stride);
  return values;
}
Samples bind_samples(const char* name, const MaybeTensor& x, int64_t batch, bool wide) {
  return x ? bind_samples(name, *x, batch, wide) : Samples();
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
