// Which tokens of a step attention takes together, and the borders of what it reads of their pages.
// Include inside the namespace.

// Positions of a chunk: whole pages, about this many.
constexpr int64_t kChunk = 256;
inline int64_t chunk_size(int64_t block_size) {
  return block_size >= kChunk ? block_size : kChunk / block_size * block_size;
}
// Positions of a span: whole chunks, about this many.
constexpr int64_t kSpan = 1024;
inline int64_t span_size(int64_t block_size) {
  const int64_t chunk = chunk_size(block_size);
  return chunk >= kSpan ? chunk : kSpan / chunk * chunk;
}

// Queries times heads that are computed together, so that they read a page once.
constexpr int64_t kFoldedRows = kHasAmx ? kMostBlockRows : 24, kFoldedLatentRows = 64;

// Neighbouring live tokens of one row at ascending positions.
struct QuerySegment {
  int64_t first, count;  // in the order of BlocksCall::live
};

// Neighbouring segments, the rows of which begin with the same blocks. Positions below `num_shared`,
// whole pages and a chunk at least, lie in these and are before every token of the tile: they are
// read once for all of them, and further ones for each segment by itself.
struct QueryTile {
  int64_t first, count;  // in the order of BlocksCall::live
  int64_t first_segment, num_segments, num_shared;
};

struct QueryTiles {
  std::vector<QueryTile> tiles;
  std::vector<QuerySegment> segments;
  int64_t most_tokens = 1;  // of a tile
  int64_t num_spans = 1;    // up to the furthest position
};

// Positions that the rows of two tokens have in the same blocks and that are before both tokens;
// none where they are fewer than a chunk.
inline int64_t num_shared(const BlocksCall& call, const int32_t* tables, int32_t one,
                          int32_t other) {
  const int64_t before = std::min(call.positions[one], call.positions[other]);
  const int32_t* table = tables + call.rows[one] * call.table_width;
  const int32_t* other_table = tables + call.rows[other] * call.table_width;
  const int64_t num_blocks = before / call.block_size;
  const int64_t same = std::mismatch(table, table + num_blocks, other_table).first - table;
  const int64_t positions = same * call.block_size;
  return positions < chunk_size(call.block_size) ? 0 : positions;
}

// Finds the neighbours among the live tokens that attention by some tables takes together.
inline QueryTiles query_tiles(const BlocksCall& call, const int32_t* tables,
                              int64_t folded_rows = kFoldedRows) {
  int64_t heads = 1, kv_heads = 1;
  for (const Block& block : call.blocks) {
    if (!block.is_attention) continue;
    heads = std::max(heads, block.attention.heads_per_kv_head());
    kv_heads = std::max(kv_heads, block.attention.num_kv_heads);
  }
  QueryTiles found;
  const auto num_live = static_cast<int64_t>(call.live.size());
  found.most_tokens = std::max<int64_t>(1, folded_rows / heads);
  // Fewer tiles and key heads would leave threads without work.
  const bool shares = call.block_size > 0 && num_live * kv_heads >= 4 * found.most_tokens;
  std::vector<QueryTile>& tiles = found.tiles;
  for (int64_t i = 0; i < num_live; i++) {
    const int32_t token = call.live[static_cast<size_t>(i)];
    if (call.block_size > 0) {
      const int64_t spans = divide_up(call.positions[token] + int64_t{1}, span_size(call.block_size));
      found.num_spans = std::max(found.num_spans, spans);
    }
    const auto end = static_cast<int64_t>(found.segments.size());
    if (i > 0 && tiles.back().count < found.most_tokens) {
      QueryTile& tile = tiles.back();
      const int32_t before = call.live[static_cast<size_t>(i - 1)];
      if (call.rows[token] == call.rows[before] &&
          call.positions[token] == call.positions[before] + 1) {
        tile.count++;
        found.segments.back().count++;
        continue;
      }
      const int32_t first = call.live[static_cast<size_t>(tile.first)];
      const int64_t shared = shares ? num_shared(call, tables, first, token) : 0;
      if (shared > 0) {
        tile.num_shared = tile.num_segments > 1 ? std::min(tile.num_shared, shared) : shared;
        tile.num_segments++;
        tile.count++;
        found.segments.push_back({i, 1});
        continue;
      }
    }
    found.segments.push_back({i, 1});
    tiles.push_back({i, 1, end, 1, 0});
  }
  return found;
}
