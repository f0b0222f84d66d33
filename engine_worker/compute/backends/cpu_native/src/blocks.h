// The blocks of a decoder. Every function runs on all threads of the team at once. Include inside
// the namespace.

// Memory between the phases of a call, kept for the next one.
struct Scratch {
  ActivationMemory narrow, wide;  // what is multiplied; wide is the MLP's inner width
  Memory projected;               // [M, widest] q|k|v, or an output before its norm
  Memory inner;                   // [M, q] after attention, or [M, intermediate]
  Memory normed;                  // one row a thread
  Memory spans;                   // softmax states of spans that threads share
  Memory likeliest;               // of each row what each thread found
  AttentionScratch attention[ThreadPool::kMaxThreads];
};

inline Scratch& scratch() {
  static Scratch* kept = new Scratch;  // Never destroyed: see ThreadPool::instance.
  return *kept;
}

// ---- norms --------------------------------------------------------------------------------------------

inline void normalize(const Norm& norm, const float* x, int64_t size, float* to) {
  if (norm.kind == NormKind::kNone) {
    std::memcpy(to, x, static_cast<size_t>(size) * 4);
    return;
  }
  float mean = 0.0f;
  if (norm.kind == NormKind::kLayer) {
    Vector sum{};
    for (int64_t i = 0; i < size; i += kLanes) sum += load_part(x + i, size - i);
    mean = sum_of(sum) / static_cast<float>(size);
  }
  Vector squares{};
  for (int64_t i = 0; i < size; i += kLanes) {
    Vector centred = load_part(x + i, size - i) - mean;
    if (size - i < kLanes) {
      for (int64_t lane = size - i; lane < kLanes; lane++) centred[lane] = 0.0f;
    }
    squares += centred * centred;
  }
  const float variance = sum_of(squares) / static_cast<float>(size);
  const float scale = 1.0f / std::sqrt(variance + norm.eps);
  for (int64_t i = 0; i < size; i += kLanes) {
    Vector y = (load_part(x + i, size - i) - mean) * scale;
    if (norm.weight) y *= load_part(norm.weight + i, size - i);
    if (norm.bias) y += load_part(norm.bias + i, size - i);
    store_part(to + i, y, size - i);
  }
}

inline void normalize_rms(const float* weight, float eps, float* x, int64_t size) {
  normalize({NormKind::kRms, eps, weight, nullptr}, x, size, x);
}

// ---- blocks -------------------------------------------------------------------------------------------

class BlockRunner {
 public:
  BlockRunner(Team& team, int num_threads, const BlocksCall& call, Scratch& scratch,
              const std::vector<QueryTiles>& tiles)
      : team_(team),
        num_threads_(num_threads),
        call_(call),
        scratch_(scratch),
        tiles_(tiles),
        num_live_(static_cast<int64_t>(call.live.size())) {}

  static constexpr int kPhases = 9;  // the most of any block

  void run(const Block& block) {
    if (block.is_attention) {
      run_attention(block.attention);
    } else {
      run_mlp(block.mlp);
    }
  }

 private:
  int32_t token_of(int64_t row) const { return call_.live[static_cast<size_t>(row)]; }
  float* x_of(int64_t row) const { return call_.x + token_of(row) * call_.hidden_size; }
  float* thread_row() const {
    return scratch_.normed.at<float>() + team_.thread() * round_up(call_.hidden_size, 16);
  }

  void run_attention(const AttentionBlock& block) {
    const Activations normed = pack_normed(block.norm, block.qkv);
    const int64_t width = block.qkv.outputs;
    float* qkv = scratch_.projected.at<float>();
    multiply(team_, num_threads_, normed, block.qkv,
             [&](int64_t row, int64_t num_rows, int64_t panel, const float* out) {
               store_panels(qkv + row * width, out, num_rows, block.qkv_bias, panel, width);
             });
    team_.each(num_live_, [&](int64_t row) { prepare_token(block, row, qkv + row * width); });
    float* attended = scratch_.inner.at<float>();
    if (block.cache_type == CacheType::kBfloat16) {
      attend<CacheType::kBfloat16>(block, qkv, attended);
    } else {
      attend<CacheType::kFloat32>(block, qkv, attended);
    }
    add_output(pack_rows(attended, block.o, scratch_.narrow), block.o, block.o_bias, block.post_norm, block.norm.eps,
               block.multiplier);
  }

  // Attention of all tiles and key heads; where these are few, threads share their spans.
  template <CacheType kType>
  void attend(const AttentionBlock& block, const float* qkv, float* attended) {
    const QueryTiles& tiles = tiles_[static_cast<size_t>(block.group)];
    Attention<kType> attention(call_, block, tiles, scratch_.attention[team_.thread()]);
    const int64_t width = block.qkv.outputs, num_heads = block.num_kv_heads;
    const int64_t num_items = static_cast<int64_t>(tiles.tiles.size()) * num_heads;
    const auto begin = [&](int64_t item) -> const QueryTile& {
      const QueryTile& tile = tiles.tiles[static_cast<size_t>(item / num_heads)];
      attention.begin(tile, item % num_heads, qkv + tile.first * width, width);
      return tile;
    };
    if (tiles.num_spans == 1 || num_items >= 2 * num_threads_) {
      // The last tiles of a prompt see the most: they come first.
      team_.each(num_items, [&](int64_t item) {
        const QueryTile& tile = begin(num_items - 1 - item);
        attention.run(attended + tile.first * block.q_size(), block.q_size());
      });
      return;
    }
    const int64_t most_rows = tiles.most_tokens * block.heads_per_kv_head();
    const auto state_of = [&](int64_t item, int64_t span, int64_t rows) {
      return SoftmaxState(scratch_.spans.at<float>() +
                              (item * tiles.num_spans + span) *
                                  SoftmaxState::num_floats(most_rows, block.head_dim),
                          rows);
    };
    const auto rows_of = [&](const QueryTile& tile) {
      return tile.count * block.heads_per_kv_head();
    };
    team_.each(num_items * tiles.num_spans, [&](int64_t part) {
      const int64_t item = part / tiles.num_spans, span = part % tiles.num_spans;
      const QueryTile& tile = begin(item);
      if (span < attention.first_span() || span >= attention.end_span()) return;
      attention.run_span(span, state_of(item, span, rows_of(tile)));
    });
    team_.each(num_items, [&](int64_t item) {
      const QueryTile& tile = begin(item);
      const SoftmaxState state(scratch_.attention[team_.thread()].state.at<float>(), rows_of(tile));
      attention.start(state);
      for (int64_t span = attention.first_span(); span < attention.end_span(); span++) {
        attention.merge(state_of(item, span, rows_of(tile)), state);
      }
      attention.finish(state, attended + tile.first * block.q_size(), block.q_size());
    });
  }

  // Norms and rotation of one token's q and k, in place; k and v go to their page.
  void prepare_token(const AttentionBlock& block, int64_t row, float* qkv) {
    const int64_t dim = block.head_dim;
    float *q = qkv, *k = qkv + block.q_size(), *v = k + block.kv_size();
    const float eps = block.norm.eps;
    if (block.qk_norm == QkNorm::kFullWidth) {
      normalize_rms(block.q_norm, eps, q, block.q_size());
      normalize_rms(block.k_norm, eps, k, block.kv_size());
    } else if (block.qk_norm == QkNorm::kPerHead) {
      for (int64_t h = 0; h < block.num_heads; h++) normalize_rms(block.q_norm, eps, q + h * dim, dim);
      for (int64_t h = 0; h < block.num_kv_heads; h++) {
        normalize_rms(block.k_norm, eps, k + h * dim, dim);
      }
    }
    const int32_t token = token_of(row);
    const float* cosine = block.cosine + token * block.rotary_pairs;
    const float* sine = block.sine + token * block.rotary_pairs;
    for (int64_t h = 0; h < block.num_heads; h++) {
      rotate(q + h * dim, cosine, sine, block.rotary_pairs);
    }
    const int64_t position = call_.positions[token];
    const int64_t page =
        block.tables[call_.rows[token] * call_.table_width + position / call_.block_size];
    for (int64_t h = 0; h < block.num_kv_heads; h++) {
      rotate(k + h * dim, cosine, sine, block.rotary_pairs);
      const int64_t offset = (page * block.num_kv_heads + h) * call_.block_size * dim;
      store_token(block, offset, position % call_.block_size, k + h * dim, v + h * dim);
    }
  }

  // Pairs (i, i + pairs) of one head.
  static void rotate(float* x, const float* cosine, const float* sine, int64_t pairs) {
    for (int64_t i = 0; i < pairs; i += kLanes) {
      const int64_t left = pairs - i;
      Vector a = load_part(x + i, left), b = load_part(x + pairs + i, left);
      Vector c = load_part(cosine + i, left), s = load_part(sine + i, left);
      store_part(x + i, a * c - b * s, left);
      store_part(x + pairs + i, b * c + a * s, left);
    }
  }

  void store_token(const AttentionBlock& block, int64_t offset, int64_t slot, const float* k,
                   const float* v) const {
    const int64_t dim = block.head_dim, size = call_.block_size;
    if (block.cache_type == CacheType::kFloat32) {
      float* keys = static_cast<float*>(block.keys) + offset + slot;
      for (int64_t i = 0; i < dim; i++) keys[i * size] = k[i];
      std::memcpy(static_cast<float*>(block.values) + offset + slot * dim, v,
                  static_cast<size_t>(dim) * 4);
      return;
    }
    auto* keys = static_cast<uint16_t*>(block.keys) + offset + slot * 2;
    auto* values = static_cast<uint16_t*>(block.values) + offset + slot / 2 * dim * 2 + slot % 2;
    for (int64_t i = 0; i < dim; i += kLanes) {
      HalfVector bits = to_bfloat16(load_part(k + i, dim - i));
      for (int64_t lane = 0; lane < kLanes && i + lane < dim; lane += 2) {
        keys[(i + lane) * size] = bits[lane];
        keys[(i + lane) * size + 1] = bits[lane + 1];
      }
      bits = to_bfloat16(load_part(v + i, dim - i));
      for (int64_t lane = 0; lane < kLanes && i + lane < dim; lane++) {
        values[(i + lane) * 2] = bits[lane];
      }
    }
  }

  // ---- MLP block --------------------------------------------------------------------------------------

  void run_mlp(const MlpBlock& block) {
    const Activations normed = pack_normed(block.norm, block.gate_up);
    const Activations packed(scratch_.wide, num_live_, block.down);
    float* inner = scratch_.inner.at<float>();
    multiply(team_, num_threads_, normed, block.gate_up, GateUp(block, packed, inner));
    if (!GateUp::packs_at_once(block)) pack_rows(inner, block.down, scratch_.wide);
    add_output(packed, block.down, block.down_bias, block.post_norm, block.norm.eps,
               block.multiplier);
  }

  // ---- what both do -----------------------------------------------------------------------------------

  Activations pack_normed(const Norm& norm, const Matrix& matrix) {
    const Activations to(scratch_.narrow, num_live_, matrix);
    team_.each(num_live_, [&](int64_t row) {
      float* normed = thread_row();
      normalize(norm, x_of(row), call_.hidden_size, normed);
      to.put_row(row, normed);
    });
    return to;
  }

  Activations pack_rows(const float* rows, const Matrix& matrix, const ActivationMemory& memory) {
    const Activations to(memory, num_live_, matrix);
    team_.each(num_live_,
               [&](int64_t row) { to.put_row(row, rows + row * matrix.inputs); });
    return to;
  }

  // Adds the product to the residual, after its norm where it has one.
  void add_output(const Activations& input, const Matrix& matrix, const float* bias,
                  const float* post_norm, float eps, float multiplier) {
    const int64_t size = call_.hidden_size;
    if (post_norm == nullptr) {
      multiply(team_, num_threads_, input, matrix,
               [&](int64_t row, int64_t num_rows, int64_t panel, const float* out) {
                 for (int64_t i = 0; i < num_rows; i++, out += kPanelOutputs) {
                   add_panel(x_of(row + i), out, bias, panel, size, multiplier);
                 }
               });
      return;
    }
    float* outputs = scratch_.projected.at<float>();
    multiply(team_, num_threads_, input, matrix,
             [&](int64_t row, int64_t num_rows, int64_t panel, const float* out) {
               store_panels(outputs + row * size, out, num_rows, bias, panel, size);
             });
    team_.each(num_live_, [&](int64_t row) {
      float *y = outputs + row * size, *x = x_of(row);
      normalize_rms(post_norm, eps, y, size);
      for (int64_t i = 0; i < size; i++) x[i] += y[i] * multiplier;
    });
  }

  Team& team_;
  const int num_threads_;
  const BlocksCall& call_;
  Scratch& scratch_;
  const std::vector<QueryTiles>& tiles_;  // by group
  const int64_t num_live_;
};

// ---- calls --------------------------------------------------------------------------------------------

// Positions that the rows of two tokens have in the same blocks and that are before both tokens, in
// whole chunks.
inline int64_t num_shared(const BlocksCall& call, const int32_t* tables, int32_t one,
                          int32_t other) {
  const int64_t before = std::min(call.positions[one], call.positions[other]);
  const int32_t* table = tables + call.rows[one] * call.table_width;
  const int32_t* other_table = tables + call.rows[other] * call.table_width;
  const int64_t num_blocks = before / call.block_size, chunk = chunk_size(call.block_size);
  const int64_t same = std::mismatch(table, table + num_blocks, other_table).first - table;
  return same * call.block_size / chunk * chunk;
}

// Finds the neighbours among the live tokens that attention by some tables takes together.
inline QueryTiles query_tiles(const BlocksCall& call, const int32_t* tables) {
  int64_t heads = 1;
  for (const Block& block : call.blocks) {
    if (block.is_attention) heads = std::max(heads, block.attention.heads_per_kv_head());
  }
  QueryTiles found;
  const auto num_live = static_cast<int64_t>(call.live.size());
  found.most_tokens = std::max<int64_t>(1, kFoldedRows / heads);
  // Fewer tokens would leave threads without work.
  const bool shares = call.block_size > 0 && num_live >= 4 * found.most_tokens;
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

inline bool reserve(Scratch& kept, const BlocksCall& call,
                    const std::vector<QueryTiles>& tiles_by_group, int num_threads) {
  const auto num_rows = static_cast<int64_t>(call.live.size());
  bool is_enough = kept.normed.reserve(num_threads * round_up(call.hidden_size, 16) * 4);
  for (const Block& block : call.blocks) {
    int64_t projected = call.hidden_size, inner = 0;
    if (block.is_attention) {
      const AttentionBlock& attention = block.attention;
      const QueryTiles& tiles = tiles_by_group[static_cast<size_t>(attention.group)];
      projected = std::max(projected, attention.qkv.outputs);
      inner = attention.q_size();
      is_enough = is_enough && kept.narrow.reserve(num_rows, attention.qkv) &&
                  kept.narrow.reserve(num_rows, attention.o);
      const int64_t folded = std::max(kFoldedRows, attention.heads_per_kv_head());
      const int64_t num_items =
          static_cast<int64_t>(tiles.tiles.size()) * attention.num_kv_heads;
      if (tiles.num_spans > 1 && num_items < 2 * num_threads) {
        const int64_t floats = SoftmaxState::num_floats(folded, attention.head_dim);
        is_enough = is_enough && kept.spans.reserve(num_items * tiles.num_spans * floats * 4);
      }
      for (int thread = 0; thread < num_threads; thread++) {
        is_enough = is_enough && kept.attention[thread].reserve(folded, attention.head_dim,
                                                                call.block_size);
      }
    } else {
      inner = block.mlp.intermediate_size;
      is_enough = is_enough && kept.narrow.reserve(num_rows, block.mlp.gate_up) &&
                  kept.wide.reserve(num_rows, block.mlp.down);
    }
    is_enough = is_enough && kept.projected.reserve(num_rows * projected * 4) &&
                kept.inner.reserve(num_rows * inner * 4);
  }
  return is_enough;
}

inline bool run_blocks(const BlocksCall& call) {
  if (call.live.empty()) return true;
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  const int num_threads = pool.num_threads();
  Scratch& kept = scratch();
  std::vector<QueryTiles> tiles;
  for (int64_t group = 0; group < call.num_groups; group++) {
    tiles.push_back(
        query_tiles(call, call.block_tables + group * call.num_rows * call.table_width));
  }
  if (!reserve(kept, call, tiles, num_threads)) return false;
  const int num_phases = static_cast<int>(call.blocks.size()) * BlockRunner::kPhases;
  pool.run(lock, num_phases, [&](Team& team) {
    BlockRunner runner(team, num_threads, call, kept, tiles);
    for (const Block& block : call.blocks) runner.run(block);
  });
  return true;
}

// The first of the highest scores that a thread has seen of a row. A thread claims panels in
// ascending order, so it keeps the lowest token of a tie.
struct Likeliest {
  float score;
  int32_t token;  // kNoNumber once a score was none

  void look_at(const float* scores, int64_t first, int64_t count) {
    Vector highest = splat(-INFINITY);
    IntVector finite = ~IntVector{};
    for (int64_t i = 0; i < count; i += kLanes) {
      Vector y = load(scores + i);
      for (int64_t lane = count - i; lane < kLanes; lane++) y[lane] = -INFINITY;
      finite &= y < INFINITY;
      highest = maximum(y, highest);
    }
    const float found = maximum_of(highest);
    if (sum_of(finite) != -kLanes) token = kNoNumber;
    if (token == kNoNumber || !(found > score)) return;
    score = found;
    const float* at = std::find(scores, scores + count, found);
    token = static_cast<int32_t>(first + (at - scores));
  }

  void merge(const Likeliest& other) {
    if (token == kNoNumber || other.token == kNoNumber) {
      token = kNoNumber;
    } else if (other.score > score || (other.score == score && other.token < token)) {
      *this = other;
    }
  }
};

// Stores a row's scores of a panel, or looks at them.
inline void take_scores(const HeadCall& call, int64_t row, int64_t panel, const float* out,
                        Likeliest* likeliest) {
  const int64_t width = call.matrix.outputs, first = panel * kPanelOutputs;
  const int64_t count = std::min(kPanelOutputs, width - first);
  alignas(64) float scores[kPanelOutputs] = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    Vector y = load(out + i) * call.multiplier;
    if (call.softcap > 0.0f) y = call.softcap * tanh_of(y / call.softcap);
    if (call.logits) {
      store_part(call.logits + row * width + first + i, y, count - i);
    } else {
      store(scores + i, y);
    }
  }
  if (!call.logits) likeliest->look_at(scores, first, count);
}

inline bool run_head(const HeadCall& call) {
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  Scratch& kept = scratch();
  const int64_t size = sizeof(Likeliest), num_rows = call.num_rows;
  const int64_t thread_rows = round_up(num_rows * size, 64) / size;  // no shared cache lines
  if (!kept.narrow.reserve(num_rows, call.matrix) ||
      !kept.likeliest.reserve(pool.num_threads() * thread_rows * size)) {
    return false;
  }
  auto* likeliest = kept.likeliest.at<Likeliest>();
  std::fill_n(likeliest, pool.num_threads() * thread_rows, Likeliest{-INFINITY, 0});
  pool.run(lock, 2, [&](Team& team) {
    const Activations x(kept.narrow, num_rows, call.matrix);
    team.each(num_rows,
              [&](int64_t row) { x.put_row(row, call.hidden + row * call.matrix.inputs); });
    multiply(team, pool.num_threads(), x, call.matrix,
             [&](int64_t first_row, int64_t count, int64_t panel, const float* out) {
               for (int64_t row = first_row; row < first_row + count; row++, out += kPanelOutputs) {
                 take_scores(call, row, panel, out,
                             likeliest + team.thread() * thread_rows + row);
               }
             });
  });
  for (int64_t row = 0; row < num_rows && !call.logits; row++) {
    for (int thread = 1; thread < pool.num_threads(); thread++) {
      likeliest[row].merge(likeliest[thread * thread_rows + row]);
    }
    call.tokens[row] = likeliest[row].token;
  }
  return true;
}

// One weight of a packed matrix.
inline float weight_at(const Matrix& matrix, const char* panel, int64_t lane, int64_t input) {
  const char* lanes = panel + lane * kLaneBytes;
  switch (matrix.type) {
    case WeightType::kFloat32: return load_as<float>(lanes + input * kRowBytes);
    case WeightType::kBfloat16: {
      const auto bits = load_as<uint16_t>(lanes + input / 2 * kRowBytes + input % 2 * 2);
      return bits_as<float>(static_cast<uint32_t>(bits) << 16);
    }
    case WeightType::kInt8: {
      const auto byte = load_as<uint8_t>(lanes + input / 4 * kRowBytes + input % 4);
      const int64_t end = padded_inputs(matrix.type, matrix.inputs, 0) / 4 * kRowBytes;
      return static_cast<float>(byte - 128) * load_as<float>(panel + end + lane * 4);
    }
    default: return block_weight_at(matrix, panel, lane, input);
  }
}

inline bool run_embedding(const EmbeddingCall& call) {
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  pool.run(lock, 1, [&](Team& team) {
    team.each(call.num_tokens, [&](int64_t token) {
      const Matrix& matrix = call.matrix;
      // As XLA's gather does: ids beyond the vocabulary are clamped.
      const int64_t id =
          std::clamp<int64_t>(call.token_ids[token], 0, matrix.outputs - 1);
      const char* panel = matrix.data + id / kPanelOutputs * matrix.panel_stride();
      float* x = call.x + token * matrix.inputs;
      for (int64_t i = 0; i < matrix.inputs; i++) {
        x[i] = weight_at(matrix, panel, id % kPanelOutputs, i) * call.multiplier;
      }
    });
  });
  return true;
}
