// Memory for large outputs, in pages of 2 MiB, that is used again.
//
// The system hands out fresh memory zeroed, page by page as it is first written, and that costs more than a kernel's
// arithmetic and its traffic together (50 MB: 8 ms against 1.9 ms for writing it again). malloc gives blocks above 32 MiB back
// at once, so every step of a training loop would pay it. Here a tensor's memory is kept when the tensor dies, at most
// kMostBlocks blocks and kMostBytes bytes of it, marked MADV_FREE: the system takes the pages whenever it is short of memory,
// and only then are they zeroed anew.
//
// A tensor on given memory needs a deleter, which libtorch's stable ABI has from 2.11 on: with 2.10, and outside Linux, outputs
// come from torch's allocator.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <utility>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>

#include <mutex>

extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype, int32_t device_type,
    int32_t device_index, AtenTensorHandle* out, int32_t layout, const uint8_t* metadata, int64_t metadata_size,
    void (*deleter)(void* data, void* context), void* context);
#endif

namespace fastddpm {
namespace {

#if defined(__linux__)

constexpr size_t kPage = size_t(2) << 20;
constexpr int kMostBlocks = 4;  // x_t, a gradient, and as many again of another shape
constexpr size_t kMostBytes = size_t(1) << 30;

class Pages {
 public:
  // At least `bytes`, a multiple of kPage that is stored in `bytes`. Null when the system has none.
  void* take(size_t& bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    if (void* data = find(bytes)) return data;
    if (void* data = map(bytes)) return data;
    release();
    return map(bytes);
  }

  // Keeps a block that no tensor lies in any more; the oldest make room for it.
  void give(void* data, size_t bytes) {
    if (bytes > kMostBytes || madvise(data, bytes, MADV_FREE) != 0) return void(munmap(data, bytes));
    while (const Block oldest = keep({data, bytes})) munmap(oldest.data, oldest.bytes);
  }

  // Gives all blocks back to the system; returns their bytes.
  size_t release() {
    size_t bytes = 0;
    while (const Block block = oldest()) munmap(block.data, block.bytes), bytes += block.bytes;
    return bytes;
  }

  // How many blocks are kept, and their bytes.
  std::pair<int, size_t> kept() {
    const std::lock_guard<std::mutex> lock(mutex);
    return {count_, bytes_};
  }

  std::mutex mutex;  // held over the list alone, never over a system call

 private:
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
    explicit operator bool() const { return data; }
  };

  void* find(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (int i = count_ - 1; i >= 0; --i)
      if (kept_[i].bytes == bytes) return remove(i).data;
    return nullptr;
  }

  // Puts a block on the list. Where there is no room for it, takes the oldest off instead, to be tried again.
  Block keep(const Block& block) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (count_ == kMostBlocks || bytes_ + block.bytes > kMostBytes) return remove(0);
    kept_[count_++] = block, bytes_ += block.bytes;
    return {};
  }

  Block oldest() {
    const std::lock_guard<std::mutex> lock(mutex);
    return count_ ? remove(0) : Block{};
  }

  Block remove(int at) {
    const Block block = kept_[at];
    --count_, bytes_ -= block.bytes;
    for (int i = at; i < count_; ++i) kept_[i] = kept_[i + 1];
    return block;
  }

  // Mapped with a page to spare, of which the two ends that do not align are given back.
  static void* map(size_t bytes) {
    void* mapped = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    char* begin = static_cast<char*>(mapped);
    const size_t before = (kPage - reinterpret_cast<uintptr_t>(begin) % kPage) % kPage;
    if (before) munmap(begin, before);
    munmap(begin + before + bytes, kPage - before);
    madvise(begin + before, bytes, MADV_HUGEPAGE);
    return begin + before;
  }

  Block kept_[kMostBlocks];  // the newest last
  int count_ = 0;
  size_t bytes_ = 0;
};

// Never destroyed: tensors may outlive the module. A process forks with the list at rest, so that its child finds it unlocked.
inline Pages& pages() {
  static Pages* const all = [] {
    auto* made = new Pages;
    pthread_atfork([] { pages().mutex.lock(); }, [] { pages().mutex.unlock(); }, [] { pages().mutex.unlock(); });
    return made;
  }();
  return *all;
}

// A strided tensor of `bytes` bytes on the CPU; null where this torch cannot give one a deleter, or no memory is left.
inline AtenTensorHandle empty_in_pages(const int64_t* sizes, const int64_t* strides, int64_t dims, int32_t dtype, size_t bytes) {
  if (!torch_from_blob) return nullptr;
  size_t rounded = bytes;
  void* data = pages().take(rounded);
  if (!data) return nullptr;
  const auto deleter = [](void* memory, void* size) { pages().give(memory, reinterpret_cast<size_t>(size)); };
  AtenTensorHandle handle = nullptr;
  const auto error = torch_from_blob(data, dims, sizes, strides, 0, dtype, aoti_torch_device_type_cpu(), -1, &handle,
                                     aoti_torch_layout_strided(), nullptr, 0, deleter, reinterpret_cast<void*>(rounded));
  if (error) pages().give(data, rounded);
  return error ? nullptr : handle;
}

#else

struct Pages {
  size_t release() { return 0; }
  std::pair<int, size_t> kept() { return {}; }
};
inline Pages pages() { return {}; }
inline AtenTensorHandle empty_in_pages(const int64_t*, const int64_t*, int64_t, int32_t, size_t) { return nullptr; }

#endif

}  // namespace
}  // namespace fastddpm
