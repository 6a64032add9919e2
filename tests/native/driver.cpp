// The ops without torch and Python: over sizes, dtypes and layouts, a line of each result's name and hash.
//
//   driver ISA [THREADS [CALLERS [SHAPES]]]   of the first SHAPES; CALLERS threads go through them at once, and must agree
//
// What two machines print is the same where the bits are.
#include <cstdio>
#include <string>

#include "generator.h"
#include "made.h"

namespace fastddpm {
namespace {

using namespace made;

struct Place {
  const char* name;
  Numbers order;  // of four dimensions; of fewer, those that there are
  int64_t step;
};
const Place kPlaces[] = {{"contiguous", {0, 1, 2, 3}, 1},
                         {"channels_last", {0, 2, 3, 1}, 1},
                         {"batch_last", {3, 1, 2, 0}, 1},
                         {"every_second", {0, 1, 2, 3}, 2}};
using Shapes = std::vector<Numbers>;
const std::pair<const char*, ScalarType> kDtypes[] = {{"float32", ScalarType::Float},
                                                          {"bfloat16", ScalarType::BFloat16},
                                                          {"float16", ScalarType::Half},
                                                          {"float64", ScalarType::Double}};
const Numbers kShapes[] = {{2, 3, 5, 7}, {2, 3, 0, 4}, {3, 1}, {2, 5}, {4, 2, 9, 17}, {1, 4097}, {1, 5, 33, 31}};

class Run {
 public:
  std::string text;

  void all(int shapes) {
    words();
    torch_normals();
    for (const auto& shape : Shapes(kShapes, kShapes + shapes))
      for (const auto& dtype : kDtypes)
        for (const auto& place : kPlaces)
          ops(shape, dtype, place);
  }

 private:
  std::string at_;

  void say(const std::string& name, const Tensor& x) {
    char line[32];
    std::snprintf(line, sizeof(line), " %016llx\n", (unsigned long long)hash(x));
    if (x.numel()) text += at_ + name + line;
  }
  template <class... T> void say(const std::string& name, const std::tuple<T...>& made) {
    int i = 0;
    std::apply([&](const auto&... x) { (say(name + " " + std::to_string(i++), x), ...); }, made);
  }

  void words() {
    std::vector<int64_t> given;
    for (uint64_t i = 0; i < 4 << 14; ++i) given.push_back(int64_t(word(1, i) >> 32));
    for (const int64_t edge : {int64_t(0), int64_t(1), int64_t(0x7FFFFFFF), int64_t(0x80000000), int64_t(0xFFFFFFFF)})
      given.insert(given.end(), 4, edge);
    const Tensor words = longs({int64_t(given.size()) / 4, 4}, given);
    const Tensor z(words.sizes(), words.strides(), ScalarType::Float);
    box_muller_(z, words);
    say("box_muller", z);
  }

  void torch_normals() {
    for (const int64_t count : {16, 37, 623, 4096, 70001}) {
      StoredState state{0, 1, 1, 0, {}};
      for (uint64_t i = 0; i < kMtState; ++i) state.words[i] = word(2, i) >> 32;
      const Tensor z({count}, {1}, ScalarType::Float);
      TorchNormals normals(state, count);
      normals.make(static_cast<float*>(z.data_ptr()));
      say("torch_normals " + std::to_string(count), z);
      say("torch's state " + std::to_string(count), longs({1}, {state.left + int64_t(state.words[kMtState - 1])}));
    }
  }

  void ops(const Numbers& shape, const std::pair<const char*, ScalarType>& dtype, const Place& place) {
    at_ = std::string(dtype.first) + " " + place.name + " ";
    for (const int64_t n : shape) at_ += std::to_string(n) + " ";
    Numbers order, doubled = shape;
    for (const int64_t d : place.order)
      if (d < int64_t(shape.size())) order.push_back(d);
    doubled[1] *= 2;
    const auto x = [&](uint64_t seed) { return values(shape, strides_in(shape, order, place.step), dtype.second, seed); };
    const auto both = [&](uint64_t seed) { return values(doubled, strides_in(doubled, order, place.step), dtype.second, seed); };
    const bool wide = dtype.second == ScalarType::Double;
    const int64_t batch = shape[0];

    Tensor key = longs({batch, 2}, std::vector<int64_t>(size_t(2 * batch)));
    fill_key_(key, -7, (int64_t(1) << 61) + 12345);
    advance_(key, 77);
    std::vector<int64_t> steps;
    for (int64_t b = 0; b < batch; ++b) steps.push_back(b % 4);
    const Tensor t = longs({batch}, steps), above = samples(batch, 0.5, 0.25, wide), z = x(9);
    const Tensor noising_rows = made::noising_rows(wide), fixed = vlb_rows(wide, false), learned = vlb_rows(wide, true);
    const Tensor step_rows = made::step_rows(wide), guidance = samples(batch, -1, 2, wide), bound = samples(batch, 0.5, 0.1, wide);
    const MaybeTensor none;

    say("key", key);
    say("timesteps", timesteps(key, 1000));
    randn_(z, key);
    say("randn", z);
    say("noising_uniform", noising_uniform(x(1), key, noising_rows));
    say("noising without noise", noising(x(1), none, longs({1}, {2}), noising_rows));
    for (const auto& [kind, noise] : {std::pair("key", key), std::pair("tensor", x(8))}) {
      const std::string of = std::string(" of a ") + kind;
      say("noising" + of, noising(x(1), noise, t, noising_rows));
      const Tensor epsilon = mse_rows(wide, false), velocity = mse_rows(wide, true);
      const auto [loss, grad] = mse_loss(x(2), noise, none, none, t, epsilon, kNone, true);
      scale_grad_(grad, above);
      say("mse" + of, std::tuple(loss, grad));
      say("mse v" + of, mse_loss(x(2), noise, x(1), x(3), t, velocity, kMean, true));
      say("mse v backward" + of, mse_loss_backward(x(2), noise, x(1), x(3), t, velocity, kNone, above));
      for (const bool tanh : {false, true}) {
        const std::string form = of + (tanh ? " tanh" : "");
        say("vlb" + form, vlb_loss(x(2), x(1), none, noise, t, fixed, tanh, kNone, true));
        say("vlb learned" + form, vlb_loss(both(2), x(1), x(3), none, t, learned, tanh, kMean, true));
        say("vlb backward" + form, vlb_loss_backward(both(2), x(1), none, noise, t, learned, tanh, kNone, above));
        say("hybrid" + form, hybrid_loss(both(2), x(1), x(3), noise, t, learned, tanh, 0.001, kNone, true));
        say("hybrid backward" + form, hybrid_loss_backward(both(2), x(1), none, noise, t, learned, tanh, 0.5, kNone, above, none, above));
        say("terms" + form, vlb_terms(both(2), x(1), none, noise, t, learned, tanh, key, t));
      }
      say("reverse" + of, reverse_step(x(2), x(1), noise, t, step_rows, true, none, none, none, std::nullopt, false));
      say("reverse learned" + of, reverse_step(both(2), x(1), noise, t, step_rows, false, none, none, none, std::nullopt, false));
      const std::vector<Tensor> history{x(4), x(5), x(6)};
      say("reverse guided" + of, reverse_step(both(2), x(1), noise, t, step_rows, true, both(7), guidance, bound, history, true));
      say("reverse backward" + of, reverse_step_backward(x(4), none, x(2), x(1), noise, t, step_rows, none, none, none, none));
      say("reverse guided backward" + of,
          reverse_step_backward(x(4), x(5), both(2), x(1), noise, t, step_rows, both(7), guidance, bound, x(6)));
    }
  }
};

bool choose(const char* isa) {
  for (const auto* kernels : kInstructionSets)
    if (kernels->runs_here() && isa == std::string(kernels->name)) return fastddpm::kernels = kernels;
  return false;
}

// What all callers, going through the ops at once, agree on; empty where they do not.
std::string agreed(int callers, int shapes) {
  std::vector<Run> runs(static_cast<size_t>(callers));
  std::vector<std::thread> threads;
  for (auto& run : runs) threads.emplace_back([&run, shapes] { run.all(shapes); });
  for (auto& thread : threads) thread.join();
  for (const auto& run : runs)
    if (run.text != runs[0].text) return "";
  return runs[0].text;
}

}  // namespace
}  // namespace fastddpm

int main(int count, char** arguments) {
  const auto number = [&](int at, int without) { return count > at ? std::atoi(arguments[at]) : without; };
  if (count < 2 || !fastddpm::choose(arguments[1])) return std::fprintf(stderr, "an instruction set that runs here is wanted\n"), 2;
  torch::stable::num_threads = number(2, 1);
  const int callers = number(3, 1), shapes = number(4, int(std::size(fastddpm::kShapes)));
  const std::string small = fastddpm::agreed(callers, shapes);
  fastddpm::thresholds.pages = fastddpm::thresholds.streamed = 1;
  const std::string large = fastddpm::agreed(callers, shapes);
  if (small.empty() || small != large) return std::fprintf(stderr, "callers, or small and large results, differ\n"), 1;
  std::fputs(small.c_str(), stdout);
}
