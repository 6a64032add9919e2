// Normals as torch.randn draws them from its generator on a CPU (torch_normals.h), and the generator's state after them.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bind.h"

namespace fastddpm {
namespace {

// What torch.Generator.get_state() holds up to its words, 64 bits for each; normals drawn singly leave more behind them.
struct StoredState {
  uint64_t seed;
  int32_t left, seeded;
  uint64_t next, words[kMtState];

  MtState read() const {
    if (left < 1 || next > kMtState || left > kMtState + 1 - int64_t(next))
      throw std::runtime_error("a generator's state that is laid out otherwise than torch's was");
    MtState state{left, uint32_t(next), {}};
    std::copy(words, words + kMtState, state.words);
    return state;
  }
  void write(const MtState& state) {
    left = state.left, next = state.next;
    std::copy(state.words, state.words + kMtState, words);
  }
};

// The normals of a call: first their words are passed over and the state left behind them, then they are made.
class TorchNormals {
 public:
  // `count` >= 16. Where they are no whole sixteens torch makes the last sixteen of words of their own.
  TorchNormals(StoredState& stored, int64_t count) : count_(count) {
    MtState state = stored.read();
    starts_.reserve(size_t((count + kWords - 1) / kWords));
    for (int64_t first = 0; first < count; first += kWords) {
      starts_.push_back(state);
      kernels->torch_words(state, nullptr, std::min(kWords, count - first));
    }
    if (count % kSixteen) kernels->torch_words(state, last_, kSixteen);
    stored.write(state);
  }

  void make(float* z) {
    const auto some = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) make(z + i * kWords, std::min(kWords, count_ - i * kWords), starts_[size_t(i)]);
    };
    torch::stable::parallel_for(0, int64_t(starts_.size()), 1, some);
    if (count_ % kSixteen == 0) return;
    kernels->torch_normals(last_, 1);
    std::copy(last_, last_ + kSixteen, z + count_ - kSixteen);
  }

 private:
  static constexpr int64_t kSixteen = 16;
  static constexpr int64_t kWords = 16 * kMtState;  // 40 KB, read again in the caches

  static void make(float* z, int64_t count, MtState state) {
    kernels->torch_words(state, z, count);
    kernels->torch_normals(z, count / kSixteen);
  }

  int64_t count_;
  std::vector<MtState> starts_;  // of every kWords
  float last_[kSixteen];
};

}  // namespace
}  // namespace fastddpm
