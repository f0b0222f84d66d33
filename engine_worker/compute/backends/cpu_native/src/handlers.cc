// The targets of jax.ffi: every shape, alignment, alias, attribute and page id is checked here, in
// every build, before a kernel sees it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "call_frame.h"
#include "calls.h"
#include "levels.h"

namespace penstock {
namespace {

constexpr uintptr_t kWide = 64, kFloat = 4, kShort = 2;  // alignments
constexpr int64_t kConfigVersion = 2;
constexpr int64_t kHeaderFields = 3, kFormatFields = 6, kBlockScalars = 4;
constexpr int64_t kBlockFields = 14 + 2 * kFormatFields;
constexpr int64_t kMaxBlockInputs = 65536;  // As of int8; with scales of groups far fewer.
constexpr int64_t kMaxScaledInputs = 256;
constexpr int64_t kMaxSize = int64_t{1} << 31;

const float* floats(const XLA_FFI_Buffer& buffer) { return static_cast<const float*>(buffer.data); }
const int32_t* integers(const XLA_FFI_Buffer& buffer) {
  return static_cast<const int32_t*>(buffer.data);
}

void require(bool condition, const char* what) {
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

Matrix matrix_at(const CallFrame& frame, int64_t index, const char* name, const Format& format,
                 int64_t outputs, int64_t inputs) {
  require(outputs > 0 && inputs > 0 && outputs < kMaxSize && inputs < kMaxSize,
          "a matrix has no rows or no columns, or too many");
  require(format.type != WeightType::kInt8 || inputs <= kMaxInt8Inputs,
          "an int8 matrix has more than 65536 inputs");
  const int64_t size = panel_bytes(format.type, inputs, format.group_size, format.blocks);
  const XLA_FFI_Buffer& buffer =
      frame.argument(index, name, XLA_FFI_DataType_U8,
                     {divide_up(outputs, kPanelOutputs), size}, kWide);
  return {static_cast<const char*>(buffer.data), outputs,       inputs, format.type,
          format.group_size,                     format.blocks};
}

// In the order of `_format_fields` in calls.py.
Format format_of(Fields& fields) {
  Format format{};
  format.type = static_cast<WeightType>(fields.integer(0, 5, "weight type"));
  const int64_t size = format.group_size = fields.integer(0, kMaxBlockInputs, "group size");
  require(format.type != WeightType::kInt4 || size == 32 || size == 64 || size == 128,
          "the group size of int4 is not 32, 64 or 128");
  BlockLayout& blocks = format.blocks;
  blocks.block_size = fields.integer(0, kMaxBlockInputs, "block size");
  blocks.scale_type = static_cast<ScaleType>(fields.integer(0, 2, "scale type"));
  blocks.has_scales = fields.flag("scales of groups");
  blocks.has_minima = fields.flag("minima of groups");
  if (!is_in_blocks(format.type)) return format;
  require(size > 0 && size % 16 == 0 && blocks.block_size > 0 && blocks.block_size % size == 0,
          "groups are no multiple of 16 inputs, or blocks no multiple of a group");
  require(blocks.has_scales ? blocks.block_size <= kMaxScaledInputs : blocks.block_size == size,
          "a block has more than one group without scales, or more than 256 inputs with them");
  return format;
}

class BlocksReader {
 public:
  explicit BlocksReader(const CallFrame& frame) : frame_(frame) {}

  BlocksCall read() {
    int64_t num_fields = 0, num_scalars = 0;
    const auto* fields = frame_.array<int64_t>("config", XLA_FFI_DataType_S64, &num_fields);
    const auto* scalars = frame_.array<float>("scalars", XLA_FFI_DataType_F32, &num_scalars);
    require(num_fields >= kHeaderFields && fields[0] == kConfigVersion,
            "the call was built for another version of the kernels");
    const int64_t num_ropes = fields[1], num_blocks = fields[2];
    require(num_ropes >= 0 && num_ropes <= 64 && num_blocks >= 0 && num_blocks <= 4096 &&
                num_fields == kHeaderFields + num_blocks * kBlockFields &&
                num_scalars == num_blocks * kBlockScalars,
            "config and scalars don't fit the number of blocks");
    read_step();
    for (int64_t i = 0; i < num_ropes; i++) read_rope();
    for (int64_t i = 0; i < num_blocks; i++) {
      Fields block(fields + kHeaderFields + i * kBlockFields, scalars + i * kBlockScalars);
      if (block.flag("kind of block")) {
        read_mlp(block);
      } else {
        read_attention(block);
      }
    }
    frame_.expect_arguments(next_argument_);
    check_tokens();
    return std::move(call_);
  }

 private:
  struct Rope {
    const float *cosine, *sine;
    int64_t pairs;
  };

  void read_step() {
    const auto& x = frame_.argument(0, "x", XLA_FFI_DataType_F32, {kAny, kAny}, kFloat);
    call_.x = static_cast<float*>(x.data);
    call_.num_tokens = x.dims[0];
    call_.hidden_size = x.dims[1];
    require(call_.hidden_size > 0, "x has no columns");
    frame_.aliased_result(0, "x", x);
    call_.positions = integers(
        frame_.argument(1, "positions", XLA_FFI_DataType_S32, {call_.num_tokens}, kFloat));
    call_.rows =
        integers(frame_.argument(2, "rows", XLA_FFI_DataType_S32, {call_.num_tokens}, kFloat));
    const auto& tables =
        frame_.argument(3, "block_tables", XLA_FFI_DataType_S32, {kAny, kAny}, kFloat);
    call_.block_tables = integers(tables);
    call_.num_rows = tables.dims[0];
    call_.table_width = tables.dims[1];
    next_argument_ = 4;
  }

  void read_rope() {
    const auto& cosine = frame_.argument(next_argument_++, "cosine", XLA_FFI_DataType_F32,
                                         {call_.num_tokens, kAny}, kFloat);
    const auto& sine = frame_.argument(next_argument_++, "sine", XLA_FFI_DataType_F32,
                                       {call_.num_tokens, cosine.dims[1]}, kFloat);
    ropes_.push_back({floats(cosine), floats(sine), cosine.dims[1]});
  }

  void read_attention(Fields& fields) {
    Block block{};
    block.is_attention = true;
    AttentionBlock& attention = block.attention;
    const Format qkv = format_of(fields), o = format_of(fields);
    attention.num_heads = fields.integer(1, 4096, "num_heads");
    attention.num_kv_heads = fields.integer(1, attention.num_heads, "num_kv_heads");
    attention.head_dim = fields.integer(2, kMaxHeadDim, "head_dim");
    require(attention.num_heads % attention.num_kv_heads == 0 &&
                attention.heads_per_kv_head() <= 256 && attention.head_dim % 2 == 0,
            "the heads are not multiples of the key heads, or the head's width is odd");
    attention.window = fields.integer(0, kMaxSize, "window");
    const int64_t rope = fields.integer(-1, static_cast<int64_t>(ropes_.size()) - 1, "rope");
    const auto norm = static_cast<NormKind>(fields.integer(0, 2, "norm"));
    attention.qk_norm = static_cast<QkNorm>(fields.integer(0, 2, "qk_norm"));
    attention.cache_type = static_cast<CacheType>(fields.integer(0, 1, "cache type"));
    const bool has_norm_bias = fields.flag("norm bias");
    const bool has_qkv_bias = fields.flag("qkv bias"), has_o_bias = fields.flag("o bias");
    const bool has_post_norm = fields.flag("post norm"), has_sinks = fields.flag("sinks");
    attention.norm.eps = fields.scalar("eps");
    attention.scale = fields.scalar("scale");
    attention.softcap = fields.scalar("softcap");
    attention.multiplier = fields.scalar("multiplier");
    if (rope >= 0) {
      const Rope& chosen = ropes_[static_cast<size_t>(rope)];
      require(2 * chosen.pairs <= attention.head_dim, "the rope is wider than the head");
      attention.cosine = chosen.cosine;
      attention.sine = chosen.sine;
      attention.rotary_pairs = chosen.pairs;
    }
    const int64_t hidden = call_.hidden_size;
    const int64_t width = attention.q_size() + 2 * attention.kv_size();
    const bool is_full = attention.qk_norm == QkNorm::kFullWidth;
    const bool has_qk_norm = attention.qk_norm != QkNorm::kNone;
    Vectors vectors(next_vectors());
    attention.norm = read_norm(vectors, norm, attention.norm.eps, has_norm_bias);
    attention.qkv_bias = vectors.take(has_qkv_bias, width);
    attention.q_norm = vectors.take(has_qk_norm, is_full ? attention.q_size() : attention.head_dim);
    attention.k_norm =
        vectors.take(has_qk_norm, is_full ? attention.kv_size() : attention.head_dim);
    attention.o_bias = vectors.take(has_o_bias, hidden);
    attention.post_norm = vectors.take(has_post_norm, hidden);
    attention.sinks = vectors.take(has_sinks, attention.num_heads);
    vectors.end();
    attention.qkv = matrix_at(frame_, next_argument_++, "qkv", qkv, width, hidden);
    attention.o = matrix_at(frame_, next_argument_++, "o", o, hidden, attention.q_size());
    read_pages(attention);
    call_.blocks.push_back(block);
  }

  // Keys [B, KH, D / n, S, n] with n numbers in four bytes, values [B, KH, S / n, D, n].
  void read_pages(AttentionBlock& block) {
    const bool is_half = block.cache_type == CacheType::kBfloat16;
    const XLA_FFI_DataType type = is_half ? XLA_FFI_DataType_U16 : XLA_FFI_DataType_F32;
    const int64_t lane = is_half ? 2 : 1;
    const int64_t num_blocks = has_pages_ ? call_.num_blocks : kAny;
    const int64_t block_size = has_pages_ ? call_.block_size : kAny;
    const auto& keys = frame_.argument(
        next_argument_++, "keys", type,
        {num_blocks, block.num_kv_heads, block.head_dim / lane, block_size, lane}, kWide);
    const auto& values = frame_.argument(
        next_argument_++, "values", type,
        {keys.dims[0], block.num_kv_heads, keys.dims[3] / lane, block.head_dim, lane}, kWide);
    frame_.aliased_result(next_result_++, "keys", keys);
    frame_.aliased_result(next_result_++, "values", values);
    require(keys.dims[0] > 0 && keys.dims[3] > 0 && keys.dims[3] <= 65536 &&
                keys.dims[3] % lane == 0,
            "the cache has no blocks, or blocks of more than 65536 or of an odd number of tokens");
    has_pages_ = true;
    call_.num_blocks = keys.dims[0];
    call_.block_size = keys.dims[3];
    block.keys = keys.data;
    block.values = values.data;
  }

  void read_mlp(Fields& fields) {
    Block block{};
    MlpBlock& mlp = block.mlp;
    const Format gate_up = format_of(fields), down = format_of(fields);
    mlp.intermediate_size = fields.integer(1, kMaxSize / 4, "intermediate_size");
    mlp.activation = static_cast<Activation>(fields.integer(0, 3, "activation"));
    mlp.is_gated = fields.flag("gated");
    const auto norm = static_cast<NormKind>(fields.integer(0, 2, "norm"));
    const bool has_norm_bias = fields.flag("norm bias");
    const bool has_gate_up_bias = fields.flag("gate_up bias");
    const bool has_down_bias = fields.flag("down bias"), has_post_norm = fields.flag("post norm");
    const float eps = fields.scalar("eps");
    mlp.multiplier = fields.scalar("multiplier");
    const int64_t hidden = call_.hidden_size, inner = mlp.intermediate_size;
    Vectors vectors(next_vectors());
    mlp.norm = read_norm(vectors, norm, eps, has_norm_bias);
    mlp.gate_up_bias = vectors.take(has_gate_up_bias, mlp.is_gated ? 2 * inner : inner);
    mlp.down_bias = vectors.take(has_down_bias, hidden);
    mlp.post_norm = vectors.take(has_post_norm, hidden);
    vectors.end();
    // A panel of a gated matrix holds 16 outputs of each half.
    const int64_t outputs = mlp.is_gated ? divide_up(inner, 16) * kPanelOutputs : inner;
    mlp.gate_up = matrix_at(frame_, next_argument_++, "gate_up", gate_up, outputs, hidden);
    mlp.down = matrix_at(frame_, next_argument_++, "down", down, hidden, inner);
    call_.blocks.push_back(block);
  }

  const XLA_FFI_Buffer& next_vectors() {
    return frame_.argument(next_argument_++, "vectors", XLA_FFI_DataType_F32, {kAny}, kFloat);
  }

  Norm read_norm(Vectors& vectors, NormKind kind, float eps, bool has_bias) const {
    const float* weight = vectors.take(kind != NormKind::kNone, call_.hidden_size);
    return {kind, eps, weight, vectors.take(has_bias, call_.hidden_size)};
  }

  // Finds the live tokens; with attention, each must name a row and pages that are there.
  void check_tokens() {
    for (int64_t token = 0; token < call_.num_tokens; token++) {
      const int64_t position = call_.positions[token];
      if (position < 0) continue;
      if (has_pages_) check_pages(token, position);
      call_.live.push_back(static_cast<int32_t>(token));
    }
  }

  void check_pages(int64_t token, int64_t position) {
    const int64_t row = call_.rows[token], last = position / call_.block_size;
    if (row < 0 || row >= call_.num_rows || last >= call_.table_width) {
      throw BadCall("token " + std::to_string(token) + " at position " +
                    std::to_string(position) + " of row " + std::to_string(row) +
                    " is outside of the block tables [" + std::to_string(call_.num_rows) + ", " +
                    std::to_string(call_.table_width) + "]");
    }
    // The pages of a row are looked at once, as far as its furthest token so far.
    if (row != checked_row_) checked_pages_ = 0;
    checked_row_ = row;
    for (; checked_pages_ <= last; checked_pages_++) {
      const int64_t page = call_.block_tables[row * call_.table_width + checked_pages_];
      if (page < 0 || page >= call_.num_blocks) {
        throw BadCall("block " + std::to_string(page) + " of row " + std::to_string(row) +
                      " is outside of the cache's " + std::to_string(call_.num_blocks));
      }
    }
  }

  const CallFrame& frame_;
  BlocksCall call_{};
  std::vector<Rope> ropes_;
  int64_t next_argument_ = 0, next_result_ = 1;
  bool has_pages_ = false;
  int64_t checked_row_ = -1, checked_pages_ = 0;
};

bool run_blocks(const CallFrame& frame) {
  const BlocksCall call = BlocksReader(frame).read();
  return current_level().run_blocks(call);
}

// config: version, format; scalars: multiplier, softcap.
struct TableConfig {
  Format format;
  float multiplier, softcap;
};

TableConfig table_config(const CallFrame& frame) {
  int64_t num_fields = 0, num_scalars = 0;
  const auto* integers = frame.array<int64_t>("config", XLA_FFI_DataType_S64, &num_fields);
  const auto* scalars = frame.array<float>("scalars", XLA_FFI_DataType_F32, &num_scalars);
  require(num_fields == 1 + kFormatFields && num_scalars == 2 && integers[0] == kConfigVersion,
          "the call was built for another version of the kernels");
  Fields fields(integers + 1, scalars);
  const Format format = format_of(fields);
  const float multiplier = fields.scalar("multiplier");
  return {format, multiplier, fields.scalar("softcap")};
}

int64_t vocabulary_size(const CallFrame& frame) {
  int64_t num_numbers = 0;
  const auto* vocabulary = frame.array<int64_t>("vocabulary", XLA_FFI_DataType_S64, &num_numbers);
  require(num_numbers == 1, "vocabulary is not one number");
  return vocabulary[0];
}

// What both kinds of head read; the rows up to the last wanted one are computed.
HeadCall read_head(const CallFrame& frame, int64_t vocabulary) {
  const TableConfig config = table_config(frame);
  frame.expect_arguments(3);
  const auto& hidden = frame.argument(0, "hidden", XLA_FFI_DataType_F32, {kAny, kAny}, kFloat);
  const auto& wanted =
      frame.argument(1, "wanted", XLA_FFI_DataType_S32, {hidden.dims[0]}, kFloat);
  HeadCall call{};
  call.matrix = matrix_at(frame, 2, "head", config.format, vocabulary, hidden.dims[1]);
  call.hidden = floats(hidden);
  call.multiplier = config.multiplier;
  call.softcap = config.softcap;
  for (int64_t row = 0; row < hidden.dims[0]; row++) {
    if (integers(wanted)[row] != 0) call.num_rows = row + 1;
  }
  return call;
}

bool run_head(const CallFrame& frame) {
  const auto& logits = frame.result(0, "logits", XLA_FFI_DataType_F32, {kAny, kAny}, kFloat);
  HeadCall call = read_head(frame, logits.dims[1]);
  const int64_t num_rows = frame.argument(0, "hidden", XLA_FFI_DataType_F32,
                                          {logits.dims[0], kAny}, kFloat).dims[0];
  call.logits = static_cast<float*>(logits.data);
  std::fill(call.logits + call.num_rows * logits.dims[1], call.logits + num_rows * logits.dims[1],
            0.0f);
  return call.num_rows == 0 || current_level().run_head(call);
}

bool run_likeliest(const CallFrame& frame) {
  HeadCall call = read_head(frame, vocabulary_size(frame));
  const auto& hidden = frame.argument(0, "hidden", XLA_FFI_DataType_F32, {kAny, kAny}, kFloat);
  const auto& tokens =
      frame.result(0, "tokens", XLA_FFI_DataType_S32, {hidden.dims[0]}, kFloat);
  call.tokens = static_cast<int32_t*>(tokens.data);
  std::fill(call.tokens + call.num_rows, call.tokens + hidden.dims[0], 0);
  return call.num_rows == 0 || current_level().run_head(call);
}

bool run_embedding(const CallFrame& frame) {
  const TableConfig config = table_config(frame);
  frame.expect_arguments(2);
  const auto& ids = frame.argument(0, "token_ids", XLA_FFI_DataType_S32, {kAny}, kFloat);
  const auto& x = frame.result(0, "x", XLA_FFI_DataType_F32, {ids.dims[0], kAny}, kFloat);
  EmbeddingCall call{};
  call.matrix = matrix_at(frame, 1, "table", config.format, vocabulary_size(frame), x.dims[1]);
  call.token_ids = integers(ids);
  call.x = static_cast<float*>(x.data);
  call.num_tokens = ids.dims[0];
  call.multiplier = config.multiplier;
  return call.num_tokens == 0 || current_level().run_embedding(call);
}

XLA_FFI_Error* error_of(const XLA_FFI_CallFrame& frame, XLA_FFI_Error_Code code,
                        const std::string& message) {
  XLA_FFI_Error_Create_Args args{};
  args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  args.message = message.c_str();
  args.errc = code;
  return frame.api->XLA_FFI_Error_Create(&args);
}

// XLA asks for the version of the interface with a call that has a metadata extension.
bool answer_metadata(const XLA_FFI_CallFrame& frame) {
  XLA_FFI_Extension_Base* extension = frame.extension_start;
  if (extension == nullptr || extension->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return true;
}

XLA_FFI_Error* handle(const XLA_FFI_CallFrame* frame, const char* name,
                      bool (*run)(const CallFrame&)) {
  if (answer_metadata(*frame)) return nullptr;
  const std::string prefix = std::string("native kernels, ") + name + ": ";
  try {
    if (run(CallFrame(*frame))) return nullptr;
  } catch (const BadCall& error) {
    return error_of(*frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, prefix + error.what());
  } catch (const std::bad_alloc&) {
  } catch (const std::exception& error) {
    return error_of(*frame, XLA_FFI_Error_Code_INTERNAL, prefix + error.what());
  }
  return error_of(*frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, prefix + "out of memory");
}

}  // namespace
}  // namespace penstock

#define PENSTOCK_EXPORT extern "C" __attribute__((visibility("default")))

PENSTOCK_EXPORT XLA_FFI_Error* penstock_blocks(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "blocks", penstock::run_blocks);
}
PENSTOCK_EXPORT XLA_FFI_Error* penstock_head(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "head", penstock::run_head);
}
PENSTOCK_EXPORT XLA_FFI_Error* penstock_likeliest(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "likeliest", penstock::run_likeliest);
}
PENSTOCK_EXPORT XLA_FFI_Error* penstock_embedding(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "embedding", penstock::run_embedding);
}
