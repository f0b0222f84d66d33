// What the tests of the kernels share: buffers of exactly their size, calls as XLA makes them, and
// matrices of every type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "xla_ffi_c_api.h"

extern "C" {
int32_t penstock_pack(const void*, int32_t, int64_t, int64_t, int32_t, int32_t, int64_t, void*,
                      int64_t);
int32_t penstock_pack_blocks(const void*, const void*, const void*, const void*, const void*,
                             int64_t, int64_t, int32_t, int32_t, int64_t, int64_t, int32_t, void*,
                             int64_t);
}

struct XLA_FFI_Error {
  std::string message;
};

inline int num_failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what.c_str());
  num_failures++;
}

// Numbers from -1 to 1 that are the same everywhere.
class Random {
 public:
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) / 2147483648.0f;
  }

 private:
  uint64_t state_ = 42;
};

class Array {
 public:
  Array(XLA_FFI_DataType type, std::vector<int64_t> shape) : type_(type), shape_(std::move(shape)) {
    const bool is_byte = type == XLA_FFI_DataType_U8 || type == XLA_FFI_DataType_S8;
    int64_t size = is_byte ? 1 : type == XLA_FFI_DataType_U16 ? 2 : 4;
    for (int64_t axis : shape_) size *= axis;
    bytes_ = static_cast<size_t>(size);
    void* data = nullptr;
    if (posix_memalign(&data, 64, bytes_) != 0) std::abort();
    data_.reset(static_cast<char*>(data));
    std::memset(data, 0, bytes_);
  }

  template <class T>
  T* at() const {
    return reinterpret_cast<T*>(data_.get());
  }
  size_t bytes() const { return bytes_; }
  XLA_FFI_Buffer buffer() {
    return {XLA_FFI_Buffer_STRUCT_SIZE, nullptr, type_, data_.get(),
            static_cast<int64_t>(shape_.size()), shape_.data()};
  }
  void fill(Random& random) {
    for (size_t i = 0; i < bytes_ / 4; i++) at<float>()[i] = random.next();
  }

 private:
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };
  XLA_FFI_DataType type_;
  std::vector<int64_t> shape_;
  size_t bytes_;
  std::unique_ptr<char, Free> data_;
};

// A call frame; the results that it updates in place are named as arguments.
struct Call {
  std::vector<XLA_FFI_Buffer> arguments, results;
  std::vector<int64_t> config, vocabulary;
  std::vector<float> scalars;

  std::string run(XLA_FFI_Error* (*handler)(XLA_FFI_CallFrame*)) {
    XLA_FFI_Api api{};
    api.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
      return new XLA_FFI_Error{args->message};
    };
    std::vector<XLA_FFI_ArgType> argument_types(arguments.size(), XLA_FFI_ArgType_BUFFER);
    std::vector<XLA_FFI_RetType> result_types(results.size(), XLA_FFI_RetType_BUFFER);
    std::vector<void*> argument_places, result_places;
    for (auto& argument : arguments) argument_places.push_back(&argument);
    for (auto& result : results) result_places.push_back(&result);
    XLA_FFI_Array arrays[] = {{XLA_FFI_DataType_S64, config.size(), config.data()},
                              {XLA_FFI_DataType_F32, scalars.size(), scalars.data()},
                              {XLA_FFI_DataType_S64, vocabulary.size(), vocabulary.data()}};
    XLA_FFI_ByteSpan names[] = {{"config", 6}, {"scalars", 7}, {"vocabulary", 10}};
    XLA_FFI_AttrType types[3] = {XLA_FFI_AttrType_ARRAY, XLA_FFI_AttrType_ARRAY,
                                 XLA_FFI_AttrType_ARRAY};
    XLA_FFI_ByteSpan* name_places[] = {&names[0], &names[1], &names[2]};
    void* array_places[] = {&arrays[0], &arrays[1], &arrays[2]};
    XLA_FFI_CallFrame frame{};
    frame.api = &api;
    frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
    frame.args.size = static_cast<int64_t>(arguments.size());
    frame.args.types = argument_types.data();
    frame.args.args = argument_places.data();
    frame.rets.size = static_cast<int64_t>(results.size());
    frame.rets.types = result_types.data();
    frame.rets.rets = result_places.data();
    frame.attrs.size = 3;
    frame.attrs.types = types;
    frame.attrs.names = name_places;
    frame.attrs.attrs = array_places;
    std::unique_ptr<XLA_FFI_Error> error(handler(&frame));
    return error ? error->message : "";
  }
};

constexpr int kNumTypes = 9;

// How the matrices of a test are packed. Those in blocks have scales and minima of groups where
// their type may have them, and each another type of scales.
struct MatrixForm {
  explicit MatrixForm(int number) : type(static_cast<penstock::WeightType>(number)) {
    using penstock::ScaleType;
    using penstock::WeightType;
    switch (type) {
      case WeightType::kBlocks8: blocks = {32, ScaleType::kFloat16}; break;
      case WeightType::kBlocks4: blocks = {64, ScaleType::kFloat16, true, true}; break;
      case WeightType::kBlocksFp4: blocks = {32, ScaleType::kE8m0}; break;
      case WeightType::kBlocksIq4: blocks = {64, ScaleType::kFloat32, true}; break;
      case WeightType::kBlocks6: blocks = {64, ScaleType::kBfloat16, true}; break;
      default: break;
    }
  }

  bool is_in_blocks() const { return penstock::is_in_blocks(type); }
  int64_t panel_bytes(int64_t inputs) const {
    return penstock::panel_bytes(type, inputs, group_size, blocks);
  }
  // In the order of `format_of`.
  std::vector<int64_t> fields() const {
    return {static_cast<int64_t>(type), group_size,        blocks.block_size,
            static_cast<int64_t>(blocks.scale_type), blocks.has_scales, blocks.has_minima};
  }

  // Packs a matrix of random numbers.
  void pack(Random& random, int64_t outputs, int64_t inputs, bool is_gate_up, char* to,
            int64_t to_bytes) const {
    const auto number = static_cast<int32_t>(type);
    if (!is_in_blocks()) {
      std::vector<float> values(static_cast<size_t>(outputs * inputs));
      for (float& value : values) value = random.next() * 0.2f;
      expect(penstock_pack(values.data(), 0, outputs, inputs, number, is_gate_up, group_size, to,
                           to_bytes) == 0,
             "packing type " + std::to_string(number));
      return;
    }
    using penstock::WeightType;
    const int most = type == WeightType::kBlocks8 ? 255 : type == WeightType::kBlocks6 ? 63 : 15;
    const auto numbers = bytes(random, outputs * inputs, most);
    const int64_t num_groups = outputs * inputs / group_size;
    const auto scales = bytes(random, num_groups, 7), minima = bytes(random, num_groups, 7);
    const int64_t num_blocks = outputs * inputs / blocks.block_size;
    const auto floats = scales_of_blocks(num_blocks);
    expect(penstock_pack_blocks(numbers.data(), blocks.has_scales ? scales.data() : nullptr,
                                blocks.has_minima ? minima.data() : nullptr, floats.data(),
                                blocks.has_minima ? floats.data() : nullptr, outputs, inputs,
                                number, is_gate_up, group_size, blocks.block_size,
                                static_cast<int32_t>(blocks.scale_type), to, to_bytes) == 0,
           "packing blocks of type " + std::to_string(number));
  }

  penstock::WeightType type;
  int64_t group_size = 32;
  penstock::BlockLayout blocks;

 private:
  static std::vector<uint8_t> bytes(Random& random, int64_t size, int most) {
    std::vector<uint8_t> found(static_cast<size_t>(size));
    for (uint8_t& byte : found) {
      byte = static_cast<uint8_t>((random.next() * 0.5f + 0.5f) * static_cast<float>(most) + 0.5f);
    }
    return found;
  }

  // 2^-9 each, as the type of scales has it.
  std::vector<char> scales_of_blocks(int64_t num_blocks) const {
    const auto size = static_cast<size_t>(blocks.scale_bytes());
    const uint32_t bits[] = {0x1800, 0x3b00, 0x3b000000, 118};
    std::vector<char> found(static_cast<size_t>(num_blocks) * size);
    for (size_t i = 0; i < found.size(); i += size) {
      std::memcpy(&found[i], &bits[static_cast<size_t>(blocks.scale_type)], size);
    }
    return found;
  }
};

// The relative distance of two arrays of float32.
inline double distance(const Array& a, const Array& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.bytes() / 4; i++) {
    const double x = a.at<float>()[i], y = b.at<float>()[i];
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return std::sqrt(difference / norm);
}
