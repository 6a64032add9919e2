// A stand-in for the part of libtorch's stable ABI that kernels/cpu stands on: so the ops run where there is no torch (another
// architecture, a sanitizer, a fuzzer). A tensor's memory is as large as its furthest element, to the byte, and begins as NaN.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

using AOTITorchError = int32_t;

namespace torch::headeronly {
enum class ScalarType : int32_t { Byte, Int, Long, Half, Float, Double, BFloat16 };
inline const char* toString(ScalarType) { return "another dtype"; }
}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;
using Numbers = std::vector<int64_t>;

inline int64_t size_of(ScalarType dtype) {
  constexpr int64_t sizes[] = {1, 4, 8, 2, 4, 8, 2};
  return sizes[int(dtype)];
}

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(Tensor* handle) : Tensor(*std::unique_ptr<Tensor>(handle)) {}
  Tensor(Numbers sizes, Numbers strides, ScalarType dtype, std::shared_ptr<void> memory = nullptr)
      : sizes_(std::move(sizes)), strides_(std::move(strides)), dtype_(dtype), memory_(std::move(memory)) {
    if (memory_ || !numel()) return;
    const size_t bytes = size_t(extent() * element_size());
    memory_.reset(std::malloc(bytes), std::free);
    std::memset(memory_.get(), 0xFF, bytes);
  }

  int64_t dim() const { return int64_t(sizes_.size()); }
  int64_t size(int64_t d) const { return sizes_.at(size_t(d)); }  // throws, as torch does
  int64_t stride(int64_t d) const { return strides_.at(size_t(d)); }
  const Numbers& sizes() const { return sizes_; }
  const Numbers& strides() const { return strides_; }
  ScalarType scalar_type() const { return dtype_; }
  size_t element_size() const { return size_t(size_of(dtype_)); }
  bool is_cpu() const { return true; }
  void* data_ptr() const { return memory_.get(); }
  const Tensor* get() const { return this; }

  int64_t numel() const {
    int64_t count = 1;
    for (const int64_t n : sizes_) count *= n;
    return count;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int64_t d = dim() - 1; d >= 0 && numel(); expected *= size(d--))
      if (size(d) != 1 && stride(d) != expected) return false;
    return true;
  }
  // Elements of memory up to the furthest.
  int64_t extent() const {
    int64_t furthest = 0;
    for (int64_t d = 0; d < dim(); ++d) furthest += (size(d) - 1) * stride(d);
    return furthest + 1;
  }

 private:
  Numbers sizes_, strides_;
  ScalarType dtype_ = ScalarType::Float;
  std::shared_ptr<void> memory_;
};

inline Numbers contiguous_strides(const Numbers& sizes) {
  Numbers strides(sizes.size());
  int64_t count = 1;
  for (size_t d = sizes.size(); d-- > 0; count *= std::max<int64_t>(sizes[d], 1)) strides[d] = count;
  return strides;
}

inline Tensor empty_like(const Tensor& x) { return Tensor(x.sizes(), contiguous_strides(x.sizes()), x.scalar_type()); }

// Of one dtype, in logical order.
inline Tensor copy_(Tensor& to, const Tensor& from) {
  const size_t size = to.element_size();
  for (int64_t i = 0; i < to.numel(); ++i) {
    int64_t rest = i, there = 0, here = 0;
    for (int64_t d = to.dim(); d-- > 0; rest /= to.size(d)) {
      there += rest % to.size(d) * to.stride(d);
      here += rest % to.size(d) * from.stride(d);
    }
    std::memcpy(static_cast<char*>(to.data_ptr()) + there * size, static_cast<char*>(from.data_ptr()) + here * size, size);
  }
  return to;
}

inline Tensor zero_(Tensor& x) {
  const Tensor zeros(x.sizes(), contiguous_strides(x.sizes()), x.scalar_type());
  std::memset(zeros.data_ptr(), 0, size_t(zeros.numel()) * zeros.element_size());
  return copy_(x, zeros);
}

inline int num_threads = 1;

template <class F> void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const int64_t most = std::max<int64_t>(1, (end - begin + grain - 1) / grain), parts = std::min<int64_t>(num_threads, most);
  const int64_t width = (end - begin + parts - 1) / parts;
  std::vector<std::thread> others;
  for (int64_t at = begin + width; at < end; at += width) others.emplace_back([=, &f] { f(at, std::min(at + width, end)); });
  f(begin, std::min(begin + width, end));
  for (auto& other : others) other.join();
}

// Takes registrations, and does nothing with them.
struct Library {
  void def(const char*) {}
  template <class F> void impl(const char*, F) {}
};

}  // namespace torch::stable

#define STABLE_TORCH_LIBRARY_FRAGMENT(name, m) [[maybe_unused]] static void defined_ops([[maybe_unused]] torch::stable::Library& m)
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) [[maybe_unused]] static void implemented_ops([[maybe_unused]] torch::stable::Library& m)
#define TORCH_BOX(function) (function)
#define TORCH_ERROR_CODE_CHECK(call) ((call) ? std::abort() : void())

// ---- the C functions ----

using AtenTensorHandle = torch::stable::Tensor*;

inline int32_t aoti_torch_device_type_cpu() { return 0; }
inline int32_t aoti_torch_layout_strided() { return 0; }
inline int32_t aoti_torch_dtype_float32() { return int32_t(torch::stable::ScalarType::Float); }
inline int32_t aoti_torch_dtype_float64() { return int32_t(torch::stable::ScalarType::Double); }
inline int32_t aoti_torch_dtype_float16() { return int32_t(torch::stable::ScalarType::Half); }
inline int32_t aoti_torch_dtype_bfloat16() { return int32_t(torch::stable::ScalarType::BFloat16); }

inline AOTITorchError aoti_torch_get_dtype(const torch::stable::Tensor* x, int32_t* dtype) {
  *dtype = int32_t(x->scalar_type());
  return 0;
}

inline AOTITorchError aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t,
                                               int32_t, AtenTensorHandle* out) {
  *out = new torch::stable::Tensor({sizes, sizes + dims}, {strides, strides + dims}, torch::stable::ScalarType(dtype));
  return 0;
}

extern "C" inline AOTITorchError torch_from_blob(void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t,
                                                 int32_t dtype, int32_t, int32_t, AtenTensorHandle* out, int32_t, const uint8_t*,
                                                 int64_t, void (*deleter)(void*, void*), void* context) {
  const std::shared_ptr<void> memory(data, [=](void* p) { deleter(p, context); });
  *out = new torch::stable::Tensor({sizes, sizes + dims}, {strides, strides + dims}, torch::stable::ScalarType(dtype), memory);
  return 0;
}
