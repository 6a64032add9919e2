// What the boundary tells a kernel: where the tensors lie, and in which pieces to walk them. No instruction set's code here.
//
// A kernel walks chunks of about kChunk elements: few enough that all operands and the noise stay in the first-level cache and
// that the memory's part of one chunk runs under the arithmetic of the next (at 2048 a large noising took a fifth longer).
// Chunks depend on the shape alone, so a reduction over them has the same bits on any number of threads.
#pragma once
#include <cstdint>

#include "columns.h"

namespace fastddpm {

constexpr int64_t kChunk = 512;      // elements
constexpr int64_t kSlack = 192;      // how far past a chunk whole steps of the noise may be written
constexpr int kMaxDims = 16;
constexpr int64_t kMaxChannels = 128;  // more would leave an interleaved tile less than 4 elements of a channel

enum class Dtype : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr int64_t size_of(Dtype d) { return d == Dtype::kFloat64 ? 8 : d == Dtype::kFloat32 ? 4 : 2; }

// A tensor [B, ...], its per-sample sizes and strides merged as far as all tensors of the call allow.
struct View {
  char* data = nullptr;  // null where the call has no such tensor
  Dtype dtype = Dtype::kFloat32;
  int64_t batch_stride = 0;  // strides in elements
  int64_t strides[kMaxDims] = {};
  bool contiguous = false;  // within a sample
  bool large = false;       // too large for the caches: written past them
  int64_t pitch = 0;        // kInterleaved: from one position's channels to the next's
};

// kFlat          every tensor lies in logical order
// kInterleaved   every tensor is [inner][channels] in memory and [channels][inner] logically (channels_last), perhaps with
//                other channels between, as the two halves of a network's output have
// kStrided       anything else: logical order, gathered and scattered where a tensor is not contiguous
enum class Layout : uint8_t { kFlat, kInterleaved, kStrided };

struct Plan {
  Layout layout = Layout::kFlat;
  int64_t batch = 0, numel = 0;  // numel: D, the elements of one sample
  int dims = 0;
  int64_t sizes[kMaxDims] = {};
  int64_t channels = 1, inner = 0, tile = 0;  // kInterleaved: a chunk is a tile of inner positions, all channels
  int64_t chunks = 0;                         // in one sample
};

struct Noise {
  const int64_t* key = nullptr;  // [B, 2], or null
  int64_t key_strides[2] = {};
  View tensor;
  explicit operator bool() const { return key || tensor.data; }
};

// The row of coefficients of each sample.
struct Rows {
  const void* table = nullptr;       // contiguous float or double, as the arithmetic is
  const int64_t* index = nullptr;    // [B]
  bool wide = false;                 // double
};

struct NoisingArgs {
  Plan plan;
  View x, out;
  Noise noise;
  Rows rows;  // NoisingRow
};

struct MseArgs {
  Plan plan;
  View model_output, x_0, x_t, grad;  // grad is written where it is not null
  Noise noise;
  Rows rows;                         // MseRow
  double* squares = nullptr;         // [B, chunks] of the differences' squares summed, written where not null
  const double* upstream = nullptr;  // [B]; null for 1
  int64_t count = 1;                 // D, times B for the mean: what the gradient is divided by
};

struct ScaleArgs {
  Plan plan;
  View grad;
  const double* upstream = nullptr;  // [B]
  bool wide = false;
};

struct VlbArgs {
  Plan plan;
  View x_0, x_t, model_output, variance;  // the halves of the network's output; variance is null where it is fixed
  View grad, grad_variance, next;         // the gradient, and the next step's x_t, are written where not null
  Noise noise, next_noise;
  Rows rows, next_rows;     // VlbRow
  bool tanh_cdf = false;
  bool hybrid = false;      // the mean channels learn from the squared error of the output
  bool terms = false;       // beside the nats the squared error of x_0_hat is wanted
  double *nats = nullptr, *squares = nullptr;  // [B, chunks] of each summed, written where not null
  const double *vlb_scale = nullptr, *mse_scale = nullptr;  // [B]: what a gradient of the nats, of w times the squares / 2, is scaled by
};

constexpr int kHistory = 3;

// What a step and its gradient read. variance: its channels, where it is learned.
struct StepArgs {
  Plan plan;
  View model_output, variance, uncond, x_t;
  Noise noise;  // the backward reads it where the variance is learned
  Rows rows;    // StepRow
  const double *guidance = nullptr, *bound = nullptr;  // [B], in place of the row's; null for the row's
};

struct ReverseArgs : StepArgs {
  View history[kHistory];
  View x_prev, x_0, kept;  // the last two are written where not null
};

struct ReverseBackwardArgs : StepArgs {
  View grad_x_prev, grad_x_0, grad_kept;
  View grad_model_output, grad_variance, grad_uncond, grad_uncond_variance, grad_x_t;
};

struct RandnArgs {
  Plan plan;
  View out;
  Noise noise;
};

constexpr int64_t kPiece = 16384;  // elements of an optimizer's, laid end to end, that one thread takes at a time

// One tensor of an optimizer. All of them are walked in memory's order.
struct Weight {
  char *param, *grad, *exp_avg, *exp_avg_sq, *average;  // without a grad only the average moves; null where there is no average
  Dtype dtype;                                          // of param and grad; the others are float, or double where that is
  bool wide;
  int64_t first, numel, part;  // first: how many elements lie before it
};

// What a step does to the weights of one part: adamw.h has the formula.
struct StepSize {
  double scale, one_less_beta_1, beta_2, one_less_beta_2, kept, step, root, eps;
};

struct AdamWArgs {
  const Weight* weights = nullptr;
  int64_t count = 0;
  double* squares = nullptr;        // [pieces] of the gradients' squares summed
  const StepSize* steps = nullptr;  // of each part
  double one_less_decay = 0;        // of the average
  bool zero_grads = false;          // leave zeros in the gradients
};

constexpr int kMtState = 624;

// The state of torch's generator on a CPU, MT19937: left - 1 of its words, from `next` on, are still to be drawn.
struct MtState {
  int32_t left;
  uint32_t next;
  uint32_t words[kMtState];
};

// One instruction set's kernels. Each works on the chunks [begin, end) of batch x plan.chunks; an optimizer's on pieces.
struct Kernels {
  const char* name;
  bool (*runs_here)();
  void (*timesteps)(const Noise&, int64_t num_timesteps, int64_t batch, int64_t* t);
  void (*randn)(const RandnArgs&, int64_t begin, int64_t end);
  void (*noising)(const NoisingArgs&, int64_t begin, int64_t end);
  void (*mse)(const MseArgs&, int64_t begin, int64_t end);
  void (*scale)(const ScaleArgs&, int64_t begin, int64_t end);
  void (*vlb)(const VlbArgs&, int64_t begin, int64_t end);
  void (*reverse)(const ReverseArgs&, int64_t begin, int64_t end);
  void (*reverse_backward)(const ReverseBackwardArgs&, int64_t begin, int64_t end);
  void (*squares)(const AdamWArgs&, int64_t begin, int64_t end);
  void (*adamw)(const AdamWArgs&, int64_t begin, int64_t end);
  void (*torch_words)(MtState& state, float* z, int64_t count);
  void (*torch_normals)(float* z, int64_t sixteens);
  void (*box_muller)(const int64_t* words, float* z, int64_t begin, int64_t end);
};

extern const Kernels kPortable, kNeon, kAvx2, kAvx512;
constexpr const Kernels* kInstructionSets[] = {&kAvx512, &kAvx2, &kNeon, &kPortable};  // the fastest first

}  // namespace fastddpm
