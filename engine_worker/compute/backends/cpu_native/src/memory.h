// Memory that is kept from call to call.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace penstock {

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { std::free(data_); }

  // Room for some bytes, whose old content may be lost; false if there is none.
  bool reserve(int64_t num_bytes) {
    if (num_bytes <= num_bytes_) return true;
    std::free(data_);
    const int64_t alignment = num_bytes < kLargePage ? kAlignment : kLargePage;
    num_bytes_ = (num_bytes + alignment - 1) / alignment * alignment;
    data_ = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(num_bytes_));
    if (data_ == nullptr) num_bytes_ = 0;
#if defined(MADV_HUGEPAGE)
    // Finding the addresses of small pages takes longer than reading them (host_memory.py).
    if (num_bytes_ >= kLargePage) madvise(data_, static_cast<size_t>(num_bytes_), MADV_HUGEPAGE);
#endif
    return data_ != nullptr;
  }

  template <class T>
  T* at() const {
    return static_cast<T*>(data_);
  }

 private:
  static constexpr int64_t kAlignment = 64;
  static constexpr int64_t kLargePage = int64_t{2} << 20;
  void* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

}  // namespace penstock
