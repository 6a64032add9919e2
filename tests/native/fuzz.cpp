// A fuzzer (libFuzzer) of bind, plan and chunk, through the ops: shapes, strides, dtypes, halves, keys, rows, threads, sizes.
//
// The input chooses a call, wrong ones too. Every tensor's memory ends with its furthest element, so that the address sanitizer
// sees a step beyond it. A call gives what the same call gives on contiguous tensors, small results, one thread and the portable
// kernels, bit for bit, but for sums, which are taken in the order of memory; or both are refused by an exception.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "made.h"

namespace fastddpm {
namespace {

using namespace made;

constexpr ScalarType kDtypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double, ScalarType::Int};

class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  int64_t below(int64_t n) { return at_ == end_ ? 0 : *at_++ % n; }
  bool coin() { return below(2); }
  bool rarely() { return below(32) == 31; }
  bool mostly() { return below(8); }

 private:
  const uint8_t *at_, *end_;
};

// An operand where the input put it, and the same numbers contiguous.
struct Operand {
  Tensor odd, plain;
};
using Maybe = std::optional<Operand>;

Operand with_plain(const Tensor& odd) {
  Tensor plain(odd.sizes(), torch::stable::contiguous_strides(odd.sizes()), odd.scalar_type());
  const size_t size = odd.element_size();
  char* to = static_cast<char*>(plain.data_ptr());
  each_element(odd, [&](int64_t, const char* from) { std::memcpy(to, from, size), to += size; });
  return {odd, plain};
}

// The elements between the first and the last of a tensor of these sizes, of an empty one too. 17 dimensions overflow an int64_t.
double volume(const Numbers& sizes) {
  double product = 1;
  for (const int64_t n : sizes) product *= double(std::max<int64_t>(n, 1));
  return product;
}

// What the input chooses. Most operands of a call are alike, and most calls have nothing wrong.
class Choices {
 public:
  explicit Choices(Input& in) : wide(in.rarely()), in_(in), wrong_(in.rarely()) {
    const int64_t dims = in.rarely() ? in.below(18) : 1 + in.below(5);
    for (int64_t d = 0; d < dims; ++d) shape.push_back(in.below(d == 1 ? 7 : in.below(4) ? 9 : 256));
    while (volume(shape) > 1 << 13) *std::max_element(shape.begin(), shape.end()) /= 2;
    doubled = shape;
    if (dims > 1 && in.coin()) doubled[1] *= 2;
    order_ = in.coin() ? order_of(dims) : Numbers{};
    for (int64_t d = 0; order_.empty() && d < dims; ++d) order_.push_back(d == dims - 1 && d ? 1 : d + (d > 0));  // channels last
    dtype_ = kDtypes[wide ? 3 : in.below(4)], kind_ = in.below(3);
  }

  const bool wide;
  Numbers shape, doubled;

  Operand operand(Numbers sizes, bool overlaps = true) {
    if (wrong() && !sizes.empty()) ++sizes[size_t(in_.below(int64_t(sizes.size())))];
    if (wrong()) sizes.push_back(1 + in_.below(2));
    const ScalarType dtype = in_.mostly() ? dtype_ : kDtypes[wrong() ? 4 : in_.below(4)];
    return with_plain(values(sizes, strides(sizes, overlaps), dtype, uint64_t(in_.below(256))));
  }
  Operand per_sample() {
    const Numbers sizes = in_.coin() ? Numbers{} : Numbers{batch() + wrong()};
    return with_plain(values(sizes, strides(sizes, true), wide ? ScalarType::Double : ScalarType::Float, 3));
  }
  Operand key() {
    const Numbers sizes{batch() + wrong(), 2};
    return with_plain(values(sizes, strides(sizes, true), ScalarType::Long, 4));
  }
  Maybe maybe(const Numbers& sizes) { return in_.coin() ? Maybe(operand(sizes)) : Maybe(); }
  Maybe maybe_per_sample() { return in_.coin() ? Maybe(per_sample()) : Maybe(); }
  Maybe noise() { return in_.coin() ? Maybe(key()) : maybe(shape); }

  Tensor steps() {
    const ScalarType dtype = in_.coin() ? ScalarType::Int : ScalarType::Long;
    const Numbers sizes = in_.below(4) ? Numbers{batch() + wrong()} : in_.coin() ? Numbers{1} : Numbers{};
    Tensor t(sizes, strides(sizes, true), dtype);
    each_element(t, [&](int64_t, char* at) {
      const int64_t n = wrong() ? in_.below(9) - 4 : in_.below(4);
      std::memcpy(at, &n, t.element_size());
    });
    return t;
  }

 private:
  Input& in_;
  const bool wrong_;
  Numbers order_;
  ScalarType dtype_;
  int64_t kind_;

  bool wrong() { return wrong_ && !in_.mostly(); }
  int64_t batch() const { return shape.empty() ? 1 : shape[0]; }

  Numbers order_of(int64_t dims) {
    Numbers order;
    for (int64_t d = 0; d < dims; ++d) order.insert(order.begin() + in_.below(d + 1), d);
    return order;
  }

  // Strides of dense tensors and slices; of repeated and overlapping ones too, where nothing is written.
  Numbers strides(const Numbers& sizes, bool overlaps) {
    const bool alike = in_.mostly();
    const Numbers order = alike && sizes.size() == order_.size() ? order_ : order_of(int64_t(sizes.size()));
    const int64_t kind = alike ? kind_ : in_.below(overlaps ? 6 : 4), step = 1 + in_.below(3);
    if (kind == 0) return torch::stable::contiguous_strides(sizes);
    if (kind == 1) return strides_in(sizes, order);
    if (kind == 2) return strides_in(sizes, order, step);
    Numbers wider = sizes;
    for (auto& n : wider) n += volume(wider) < 1 << 16 ? in_.below(4) : 0;
    Numbers made = strides_in(wider, order);
    if (kind > 3)
      for (auto& s : made) s = kind == 4 ? s * in_.coin() : in_.below(9);
    return made;
  }
};

class Call {
 public:
  explicit Call(Input& in) : op_(in.below(11)), flag_(in.coin()), grad_(in.coin()), mean_(in.coin()), chosen_(in) {
    for (int64_t j = in.below(5); j > 0; --j) history_.push_back(chosen_.operand(chosen_.shape));
  }

  // Its results, or none where it is refused. `of` is which tensor of an operand.
  std::optional<std::vector<Tensor>> results(Tensor Operand::*of) const {
    try {
      return made(of);
    } catch (const std::exception&) {
      return std::nullopt;
    }
  }
  size_t sums() const { return op_ == 3 || op_ == 5 || op_ == 8 ? 1 : op_ == 6 ? 3 : 0; }  // how many results are sums, the first

 private:
  const int64_t op_;
  const bool flag_, grad_, mean_;
  Choices chosen_;
  const bool wide_ = chosen_.wide;
  const Tensor t_ = chosen_.steps(), next_t_ = chosen_.steps();
  const Operand out_ = chosen_.operand(chosen_.shape, false), x_ = chosen_.operand(chosen_.shape), key_ = chosen_.key();
  const Operand output_ = chosen_.operand(chosen_.doubled), above_ = chosen_.per_sample();
  const Maybe x_t_ = chosen_.maybe(chosen_.shape), noise_ = chosen_.noise(), next_noise_ = chosen_.noise();
  const Maybe uncond_ = chosen_.maybe(chosen_.doubled), above_x_0_ = chosen_.maybe(chosen_.shape);
  const Maybe guidance_ = chosen_.maybe_per_sample(), bound_ = chosen_.maybe_per_sample();
  std::vector<Operand> history_;

  std::vector<Tensor> made(Tensor Operand::*of) const {
    const auto maybe = [&](const Maybe& x) { return x ? MaybeTensor((*x).*of) : MaybeTensor(); };
    const auto listed = [](const auto& made) { return std::apply([](auto... x) { return std::vector<Tensor>{x...}; }, made); };
    const Tensor &out = out_.*of, &x = x_.*of, &key = key_.*of, &output = output_.*of, &above = above_.*of;
    const MaybeTensor x_t = maybe(x_t_), noise = maybe(noise_), next = maybe(next_noise_), uncond = maybe(uncond_);
    const MaybeTensor above_x_0 = maybe(above_x_0_), guidance = maybe(guidance_), bound = maybe(bound_);
    const Tensor for_noising = noising_rows(wide_), for_mse = mse_rows(wide_, flag_), for_step = step_rows(wide_);
    const Tensor for_vlb = vlb_rows(wide_, mean_);
    std::vector<Tensor> history;
    for (const auto& h : history_) history.push_back(h.*of);
    switch (op_) {
      case 0: return randn_(out, key), std::vector{out};
      case 1: return {noising(x, noise, t_, for_noising)};
      case 2: return listed(noising_uniform(x, key, for_noising));
      case 3: return listed(mse_loss(output, noise, maybe(above_x_0_), x_t, t_, for_mse, mean_, grad_));
      case 4: return scale_grad_(out, above), std::vector{out};
      case 5: return listed(vlb_loss(output, x, x_t, noise, t_, for_vlb, flag_, mean_, grad_));
      case 6: return listed(hybrid_loss(output, x, x_t, noise, t_, for_vlb, flag_, 0.5, mean_, grad_));
      case 7: return {hybrid_loss_backward(output, x, x_t, noise, t_, for_vlb, flag_, 0.5, mean_, above, bound, {})};
      case 8: return listed(vlb_terms(output, x, x_t, noise, t_, for_vlb, flag_, next, next_t_));
      case 9: return listed(reverse_step(output, x, noise, t_, for_step, flag_, uncond, guidance, bound, history, grad_));
      default: return listed(reverse_step_backward(x_t, above_x_0, output, x, noise, t_, for_step, uncond, guidance, bound, next));
    }
  }
};

// The results as doubles, in logical order.
std::vector<double> numbers_of(const Tensor& x) {
  std::vector<double> made;
  each_element(x, [&](int64_t, const char* at) {
    const auto* half = reinterpret_cast<const uint16_t*>(at);
    switch (x.scalar_type()) {
      case ScalarType::Float: return made.push_back(*reinterpret_cast<const float*>(at));
      case ScalarType::Double: return made.push_back(*reinterpret_cast<const double*>(at));
      case ScalarType::Long: return made.push_back(double(*reinterpret_cast<const int64_t*>(at)));
      default: return made.push_back(*half);  // its bits
    }
  });
  return made;
}

void fail(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::abort();
}

void compare(const Tensor& odd, const Tensor& plain, bool sum) {
  if (odd.sizes() != plain.sizes() || odd.scalar_type() != plain.scalar_type()) fail("another shape or dtype");
  const auto a = numbers_of(odd), b = numbers_of(plain);
  for (size_t i = 0; i < a.size(); ++i) {
    const bool near = sum && std::fabs(a[i] - b[i]) <= 1e-3 * (1 + std::fabs(b[i]));
    if (a[i] != b[i] && !near && !(std::isnan(a[i]) && std::isnan(b[i]))) fail("another number");
  }
}

}  // namespace
}  // namespace fastddpm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fastddpm;
  Input in(data, size);
  int64_t set = in.below(4);
  while (!kInstructionSets[set]->runs_here()) set = (set + 1) % 4;  // an input that is at its end would choose the same one again
  kernels = kInstructionSets[set];
  torch::stable::num_threads = int(1 + in.below(4));
  thresholds.pages = in.coin() ? 1 : INT64_MAX, thresholds.streamed = in.coin() ? 1 : INT64_MAX;
  const Call call(in);
  const auto odd = call.results(&Operand::odd);
  kernels = &kPortable, torch::stable::num_threads = 1, thresholds.pages = thresholds.streamed = INT64_MAX;
  const auto plain = call.results(&Operand::plain);
  if (odd.has_value() != plain.has_value()) fail("refused in one place, accepted in another");
  for (size_t i = 0; odd && i < odd->size(); ++i) compare((*odd)[i], (*plain)[i], i < call.sums());
  return 0;
}
