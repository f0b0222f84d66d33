// The targets of jax.ffi: every shape, alignment, alias, attribute and page id is checked here, in
// every build, before a kernel sees it.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "call_fields.h"
#include "call_frame.h"
#include "calls.h"
#include "latent_fields.h"
#include "levels.h"
#include "recurrent_fields.h"
#include "token_check.h"

namespace penstock {
namespace {

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
    require(fields[3] >= 1 && fields[3] <= kMaxGroups, "there is no such number of block tables");
    call_.num_groups = fields[3];
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
    TokenCheck(call_, num_pages_).run();
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
    require(tables.dims[0] % call_.num_groups == 0, "some groups have more block tables");
    call_.num_rows = tables.dims[0] / call_.num_groups;
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
    attention.qk_norm = static_cast<QkNorm>(fields.integer(0, 4, "qk_norm"));
    attention.cache_type = static_cast<CacheType>(fields.integer(0, 2, "cache type"));
    const bool has_norm_bias = fields.flag("norm bias");
    const bool has_qkv_bias = fields.flag("qkv bias"), has_o_bias = fields.flag("o bias");
    const bool has_post_norm = fields.flag("post norm"), has_sinks = fields.flag("sinks");
    attention.group = fields.integer(0, call_.num_groups - 1, "group");
    attention.tables = call_.block_tables + attention.group * call_.num_rows * call_.table_width;
    attention.chunk = fields.integer(0, kMaxSize, "chunk");
    attention.query_scale.length = fields.integer(1, kMaxSize, "length of the scale of queries");
    attention.query_scale.offset = fields.integer(0, kMaxSize, "offset of the scale of queries");
    attention.has_gate = fields.flag("gate");
    attention.is_interleaved = fields.flag("interleaved rope");
    attention.is_value_of_key = fields.flag("values of keys");
    attention.is_value_normed = fields.flag("norm of values");
    attention.is_reader = fields.flag("pages of another block");
    attention.norm.eps = fields.scalar("eps");
    attention.scale = fields.scalar("scale");
    attention.softcap = fields.scalar("softcap");
    attention.multiplier = fields.scalar("multiplier");
    attention.query_scale.beta = fields.scalar("scale of queries");
    if (rope >= 0) {
      const Rope& chosen = ropes_[static_cast<size_t>(rope)];
      require(2 * chosen.pairs <= attention.head_dim, "the rope is wider than the head");
      attention.cosine = chosen.cosine;
      attention.sine = chosen.sine;
      attention.rotary_pairs = chosen.pairs;
    }
    const int64_t hidden = call_.hidden_size;
    const int64_t width = attention.projected_size();
    const bool is_full = attention.qk_norm == QkNorm::kFullWidth;
    const bool is_wide = is_full || attention.qk_norm == QkNorm::kEachHead;
    const bool has_qk_norm = is_wide || attention.qk_norm == QkNorm::kPerHead;
    require(!(is_full && attention.is_value_of_key),
            "values are made of keys that have one norm for all heads");
    require(!(attention.is_reader && (attention.is_value_of_key || attention.is_value_normed)),
            "values of another block are made or normalised");
    Vectors vectors(next_vectors());
    attention.norm = read_norm(vectors, norm, attention.norm.eps, has_norm_bias);
    attention.qkv_bias = vectors.take(has_qkv_bias, width);
    attention.q_norm = vectors.take(has_qk_norm, is_wide ? attention.q_size() : attention.head_dim);
    attention.k_norm = vectors.take(has_qk_norm && !attention.is_reader,
                                    is_wide ? attention.kv_size() : attention.head_dim);
    attention.o_bias = vectors.take(has_o_bias, hidden);
    attention.post_norm = vectors.take(has_post_norm, hidden);
    attention.sinks = vectors.take(has_sinks, attention.num_heads);
    vectors.end();
    attention.qkv = matrix_at(frame_, next_argument_++, "qkv", qkv, width, hidden);
    attention.o = matrix_at(frame_, next_argument_++, "o", o, hidden, attention.q_size());
    read_pages(attention);
    call_.blocks.push_back(block);
  }

  // Keys [B, KH, D / n, S, n] with n numbers in four bytes, values [B, KH, S / n, D, n]; of int8 both
  // [B, KH, S, D + the bytes of a scale].
  void read_pages(AttentionBlock& block) {
    const bool is_int8 = block.cache_type == CacheType::kInt8;
    const bool is_half = block.cache_type == CacheType::kBfloat16;
    const XLA_FFI_DataType type = is_int8   ? XLA_FFI_DataType_S8
                                  : is_half ? XLA_FFI_DataType_U16
                                            : XLA_FFI_DataType_F32;
    const int64_t lane = is_half ? 2 : 1, heads = block.num_kv_heads, dim = block.head_dim;
    int64_t& num_pages = num_pages_[block.group];
    const int64_t pages = num_pages > 0 ? num_pages : kAny;
    const int64_t wanted = call_.block_size > 0 ? call_.block_size : kAny;
    const int64_t keys_at = next_argument_++, values_at = next_argument_++;
    const auto& keys =
        is_int8
            ? frame_.argument(keys_at, "keys", type, {pages, heads, wanted, dim + kScaleBytes}, kWide)
            : frame_.argument(keys_at, "keys", type, {pages, heads, dim / lane, wanted, lane}, kWide);
    const int64_t size = keys.dims[is_int8 ? 2 : 3];
    const auto& values =
        is_int8 ? frame_.argument(values_at, "values", type,
                                  {keys.dims[0], heads, size, dim + kScaleBytes}, kWide)
                : frame_.argument(values_at, "values", type,
                                  {keys.dims[0], heads, size / lane, dim, lane}, kWide);
    frame_.aliased_result(next_result_++, "keys", keys);
    frame_.aliased_result(next_result_++, "values", values);
    const bool has_pairs = is_int8 || is_half;
    require(keys.dims[0] > 0 && size > 0 && size <= 65536 && !(has_pairs && size % 2 == 1),
            "the cache has no blocks, or blocks of more than 65536 or of an odd number of tokens");
    num_pages = keys.dims[0];
    call_.block_size = size;
    block.keys = keys.data;
    block.values = values.data;
  }

  void read_mlp(Fields& fields) {
    const MlpFields read(fields);
    Block block{};
    MlpBlock& mlp = block.mlp = read.mlp;
    const int64_t hidden = call_.hidden_size;
    if (mlp.is_parallel) {
      require(mlp.norm.kind == NormKind::kNone && !read.has_norm_bias && !call_.blocks.empty() &&
                  call_.blocks.back().is_attention,
              "an MLP reads the norm of an attention block that is not before it, or has its own");
      call_.blocks.back().attention.is_parallel = true;
    }
    Vectors vectors(next_vectors());
    mlp.norm = read_norm(vectors, mlp.norm.kind, mlp.norm.eps, read.has_norm_bias);
    mlp.gate_up_bias = vectors.take(read.has_gate_up_bias, mlp.gate_up_width());
    mlp.down_bias = vectors.take(read.has_down_bias, hidden);
    mlp.post_norm = vectors.take(read.has_post_norm, hidden);
    vectors.end();
    mlp.gate_up = matrix_at(frame_, next_argument_++, "gate_up", read.gate_up,
                            read.gate_up_outputs(), hidden);
    mlp.down = matrix_at(frame_, next_argument_++, "down", read.down, hidden,
                         mlp.intermediate_size);
    call_.blocks.push_back(block);
  }

  const XLA_FFI_Buffer& next_vectors() {
    return frame_.argument(next_argument_++, "vectors", XLA_FFI_DataType_F32, {kAny}, kFloat);
  }

  Norm read_norm(Vectors& vectors, NormKind kind, float eps, bool has_bias) const {
    const float* weight = vectors.take(kind != NormKind::kNone, call_.hidden_size);
    return {kind, eps, weight, vectors.take(has_bias, call_.hidden_size)};
  }

  const CallFrame& frame_;
  BlocksCall call_{};
  std::vector<Rope> ropes_;
  int64_t next_argument_ = 0, next_result_ = 1;
  int64_t num_pages_[kMaxGroups] = {};  // 0 where no block has pages of the group.
};

bool run_blocks(const CallFrame& frame) {
  const BlocksCall call = BlocksReader(frame).read();
  return current_level().run_blocks(call);
}

bool run_by_head(const CallFrame& frame) {
  const ByHeadCall call = read_by_head(frame);
  return call.num_rows == 0 || current_level().run_by_head(call);
}

bool run_latent(const CallFrame& frame) {
  return current_level().run_latent(read_latent(frame));
}

// config: version, the fields of an MLP; scalars: those of an MLP.
bool run_experts(const CallFrame& frame) {
  int64_t num_fields = 0, num_scalars = 0;
  const auto* config = frame.array<int64_t>("config", XLA_FFI_DataType_S64, &num_fields);
  const auto* scalars = frame.array<float>("scalars", XLA_FFI_DataType_F32, &num_scalars);
  require(num_fields == 1 + kMlpFields && num_scalars == kMlpScalars &&
              config[0] == kConfigVersion,
          "the call was built for another version of the kernels");
  Fields fields(config + 1, scalars);
  const MlpFields read(fields);
  require(read.mlp.norm.kind == NormKind::kNone && !read.has_norm_bias && !read.has_post_norm &&
              !read.mlp.is_parallel && read.mlp.multiplier == 1.0f,
          "experts have neither norms nor a multiplier");
  frame.expect_arguments(6);
  ExpertsCall call{};
  const auto& x = frame.argument(0, "x", XLA_FFI_DataType_F32, {kAny, kAny}, kFloat);
  const auto& experts =
      frame.argument(1, "experts", XLA_FFI_DataType_S32, {x.dims[0], kAny}, kFloat);
  const auto& matrices = frame.argument(4, "gate_up", XLA_FFI_DataType_U8, {kAny, kAny, kAny}, kWide);
  const int64_t width = x.dims[1];
  call.x = floats(x);
  call.num_tokens = x.dims[0];
  call.experts = integers(experts);
  call.num_chosen = experts.dims[1];
  call.weights = floats(frame.argument(2, "weights", XLA_FFI_DataType_F32,
                                       {call.num_tokens, call.num_chosen}, kFloat));
  call.y = static_cast<float*>(
      frame.result(0, "y", XLA_FFI_DataType_F32, {call.num_tokens, width}, kFloat).data);
  call.num_experts = matrices.dims[0];
  require(call.num_experts > 0 && call.num_experts <= kMaxExperts && call.num_tokens < kMaxSize,
          "there are no experts, or more than 65536, or too many tokens");
  call.expert = read.mlp;
  MlpBlock& mlp = call.expert;
  Vectors vectors(frame.argument(3, "vectors", XLA_FFI_DataType_F32, {kAny}, kFloat));
  mlp.gate_up_bias = vectors.take(read.has_gate_up_bias, call.num_experts * mlp.gate_up_width());
  mlp.down_bias = vectors.take(read.has_down_bias, call.num_experts * width);
  vectors.end();
  mlp.gate_up = matrix_at(frame, 4, "gate_up", read.gate_up, read.gate_up_outputs(), width,
                          call.num_experts);
  mlp.down = matrix_at(frame, 5, "down", read.down, width, mlp.intermediate_size, call.num_experts);
  for (int64_t i = 0; i < call.num_tokens * call.num_chosen; i++) {
    if (call.experts[i] < 0 || call.experts[i] > call.num_experts) {
      throw BadCall("token " + std::to_string(i / call.num_chosen) + " chose expert " +
                    std::to_string(call.experts[i]) + " of " + std::to_string(call.num_experts));
    }
  }
  return current_level().run_experts(call);
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

int64_t bytes_of(XLA_FFI_DataType type) {
  switch (type) {
    case XLA_FFI_DataType_S8: return 1;
    case XLA_FFI_DataType_U16: return 2;
    case XLA_FFI_DataType_F32: return 4;
    default: throw BadCall("no cache has type " + std::to_string(static_cast<int>(type)));
  }
}

// Zeros what lies in no whole page; the caller drops the pages, which are never touched here.
bool run_unwritten(const CallFrame& frame) {
  frame.expect_arguments(0);
  const XLA_FFI_Buffer& array = frame.any_result(0, "array");
  const int64_t size = CallFrame::size_of(array) * bytes_of(array.dtype);
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(array.data), end = start + size;
  const uintptr_t first_page = (start + page - 1) / page * page;
  const uintptr_t last_page = std::max(first_page, end / page * page);
  char* data = static_cast<char*>(array.data);
  std::fill(data, data + (std::min(first_page, end) - start), '\0');
  if (last_page < end) std::fill(data + (last_page - start), data + size, '\0');
  return true;
}

bool run_recurrent(const CallFrame& frame) {
  const RecurrentCall call = RecurrentReader(frame).read();
  return call.num_rows == 0 || current_level().run_recurrent(call);
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
PENSTOCK_EXPORT XLA_FFI_Error* penstock_latent(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "latent", penstock::run_latent);
}
PENSTOCK_EXPORT XLA_FFI_Error* penstock_by_head(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "by_head", penstock::run_by_head);
}
PENSTOCK_EXPORT XLA_FFI_Error* penstock_experts(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "experts", penstock::run_experts);
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
PENSTOCK_EXPORT XLA_FFI_Error* penstock_unwritten(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "unwritten", penstock::run_unwritten);
}
PENSTOCK_EXPORT XLA_FFI_Error* penstock_recurrent(XLA_FFI_CallFrame* frame) {
  return penstock::handle(frame, "recurrent", penstock::run_recurrent);
}
