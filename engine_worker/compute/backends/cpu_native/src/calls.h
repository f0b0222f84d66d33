// What a call computes, as plain structs: filled and checked by ffi.cc, computed by every level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "thread_pool.h"

namespace penstock {

// A panel is the weights of 32 outputs: for each group of inputs, 32 lanes of four bytes. A lane
// holds one float, two bfloat16, four int8 or eight int4 of one output. See docs/kernels.md.
constexpr int64_t kPanelOutputs = 32;
constexpr int64_t kLaneBytes = 4;
constexpr int64_t kRowBytes = kPanelOutputs * kLaneBytes;
constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kMaxKeyDim = 1024;  // Of a latent and what is rotated beside it.
constexpr int64_t kScaleBytes = 4;  // Of a token's key or value in an int8 cache.
constexpr int64_t kMaxTaps = 16;  // Of a convolution.
constexpr int64_t kMaxInt8Inputs = 65536;  // The sum of products then still fits 32 bits.

// The last five are numbers in blocks, as checkpoints hold them: see BlockLayout. int4 is packed as
// blocks of four bits with one group each and a bfloat16 scale, and kernels see it as these.
enum class WeightType : int64_t {
  kFloat32 = 0,
  kBfloat16 = 1,
  kInt8 = 2,
  kInt4 = 3,
  kBlocks8 = 4,
  kBlocks4 = 5,
  kBlocksFp4 = 6,
  kBlocksIq4 = 7,
  kBlocks6 = 8
};
// kE8m0: an exponent of two with a bias of 127 (OCP Microscaling Formats 1.0, 5.4.1).
enum class ScaleType : int64_t { kFloat16 = 0, kBfloat16 = 1, kFloat32 = 2, kE8m0 = 3 };
// kInt8: with a float32 scale for each token and key head, see cache_pages.h.
enum class CacheType : int64_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2 };
enum class NormKind : int64_t { kNone = 0, kRms = 1, kLayer = 2 };
// kEachHead: a LayerNorm with weights of its own for each head.
enum class QkNorm : int64_t {
  kNone = 0,
  kPerHead = 1,
  kFullWidth = 2,
  kWeightless = 3,
  kEachHead = 4
};
enum class Activation : int64_t {
  kSilu = 0,
  kGeluTanh = 1,
  kGelu = 2,
  kRelu = 3,
  kQuickGelu = 4,
  kReluSquared = 5
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

inline bool is_in_blocks(WeightType type) {
  return type == WeightType::kBlocks8 || type == WeightType::kBlocks4 ||
         type == WeightType::kBlocksFp4 || type == WeightType::kBlocksIq4 ||
         type == WeightType::kBlocks6;
}

// Twice the numbers of E2M1, by code (OCP Microscaling Formats 1.0, 5.3.3).
constexpr int kDoubledFp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
// The numbers of GGUF's IQ4_NL and IQ4_XS, by code (ggml-common.h, kvalues_iq4nl).
constexpr int kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                          1,    13,   25,  38,  53,  69,  89,  113};

// Each block of an output's inputs has a scale d and, with minima, a scale e of these; each group of
// a block may have a whole scale s and a whole minimum m. A weight is d * s * (w - zero) - e * m. In
// a panel, behind the words of a block: s and m of every group, [32] int8 each, then [32] d and e.
// kBlocksFp4 has codes of E2M1 and one group a block: a weight is d * the number. kBlocksIq4 has
// codes of kIq4 and no minima: a weight is d * s * the number. kBlocks6 has the low four bits of 16
// inputs in two words, as kBlocks4 has them, and the other two bits of these in a third one: bits 0
// and 1 of a byte are of the first four inputs, and so on.
struct BlockLayout {
  int64_t block_size = 0;  // Inputs, a multiple of the group's.
  ScaleType scale_type = ScaleType::kFloat16;
  bool has_scales = false, has_minima = false;

  int64_t scale_bytes() const {
    return scale_type == ScaleType::kFloat32 ? 4 : scale_type == ScaleType::kE8m0 ? 1 : 2;
  }
  int64_t words_bytes(WeightType type) const {
    const int64_t words_of_16 =
        type == WeightType::kBlocks8 ? 4 : type == WeightType::kBlocks6 ? 3 : 2;
    return block_size / 16 * words_of_16 * kRowBytes;
  }
  int64_t num_bytes(WeightType type, int64_t group_size) const {
    return words_bytes(type) +
           kPanelOutputs * (block_size / group_size * (has_scales + has_minima) +
                            scale_bytes() * (1 + has_minima));
  }
  // What is multiplied for 0.
  constexpr int zero(WeightType type) const {
    return type == WeightType::kBlocks8     ? 128
           : type == WeightType::kBlocksIq4 ? 128
           : type == WeightType::kBlocksFp4 ? 12
           : type == WeightType::kBlocks6   ? 32
           : has_minima                     ? 0
                                            : 8;
  }
};

// Inputs as they are multiplied: with zeros up to whole lanes, groups or blocks.
inline int64_t padded_inputs(WeightType type, int64_t inputs, int64_t group_size,
                             const BlockLayout& blocks = {}) {
  switch (type) {
    case WeightType::kFloat32: return inputs;
    case WeightType::kBfloat16: return round_up(inputs, 2);
    case WeightType::kInt8: return round_up(inputs, 4);
    case WeightType::kInt4: return round_up(inputs, group_size);
    case WeightType::kBlocks8:
    case WeightType::kBlocks4:
    case WeightType::kBlocksFp4:
    case WeightType::kBlocksIq4:
    case WeightType::kBlocks6: return round_up(inputs, blocks.block_size);
  }
  return 0;
}

// Inputs that share one scale of a row of activations or weights; some types have several of them.
inline int64_t num_scale_groups(WeightType type, int64_t inputs, int64_t group_size,
                                const BlockLayout& blocks = {}) {
  const bool is_grouped = type == WeightType::kInt4 || is_in_blocks(type);
  return is_grouped ? padded_inputs(type, inputs, group_size, blocks) / group_size : 1;
}

inline int64_t panel_bytes(WeightType type, int64_t inputs, int64_t group_size,
                           const BlockLayout& blocks = {}) {
  int64_t padded = padded_inputs(type, inputs, group_size, blocks);
  switch (type) {
    case WeightType::kFloat32: return padded * kRowBytes;
    case WeightType::kBfloat16: return padded / 2 * kRowBytes;
    case WeightType::kInt8: return padded / 4 * kRowBytes + kPanelOutputs * 4;  // float32 scales
    case WeightType::kInt4:  // bfloat16 scales behind each group
      return padded / group_size * (group_size / 8 * kRowBytes + kPanelOutputs * 2);
    case WeightType::kBlocks8:
    case WeightType::kBlocks4:
    case WeightType::kBlocksFp4:
    case WeightType::kBlocksIq4:
    case WeightType::kBlocks6:
      return padded / blocks.block_size * blocks.num_bytes(type, group_size);
  }
  return 0;
}

// Of the keys, or the values, of one head in a page.
inline int64_t page_bytes(CacheType type, int64_t block_size, int64_t head_dim) {
  switch (type) {
    case CacheType::kFloat32: return block_size * head_dim * 4;
    case CacheType::kBfloat16: return block_size * head_dim * 2;
    case CacheType::kInt8: return block_size * (head_dim + kScaleBytes);
  }
  return 0;
}

struct Matrix {
  const char* data;
  int64_t outputs, inputs;
  WeightType type;
  int64_t group_size;
  BlockLayout blocks;

  int64_t num_panels() const { return divide_up(outputs, kPanelOutputs); }
  int64_t padded() const { return padded_inputs(type, inputs, group_size, blocks); }
  int64_t panel_stride() const { return panel_bytes(type, inputs, group_size, blocks); }
  int64_t num_groups() const { return num_scale_groups(type, inputs, group_size, blocks); }
  // One of several that lie one behind the other, of which this is the first.
  Matrix at(int64_t index) const {
    Matrix other = *this;
    other.data += index * num_panels() * panel_stride();
    return other;
  }
};

// The vectors of a block; null where it has none.
struct Norm {
  NormKind kind;
  float eps;
  const float *weight, *bias;
};

// Queries at position p are multiplied by 1 + beta ln(1 + floor((p + offset) / length)).
struct QueryScale {
  float beta;  // 0 is none.
  int64_t length, offset;
};

struct AttentionBlock {
  Norm norm;
  Matrix qkv, o;  // Outputs of qkv: queries, keys, values, and what gates the attended.
  const float *qkv_bias, *q_norm, *k_norm, *o_bias, *post_norm, *sinks;
  int64_t num_heads, num_kv_heads, head_dim;  // head_dim: of queries
  int64_t latent_dim;  // Latents that all heads share, at the beginning of a key; 0 is none.
  int64_t window, chunk;  // Positions that a query sees, and whose multiples none sees past; or 0.
  QkNorm qk_norm;
  QueryScale query_scale;
  bool has_gate;         // What is attended to is multiplied by the gate's sigmoid.
  bool is_interleaved;   // The rope turns neighbouring numbers.
  bool is_value_of_key;  // Values are keys before their norm and rotation; qkv has none.
  bool is_value_normed;  // Each head of them, without weights.
  bool is_reader;        // Of another block's pages; qkv has neither keys nor values.
  bool is_parallel;      // The MLP behind it reads what its norm gives, too.
  float scale, softcap, multiplier;
  const float *cosine, *sine;  // [T, rotary_pairs]
  int64_t rotary_pairs;
  CacheType cache_type;
  void *keys, *values;    // One layer's pages.
  int64_t group;          // Of the layers that share its block tables.
  const int32_t* tables;  // [R, table_width], those of the group.

  bool is_latent() const { return latent_dim > 0; }
  int64_t value_dim() const { return is_latent() ? latent_dim : head_dim; }
  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  int64_t gate_offset() const {
    return q_size() + kv_size() * (is_reader ? 0 : is_value_of_key ? 1 : 2);
  }
  int64_t projected_size() const { return gate_offset() + (has_gate ? q_size() : 0); }
  int64_t heads_per_kv_head() const { return num_heads / num_kv_heads; }
};

struct MlpBlock {
  Norm norm;
  Matrix gate_up, down;
  const float *gate_up_bias, *down_bias, *post_norm;
  int64_t intermediate_size;
  Activation activation;
  bool is_gated;
  bool is_parallel;  // It reads what the norm of the attention block before it gave.
  float multiplier;
  float clamp;            // Of the gate from above and of up on both sides; 0 is none.
  float up_offset;        // Added to up.
  float gate_multiplier;  // Of the gate, before it is clamped.

  int64_t gate_up_width() const { return is_gated ? 2 * intermediate_size : intermediate_size; }
  // One of several that lie one behind the other, of which this is the first.
  MlpBlock at(int64_t index) const {
    MlpBlock other = *this;
    other.gate_up = gate_up.at(index);
    other.down = down.at(index);
    if (gate_up_bias) other.gate_up_bias += index * gate_up_width();
    if (down_bias) other.down_bias += index * down.outputs;
    return other;
  }
};

struct Block {
  bool is_attention;
  AttentionBlock attention;
  MlpBlock mlp;
};

struct BlocksCall {
  float* x;  // [T, hidden], updated in place.
  int64_t num_tokens, hidden_size;
  const int32_t *positions, *rows;  // [T]
  const int32_t* block_tables;      // [num_groups, R, table_width]
  int64_t num_groups, num_rows, table_width, block_size;
  std::vector<Block> blocks;
  std::vector<int32_t> live;  // Indices of the tokens that are not padding.
};

// The weighted sum over each token's experts.
struct ExpertsCall {
  const float* x;          // [T, inputs of gate_up]
  const int32_t* experts;  // [T, num_chosen]; num_experts is none.
  const float* weights;    // [T, num_chosen]
  float* y;                // [T, outputs of down]
  int64_t num_tokens, num_chosen, num_experts;
  MlpBlock expert;  // The first one; without norms.
};

// Attention over latents: one block, whose matrices and vectors are none. `tokens` has no residual.
struct LatentCall {
  BlocksCall tokens;
  const float *queries, *keys, *latents;  // [T, num_heads, head_dim], [T, rotated], [T, latent_dim]
  float* y;                               // [T, num_heads, latent_dim]
};

// The product of each head's numbers and its own matrix.
struct ByHeadCall {
  const float* x;         // [T, num_heads, inputs]
  float* y;               // [T, num_heads, outputs]
  int64_t num_rows;       // Those that are computed.
  Matrix matrix;          // Of the first head; the others' are `head_bytes` apart.
  int64_t num_heads, head_bytes;
};

struct HeadCall {
  const float* hidden;  // [R, inputs]
  float* logits;        // [R, outputs]; null where only the likeliest tokens are wanted:
  int32_t* tokens;      // [R]
  int64_t num_rows;     // Those that are computed.
  Matrix matrix;
  float multiplier, softcap;
};

// In place of a token: some score of the row is NaN or infinity. As NAN_LOGITS in sampler.py.
constexpr int32_t kNoNumber = -2;

struct EmbeddingCall {
  const int32_t* token_ids;  // [T]
  float* x;                  // [T, inputs]
  int64_t num_tokens;
  Matrix matrix;
  float multiplier;
};

// What goes from token to token in a recurrent layer.
enum class MixerKind : int64_t { kConvolution = 0, kDeltaNet = 1, kStateSpace = 2 };

// In `before` of a token: what the token in front of it left, wherever that is; in `after`: nowhere.
constexpr int32_t kGoesOn = -2;

// Tokens of some sequences, those of each in order. A convolution over each channel's last inputs;
// behind it, but for a layer that is nothing else, SiLU and what heads remember. Neighbouring heads
// share a group: a delta net has its query and key, a state space what writes and what reads.
struct RecurrentCall {
  MixerKind kind;
  const float* mixed;             // [T, channels]: queries, keys, values; or values, writes, reads
  const int32_t *before, *after;  // [T] states, or kGoesOn; before -1 are zeros, after -1 is padding.
  const float *taps, *bias;       // [channels, num_taps], oldest first; [channels], or null
  float* tails;                   // [states, num_taps - 1, channels], updated in place.
  float* memories;                // [states, num_heads, group_dim, head_dim] or, of a state space,
                                  // [states, num_heads, head_dim, group_dim], updated in place.
  const float *writes, *forgets;  // [T, num_heads]: strength or time; logarithm of what is kept
  const float* passed;            // [num_heads] of a state space: how much of a value passes it by.
  float* y;                       // [T, channels] or [T, num_heads, head_dim]
  float eps;                      // Of the norm of queries and keys.
  int64_t num_rows, num_states, channels, num_taps;
  int64_t num_heads, num_groups, head_dim, group_dim;

  int64_t heads_per_group() const { return num_heads / num_groups; }
};

// One instruction level: the same sources, compiled with other options.
struct Level {
  const char* name;
  // Each returns false when there is not enough memory for what it keeps in between.
  bool (*run_blocks)(const BlocksCall&);
  bool (*run_latent)(const LatentCall&);
  bool (*run_by_head)(const ByHeadCall&);
  bool (*run_experts)(const ExpertsCall&);
  bool (*run_head)(const HeadCall&);
  bool (*run_embedding)(const EmbeddingCall&);
  bool (*run_recurrent)(const RecurrentCall&);
};

}  // namespace penstock
