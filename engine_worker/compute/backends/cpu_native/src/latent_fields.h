// What a call of attention over latents says, with every bound checked.
#pragma once

#include <algorithm>
#include <cstdint>

#include "call_fields.h"
#include "call_frame.h"
#include "calls.h"
#include "token_check.h"

namespace penstock {

// config: version, cache type; scalars: scale of the scores.
inline LatentCall read_latent(const CallFrame& frame) {
  int64_t num_fields = 0, num_scalars = 0;
  const auto* config = frame.array<int64_t>("config", XLA_FFI_DataType_S64, &num_fields);
  const auto* scalars = frame.array<float>("scalars", XLA_FFI_DataType_F32, &num_scalars);
  require(num_fields == 2 && num_scalars == 1 && config[0] == kConfigVersion,
          "the call was built for another version of the kernels");
  Fields fields(config + 1, scalars);
  LatentCall call{};
  Block block{};
  block.is_attention = true;
  AttentionBlock& attention = block.attention;
  attention.cache_type = static_cast<CacheType>(fields.integer(0, 1, "cache type"));
  attention.scale = fields.scalar("scale");
  const auto f32 = XLA_FFI_DataType_F32, s32 = XLA_FFI_DataType_S32;
  const auto& queries = frame.argument(0, "queries", f32, {kAny, kAny, kAny}, kFloat);
  const int64_t num_tokens = queries.dims[0];
  const auto& keys = frame.argument(1, "keys", f32, {num_tokens, kAny}, kFloat);
  const auto& latents = frame.argument(2, "latents", f32, {num_tokens, kAny}, kFloat);
  const int64_t rotated = keys.dims[1], latent = latents.dims[1];
  attention.num_heads = queries.dims[1];
  attention.num_kv_heads = 1;
  attention.head_dim = queries.dims[2];
  attention.latent_dim = latent;
  require(attention.num_heads > 0 && attention.num_heads <= 256 && rotated > 0 && latent > 0 &&
              rotated % 2 == 0 && latent % 2 == 0 && attention.head_dim == latent + rotated &&
              attention.head_dim <= kMaxKeyDim,
          "queries are not those of the latents and keys, which are even and at most 1024 wide");
  BlocksCall& tokens = call.tokens;
  tokens.num_tokens = num_tokens;
  tokens.positions = integers(frame.argument(3, "positions", s32, {num_tokens}, kFloat));
  tokens.rows = integers(frame.argument(4, "rows", s32, {num_tokens}, kFloat));
  const auto& tables = frame.argument(5, "block_tables", s32, {kAny, kAny}, kFloat);
  attention.tables = tokens.block_tables = integers(tables);
  tokens.num_groups = 1;
  tokens.num_rows = tables.dims[0];
  tokens.table_width = tables.dims[1];
  const bool is_half = attention.cache_type == CacheType::kBfloat16;
  const auto type = is_half ? XLA_FFI_DataType_U16 : f32;
  const int64_t lane = is_half ? 2 : 1;
  const auto& key_pages =
      frame.argument(6, "key pages", type, {kAny, 1, rotated / lane, kAny, lane}, kWide);
  const int64_t num_pages = key_pages.dims[0], size = key_pages.dims[3];
  const auto& latent_pages = frame.argument(
      7, "latent pages", type, {num_pages, 1, latent / lane, size, lane}, kWide);
  frame.expect_arguments(8);
  const auto& y = frame.result(0, "y", f32, {num_tokens, attention.num_heads, latent}, kFloat);
  frame.aliased_result(1, "key pages", key_pages);
  frame.aliased_result(2, "latent pages", latent_pages);
  require(num_pages > 0 && size > 0 && size <= 65536 && size % 2 == 0,
          "the cache has no blocks, or blocks of more than 65536 or of an odd number of tokens");
  tokens.block_size = size;
  attention.keys = key_pages.data;
  attention.values = latent_pages.data;
  call.queries = floats(queries);
  call.keys = floats(keys);
  call.latents = floats(latents);
  call.y = static_cast<float*>(y.data);
  tokens.blocks.push_back(block);
  TokenCheck(tokens, &num_pages).run();
  std::fill_n(call.y, CallFrame::size_of(y), 0.0f);
  return call;
}

// config: version, a format, where a head's matrix begins in its bytes.
inline ByHeadCall read_by_head(const CallFrame& frame) {
  int64_t num_fields = 0;
  const auto* config = frame.array<int64_t>("config", XLA_FFI_DataType_S64, &num_fields);
  require(num_fields == 2 + kFormatFields && config[0] == kConfigVersion,
          "the call was built for another version of the kernels");
  Fields fields(config + 1, nullptr);
  const Format format = format_of(fields);
  const int64_t offset = fields.integer(0, kMaxSize, "offset");
  const auto f32 = XLA_FFI_DataType_F32;
  const auto& x = frame.argument(0, "x", f32, {kAny, kAny, kAny}, kFloat);
  const int64_t num_tokens = x.dims[0], heads = x.dims[1], inputs = x.dims[2];
  const auto& wanted = frame.argument(1, "wanted", XLA_FFI_DataType_S32, {num_tokens}, kFloat);
  const auto& packed =
      frame.argument(2, "matrices", XLA_FFI_DataType_U8, {heads, kAny}, kWide);
  frame.expect_arguments(3);
  const auto& y = frame.result(0, "y", f32, {num_tokens, heads, kAny}, kFloat);
  const int64_t outputs = y.dims[2], head_bytes = packed.dims[1];
  require(format.type == WeightType::kFloat32 || format.type == WeightType::kBfloat16,
          "matrices of heads are float32 or bfloat16");
  require(heads > 0 && inputs > 0 && inputs < kMaxSize && outputs > 0 && outputs < kMaxSize,
          "there are no heads, or their numbers are none or too many");
  ByHeadCall call{};
  call.matrix = {static_cast<const char*>(packed.data) + offset, outputs, inputs, format.type,
                 format.group_size, format.blocks};
  const int64_t size = call.matrix.num_panels() * call.matrix.panel_stride();
  require(offset % kRowBytes == 0 && head_bytes % kRowBytes == 0 && offset + size <= head_bytes,
          "a head's matrix is not in its bytes");
  call.x = floats(x);
  call.y = static_cast<float*>(y.data);
  call.num_heads = heads;
  call.head_bytes = head_bytes;
  for (int64_t row = 0; row < num_tokens; row++) {
    if (integers(wanted)[row] != 0) call.num_rows = row + 1;
  }
  const int64_t width = heads * outputs;
  std::fill_n(call.y + call.num_rows * width, (num_tokens - call.num_rows) * width, 0.0f);
  return call;
}

}  // namespace penstock
