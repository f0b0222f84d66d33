// Memory that is kept from call to call.
#pragma once

#include <cstdint>
#include <cstdlib>

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
    num_bytes_ = (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    data_ = std::aligned_alloc(kAlignment, static_cast<size_t>(num_bytes_));
    if (data_ == nullptr) num_bytes_ = 0;
    return data_ != nullptr;
  }

  template <class T>
  T* at() const {
    return static_cast<T*>(data_);
  }

 private:
  static constexpr int64_t kAlignment = 64;
  void* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

}  // namespace penstock
