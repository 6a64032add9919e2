// Memory for large outputs, in pages of 2 MiB, that is used again.
//
// The system hands out fresh memory zeroed, page by page as it is first written, and that costs more than a kernel's
// arithmetic and its traffic together (50 MB: 8 ms against 1.9 ms for writing it again). malloc gives blocks above 32 MiB back
// at once, and smaller ones where they come to lie at its heap's end, so every step of a loop would pay it. Here a tensor's
// memory is kept when the tensor dies, a few blocks of it, the large ones marked MADV_FREE: the system takes their pages whenever
// it is short of memory, and only then are they zeroed anew. To mark a small one takes as long as to fill it.
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
constexpr size_t kSmallPage = size_t(64) << 10;  // Linux has none larger, beside its huge ones
constexpr size_t kLarge = size_t(8) << 20;  // a larger block is of whole pages of 2 MiB

constexpr int kSmallBlocks = 16, kLargeBlocks = 4;

constexpr size_t rounded_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
  explicit operator bool() const { return data; }
};

// Blocks that wait for a tensor of their size, the newest last.
class Waiting {
 public:
  Waiting(int most_blocks, size_t most_bytes) : most_blocks_(most_blocks), most_bytes_(most_bytes) {}
  int count() const { return count_; }
  size_t bytes() const { return bytes_; }
  bool fits(size_t bytes) const { return bytes <= most_bytes_; }

  Block find(size_t bytes) {
    for (int i = count_ - 1; i >= 0; --i)
      if (blocks_[i].bytes == bytes) return remove(i);
    return {};
  }
  // Where there is no room for a block, takes the oldest off instead, to be tried again.
  Block keep(const Block& block) {
    if (count_ == most_blocks_ || bytes_ + block.bytes > most_bytes_) return remove(0);
    blocks_[count_++] = block, bytes_ += block.bytes;
    return {};
  }
  Block oldest() { return count_ ? remove(0) : Block{}; }

 private:
  Block remove(int at) {
    const Block block = blocks_[at];
    --count_, bytes_ -= block.bytes;
    for (int i = at; i < count_; ++i) blocks_[i] = blocks_[i + 1];
    return block;
  }

  const int most_blocks_;
  const size_t most_bytes_;
  Block blocks_[kSmallBlocks];
  int count_ = 0;
  size_t bytes_ = 0;
};

class Pages {
  template <class F> auto locked(F f) {
    const std::lock_guard<std::mutex> lock(mutex);
    return f();
  }

 public:
  // At least `bytes`, whose number is stored in `bytes`. Null when the system has none.
  void* take(size_t& bytes) {
    bytes = rounded_up(bytes, bytes > kLarge ? kPage : kSmallPage);
    if (const Block block = locked([&] { return of(bytes).find(bytes); })) return block.data;
    if (void* data = map(bytes)) return data;
    release();
    return map(bytes);
  }

  // Keeps a block that no tensor lies in any more; the oldest make room for it.
  void give(void* data, size_t bytes) {
    const bool kept = of(bytes).fits(bytes) && (bytes <= kLarge || madvise(data, bytes, MADV_FREE) == 0);
    if (!kept) return void(munmap(data, bytes));
    while (const Block oldest = locked([&] { return of(bytes).keep({data, bytes}); })) munmap(oldest.data, oldest.bytes);
  }

  // Gives all blocks back to the system; returns their bytes.
  size_t release() {
    size_t bytes = 0;
    for (Waiting* list : {&small_, &large_})
      while (const Block block = locked([&] { return list->oldest(); })) munmap(block.data, block.bytes), bytes += block.bytes;
    return bytes;
  }

  // How many blocks are kept, and their bytes.
  std::pair<int, size_t> kept() {
    return locked([&] { return std::pair(small_.count() + large_.count(), small_.bytes() + large_.bytes()); });
  }

  std::mutex mutex;  // held over the lists alone, never over a system call

 private:
  Waiting& of(size_t bytes) { return bytes > kLarge ? large_ : small_; }

  // Mapped with a page to spare, of which the two ends that do not align are given back. A small one's last pages, of no whole
  // 2 MiB, are small ones.
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

  Waiting small_{kSmallBlocks, size_t(64) << 20};  // a step's results
  Waiting large_{kLargeBlocks, size_t(1) << 30};  // x_t, a gradient, and as many again of another shape
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
