// Tensors and tables for the driver and the fuzzer: the same numbers on every machine, in any order of memory.
#pragma once
#include "library.h"

namespace made {

using torch::stable::Numbers;
using torch::stable::ScalarType;
using torch::stable::Tensor;

// A word that has nothing to do with its neighbours' (splitmix64).
inline uint64_t word(uint64_t seed, uint64_t i) {
  uint64_t x = (seed << 32) + i * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Element i of each dtype, between -2 and 2 and never a subnormal.
inline void put(char* at, ScalarType dtype, uint64_t w) {
  const uint32_t sign = uint32_t(w >> 32) & 0x80000000u, narrow = (uint32_t(w) & 0x03FFFFFFu) | 0x3E000000u | sign;
  const uint16_t half = uint16_t((narrow >> 16 & 0x8000u) | ((narrow >> 13 & 0x3FFFu) + 0x1000u)), brain = uint16_t(narrow >> 16);
  const int64_t number = int64_t(w);
  float x;
  std::memcpy(&x, &narrow, 4);
  const double wide = double(x) * (1 + 0x1p-40);
  switch (dtype) {
    case ScalarType::Float: std::memcpy(at, &x, 4); break;
    case ScalarType::Double: std::memcpy(at, &wide, 8); break;
    case ScalarType::Half: std::memcpy(at, &half, 2); break;
    case ScalarType::BFloat16: std::memcpy(at, &brain, 2); break;
    default: std::memcpy(at, &number, torch::stable::size_of(dtype));
  }
}

// Calls use(position in logical order, address) for each element.
template <class F> void each_element(const Tensor& x, F use) {
  Numbers at(size_t(x.dim()), 0);
  for (int64_t i = 0; i < x.numel(); ++i) {
    int64_t offset = 0;
    for (int64_t d = 0; d < x.dim(); ++d) offset += at[size_t(d)] * x.stride(d);
    use(i, static_cast<char*>(x.data_ptr()) + offset * torch::stable::size_of(x.scalar_type()));
    for (int64_t d = x.dim() - 1; d >= 0 && ++at[size_t(d)] == x.size(d); --d) at[size_t(d)] = 0;
  }
}

// In memory in that order of the dimensions, the last of them together; every `step`-th element of the last.
inline Numbers strides_in(const Numbers& sizes, const Numbers& order, int64_t step = 1) {
  Numbers strides(sizes.size());
  int64_t count = step;
  for (size_t i = order.size(); i-- > 0;) {
    const size_t d = size_t(order[i]);
    strides[d] = count, count *= std::max<int64_t>(sizes[d], 1);
  }
  return strides;
}

inline Tensor values(const Numbers& sizes, const Numbers& strides, ScalarType dtype, uint64_t seed) {
  Tensor x(sizes, strides, dtype);
  each_element(x, [&](int64_t i, char* at) { put(at, dtype, word(seed, uint64_t(i))); });
  return x;
}

template <class T> Tensor table(const Numbers& sizes, const std::vector<T>& values, ScalarType dtype) {
  Tensor x(sizes, torch::stable::contiguous_strides(sizes), dtype);
  std::copy(values.begin(), values.end(), static_cast<T*>(x.data_ptr()));
  return x;
}
inline Tensor longs(const Numbers& sizes, const std::vector<int64_t>& values) { return table(sizes, values, ScalarType::Long); }

// float64 where the arithmetic is, else float32.
inline Tensor numbers(const Numbers& sizes, const std::vector<double>& values, bool wide) {
  if (wide) return table(sizes, values, ScalarType::Double);
  return table(sizes, std::vector<float>(values.begin(), values.end()), ScalarType::Float);
}
inline Tensor rows(int64_t columns, const std::vector<double>& values, bool wide) {
  return numbers({int64_t(values.size()) / columns, columns}, values, wide);
}
// A number of each sample.
inline Tensor samples(int64_t batch, double first, double step, bool wide) {
  std::vector<double> values;
  for (int64_t b = 0; b < batch; ++b) values.push_back(first + double(b) * step);
  return numbers({batch}, values, wide);
}

// t = 0, 1, 500 and 999 of the linear schedule.
inline Tensor noising_rows(bool wide) {
  return rows(2, {0.99995, 0.01, 0.99989004, 0.014829293, 0.27892052, 0.96031419, 0.0063528181, 0.99997982}, wide);
}
inline Tensor mse_rows(bool wide, bool velocity) {
  if (!velocity) return rows(4, {1, 0, 0, 0.5, 1, 0, 0, 1, 1, 0, 0, 2, 1, 0, 0, 1}, wide);
  return rows(4, {1, 0, 0, 0.5, 0.3, -0.2, 0.1, 1, 0.27892052, -0.96031419, 0, 2, -0.5, 0.25, 0.75, 1}, wide);
}
inline Tensor vlb_rows(bool wide, bool learned) {
  const double v[] = {0.30319238, 0.39401938, 0.00042882277, 4.1183615e-07}, on = learned;
  return rows(16, {0.99995, 0.01, 1.00005, -0.0100005, 1, 1, 0, 0, 0, on * v[0], on * v[0], 18337.898, 1, 0, 0, 1,
                   0.99989004, 0.014829293, 1.00011, -0.014830924, 1, 0.5452915, 0, 0, 0, on * v[1], on * v[1], 18337.898, 1, 0, 0, 1,
                   0.27892052, 0.96031419, 3.5852507, -3.4429671, 1, 0.0030580571, 0, 0, 0, on * v[2], on * v[2], 99.489264, 0.3, -0.9, 0.1, 2,
                   0.0063528181, 0.99997982, 157.41046, -157.40728, 1, 0.00012835149, 0.1, -0.2, 0.3, on * v[3], on * v[3], 50.000041, 1, 0, 0, 1},
              wide);
}
inline Tensor step_rows(bool wide) {
  return rows(16, {1.00005, -0.0100005, 1, 0.1, 0.9, 0, 0, 0, 0, 0, 0.5, 1, 0, 1, 0, 0,
                   1.00011, -0.014830924, 1, 0.4547085, 0.5452915, 0, 0, 0, 0, 0.00738, 0.197, 1, 0, 1, 0, 0,
                   3.5852507, -3.4429671, 0.8, 0.98, 0.003, 0.02, 0.1, -0.2, 0.3, 0.1, 0.0002, 3, 0.5, -0.25, 0, 0,
                   157.41046, -157.40728, 1, 0.98, 0.001, -0.5, -0.5, 0, 0.25, 0.14, 0.1, -1, 1, 1, 0, 0},
              wide);
}

// The bits of a number. A NaN's sign is dropped: what 0 / 0 has there is each architecture's own.
inline uint64_t bits_of(ScalarType dtype, const char* at) {
  const int64_t size = torch::stable::size_of(dtype);
  const int mantissa = dtype == ScalarType::Double ? 52 : dtype == ScalarType::Float ? 23 : dtype == ScalarType::Half ? 10 : 7;
  const uint64_t sign = uint64_t(1) << (8 * size - 1), infinity = (sign - 1) >> mantissa << mantissa;
  uint64_t bits = 0;
  std::memcpy(&bits, at, size_t(size));
  return dtype != ScalarType::Long && (bits & ~sign) > infinity ? bits & ~sign : bits;
}

// FNV-1a of a tensor's numbers in logical order.
inline uint64_t hash(const Tensor& x) {
  uint64_t h = 0xCBF29CE484222325u;
  each_element(x, [&](int64_t, const char* at) {
    const uint64_t bits = bits_of(x.scalar_type(), at);
    for (int64_t i = 0; i < torch::stable::size_of(x.scalar_type()); ++i) h = (h ^ uint8_t(bits >> 8 * i)) * 0x100000001B3u;
  });
  return h;
}

}  // namespace made
