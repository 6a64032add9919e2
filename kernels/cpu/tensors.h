// libtorch's tensors: what is said of one that is refused, and those that a call returns.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "pages.h"

namespace fastddpm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// ---- errors: the argument, what was expected, what came ----

[[noreturn]] void refuse(const std::string& name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(name + ": expected " + expected + ", got " + got);  // Python's ValueError
}

const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return torch::headeronly::toString(dtype);
  }
}

template <class Size> std::string brackets(int64_t dims, Size size) {
  std::string text = "[";
  for (int64_t d = 0; d < dims; ++d) text += (d ? ", " : "") + std::to_string(size(d));
  return text + "]";
}

std::string text(const Tensor& x) {
  const auto sizes = brackets(x.dim(), [&](int64_t d) { return x.size(d); });
  return std::string(name_of(x.scalar_type())) + " " + sizes + (x.is_cpu() ? "" : " elsewhere");
}

// ---- results ----

// Bytes of a result from which on it lies in pages, and is written past the caches, where nobody would find it. Smaller ones
// malloc itself uses again; from some hundred KB on it may as well hand them back at every step, as its heap comes to lie (two
// results of 3 MB: 2.9 ms in place of 0.17).
struct {
  std::atomic<int64_t> pages{int64_t(1) << 20}, streamed{int64_t(32) << 20};
} thresholds;

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

int64_t bytes_of(const Tensor& x) { return x.numel() * int64_t(x.element_size()); }

// In some order of its dimensions x lies without gaps: then a tensor like it has its strides.
bool is_dense(const Tensor& x) {
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

// Like x. A large one lies in pages that an earlier one of its size may have left.
Tensor fresh_like(const Tensor& x) {
  if (!is_dense(x)) return torch::stable::empty_like(x);
  const int64_t *sizes = x.sizes().data(), *strides = x.strides().data(), bytes = bytes_of(x);
  if (bytes >= thresholds.pages)
    if (auto handle = empty_in_pages(sizes, strides, x.dim(), raw_dtype(x), size_t(bytes))) return Tensor(handle);
  return empty(sizes, strides, x.dim(), raw_dtype(x));
}

// [0] of each dtype that results have, for those that nobody wants: making one anew is a good part of a small call. Two, since
// no result of a call may be another. First called at import, outside of inference mode, whose tensors are of no use elsewhere.
// Never freed: Python may be gone by then.
using Unwanted = std::map<int32_t, std::array<Tensor, 2>>;
const Unwanted& unwanted() {
  static const auto* made = [] {
    auto* all = new Unwanted;
    const int64_t size = 0, stride = 1;
    for (const int32_t dtype : {aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16(), aoti_torch_dtype_float64()})
      all->emplace(dtype, std::array{empty(&size, &stride, 1, dtype), empty(&size, &stride, 1, dtype)});
    return all;
  }();
  return *made;
}

// Like x where it is wanted, else [0]: the first or the second of a call's.
Tensor fresh_like(const Tensor& x, bool wanted, size_t which = 0) {
  if (wanted) return fresh_like(x);
  const auto found = unwanted().find(raw_dtype(x));
  return found == unwanted().end() ? fresh(x, 0) : found->second[which];
}

}  // namespace
}  // namespace fastddpm
