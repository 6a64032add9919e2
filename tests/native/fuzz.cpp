// A fuzzer (libFuzzer) of bind, plan and chunk, through the ops: shapes, strides, dtypes, halves, keys, rows, threads, sizes.
//
// The input chooses a call. Every tensor's memory ends with its last element, so the address sanitizer sees a step beyond it. A
// call that is accepted must give the numbers of the same call on contiguous tensors, one thread and small results, bit for bit
// but for sums, which are taken in the order of memory. One that is refused must throw what the boundary throws.
#include <cmath>
#include <cstdio>

#include "made.h"

namespace fastddpm {
namespace {

using namespace made;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  int64_t below(int64_t n) { return at_ == end_ ? 0 : *at_++ % n; }
  bool coin() { return below(2); }

 private:
  const uint8_t *at_, *end_;
};

constexpr ScalarType kFloats[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double};

// An operand in two places: where the input put it, and contiguous.
struct Operand {
  Tensor odd, plain;
};

// One call's choices.
class Call {
 public:
  explicit Call(Input& in) : in_(in), op_(in.below(9)), wide_(in.below(8) == 7) {
    const int64_t dims = 1 + in.below(5);
    for (int64_t d = 0; d < dims; ++d) shape_.push_back(d == 1 ? in.below(7) : in.below(4) ? in.below(9) : in.below(256));
    while (numel(shape_) > 1 << 14) *std::max_element(shape_.begin(), shape_.end()) /= 2;
    batch_ = shape_[0], learned_ = dims > 1 && in.coin();
    torch::stable::num_threads = int(1 + in.below(5));
    large_ = in.coin();
  }

  void check() {
    const auto odd = made([this](const Operand& x) { return x.odd; }, large_);
    torch::stable::num_threads = 1;
    const auto plain = made([](const Operand& x) { return x.plain; }, false);
    if (odd.size() != plain.size()) fail("one of two like calls was refused");
    for (size_t i = 0; i < odd.size(); ++i) compare(odd[i], plain[i], i);
  }
};

}  // namespace
}  // namespace fastddpm
