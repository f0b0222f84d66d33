// What the attributes and packed matrices of a call say, with every bound checked.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "call_frame.h"
#include "calls.h"

namespace penstock {

constexpr uintptr_t kWide = 64, kFloat = 4;  // alignments
constexpr int64_t kConfigVersion = 6;
constexpr int64_t kHeaderFields = 4, kFormatFields = 6;
constexpr int64_t kBlockScalars = 5, kMlpScalars = 5;
constexpr int64_t kBlockFields = 23 + 2 * kFormatFields, kMlpFields = 9 + 2 * kFormatFields;
constexpr int64_t kMaxExperts = 65536, kMaxGroups = 2;  // groups of layers
constexpr int64_t kMaxBlockInputs = 65536;  // As of int8; with scales of groups far fewer.
constexpr int64_t kMaxScaledInputs = 256;
constexpr int64_t kMaxSize = int64_t{1} << 31;

inline const float* floats(const XLA_FFI_Buffer& buffer) {
  return static_cast<const float*>(buffer.data);
}
inline const int32_t* integers(const XLA_FFI_Buffer& buffer) {
  return static_cast<const int32_t*>(buffer.data);
}

inline void require(bool condition, const char* what) {
  if (!condition) throw BadCall(what);
}

// One block's part of the attributes, field by field in the order of calls.py.
class Fields {
 public:
  Fields(const int64_t* integers, const float* scalars) : integers_(integers), scalars_(scalars) {}

  int64_t integer(int64_t low, int64_t high, const char* name) {
    const int64_t value = *integers_++;
    if (value < low || value > high) {
      throw BadCall(std::string(name) + " is " + std::to_string(value) + ", not from " +
                    std::to_string(low) + " to " + std::to_string(high));
    }
    return value;
  }
  bool flag(const char* name) { return integer(0, 1, name) == 1; }
  float scalar(const char* name) {
    const float value = *scalars_++;
    if (!std::isfinite(value)) throw BadCall(std::string(name) + " is no finite number");
    return value;
  }

 private:
  const int64_t* integers_;
  const float* scalars_;
};

// Parts of a block's one buffer of vectors, in order.
class Vectors {
 public:
  explicit Vectors(const XLA_FFI_Buffer& buffer)
      : next_(floats(buffer)), left_(CallFrame::size_of(buffer)) {}

  const float* take(bool is_there, int64_t size) {
    if (!is_there) return nullptr;
    require(size <= left_, "vectors is too short for what the configuration names");
    const float* part = next_;
    next_ += size;
    left_ -= size;
    return part;
  }
  void end() const { require(left_ == 0, "vectors is longer than what the configuration names"); }

 private:
  const float* next_;
  int64_t left_;
};

// How a matrix is packed, and its shape once that is known.
struct Format {
  WeightType type;
  int64_t group_size;
  BlockLayout blocks;
};

// One matrix, or the first of some that lie one behind the other.
inline Matrix matrix_at(const CallFrame& frame, int64_t index, const char* name, const Format& format,
                 int64_t outputs, int64_t inputs, int64_t num_matrices = 0) {
  require(outputs > 0 && inputs > 0 && outputs < kMaxSize && inputs < kMaxSize,
          "a matrix has no rows or no columns, or too many");
  require(format.type != WeightType::kInt8 || inputs <= kMaxInt8Inputs,
          "an int8 matrix has more than 65536 inputs");
  const int64_t size = panel_bytes(format.type, inputs, format.group_size, format.blocks);
  const int64_t panels = divide_up(outputs, kPanelOutputs);
  const auto u8 = XLA_FFI_DataType_U8;
  const XLA_FFI_Buffer& buffer =
      num_matrices == 0 ? frame.argument(index, name, u8, {panels, size}, kWide)
                        : frame.argument(index, name, u8, {num_matrices, panels, size}, kWide);
  return {static_cast<const char*>(buffer.data), outputs,       inputs, format.type,
          format.group_size,                     format.blocks};
}

// In the order of `_format_fields` in calls.py.
inline Format format_of(Fields& fields) {
  Format format{};
  format.type = static_cast<WeightType>(fields.integer(0, 8, "weight type"));
  const int64_t size = format.group_size = fields.integer(0, kMaxBlockInputs, "group size");
  require(format.type != WeightType::kInt4 || size == 32 || size == 64 || size == 128,
          "the group size of int4 is not 32, 64 or 128");
  BlockLayout& blocks = format.blocks;
  blocks.block_size = fields.integer(0, kMaxBlockInputs, "block size");
  blocks.scale_type = static_cast<ScaleType>(fields.integer(0, 3, "scale type"));
  blocks.has_scales = fields.flag("scales of groups");
  blocks.has_minima = fields.flag("minima of groups");
  if (format.type == WeightType::kInt4) {  // It lies as these do.
    return {WeightType::kBlocks4, size, {size, ScaleType::kBfloat16}};
  }
  if (!is_in_blocks(format.type)) return format;
  require(size > 0 && size % 16 == 0 && blocks.block_size > 0 && blocks.block_size % size == 0,
          "groups are no multiple of 16 inputs, or blocks no multiple of a group");
  require(blocks.has_scales ? blocks.block_size <= kMaxScaledInputs : blocks.block_size == size,
          "a block has more than one group without scales, or more than 256 inputs with them");
  require(format.type != WeightType::kBlocksFp4 || !(blocks.has_scales || blocks.has_minima),
          "blocks of fp4 have neither scales nor minima of groups");
  require(format.type != WeightType::kBlocksIq4 || !blocks.has_minima,
          "blocks of iq4 have no minima of groups");
  return format;
}

// An MLP without what lies in buffers.
struct MlpFields {
  MlpBlock mlp;
  Format gate_up, down;
  bool has_norm_bias, has_gate_up_bias, has_down_bias, has_post_norm;

  explicit MlpFields(Fields& fields) : mlp{}, gate_up(format_of(fields)), down(format_of(fields)) {
    mlp.intermediate_size = fields.integer(1, kMaxSize / 4, "intermediate_size");
    mlp.activation = static_cast<Activation>(fields.integer(0, 5, "activation"));
    mlp.is_gated = fields.flag("gated");
    mlp.norm.kind = static_cast<NormKind>(fields.integer(0, 2, "norm"));
    has_norm_bias = fields.flag("norm bias");
    has_gate_up_bias = fields.flag("gate_up bias");
    has_down_bias = fields.flag("down bias");
    has_post_norm = fields.flag("post norm");
    mlp.is_parallel = fields.flag("parallel");
    mlp.norm.eps = fields.scalar("eps");
    mlp.multiplier = fields.scalar("multiplier");
    mlp.clamp = fields.scalar("clamp");
    mlp.up_offset = fields.scalar("up_offset");
    mlp.gate_multiplier = fields.scalar("gate_multiplier");
    require(mlp.clamp >= 0.0f, "clamp is negative");
    require(mlp.is_gated ||
                (mlp.clamp == 0.0f && mlp.up_offset == 0.0f && mlp.gate_multiplier == 1.0f),
            "clamp, up_offset or gate_multiplier of an MLP without a gate");
  }
  // A panel of a gated matrix holds 16 outputs of each half.
  int64_t gate_up_outputs() const {
    const int64_t inner = mlp.intermediate_size;
    return mlp.is_gated ? divide_up(inner, 16) * kPanelOutputs : inner;
  }
};

}  // namespace penstock
