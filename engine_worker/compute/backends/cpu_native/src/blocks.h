// The blocks of a decoder. Every function runs on all threads of the team at once. Include inside
// the namespace.

// Memory between the phases of a call, kept for the next one.
struct Scratch {
  ActivationMemory narrow, wide;  // what is multiplied; wide is the MLP's inner width
  Memory projected;               // [M, widest] q|k|v, or an output before its norm
  Memory inner;                   // [M, q] after attention, or [M, intermediate]
  Memory normed;                  // one row a thread
  Memory beside;                  // [M, hidden], what an MLP reads beside the attention before it
  Memory spans;                   // softmax states of spans that threads share
  Memory likeliest;               // of each row what each thread found
  std::deque<AttentionScratch> attention[ThreadPool::kMaxThreads];  // one for each head at once
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

// Key heads that a thread takes together: what they read of a page lies side by side.
inline int64_t heads_at_once(const AttentionBlock& block, int64_t num_items, int num_threads) {
  if (kHasAmx || block.is_latent()) return 1;
  const int64_t most = block.cache_type == CacheType::kInt8 ? 8 : 32;
  const int64_t shared = std::min(most, num_items / (int64_t{4} * num_threads));
  return std::clamp<int64_t>(shared, 1, block.num_kv_heads);
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

  void run(const LatentCall& call) { run_latent(call); }

 private:
  // Puts a token's key and latent into its page.
  void store_latent(const LatentCall& call, const AttentionBlock& block, int32_t token) const {
    const int64_t latent = block.latent_dim, rotated = block.head_dim - latent;
    const int64_t position = call_.positions[token], size = call_.block_size;
    const int64_t page =
        block.tables[call_.rows[token] * call_.table_width + position / size];
    const auto store = [&](void* pages, const float* numbers, int64_t dim) {
      char* at = static_cast<char*>(pages) + page * page_bytes(block.cache_type, size, dim);
      store_key(block.cache_type, size, dim, at, position % size, numbers + token * dim);
    };
    store(block.keys, call.keys, rotated);
    store(block.values, call.latents, latent);
  }

  int32_t token_of(int64_t row) const { return call_.live[static_cast<size_t>(row)]; }
  float* x_of(int64_t row) const { return call_.x + token_of(row) * call_.hidden_size; }
  float* thread_row() const {
    return scratch_.normed.at<float>() + team_.thread() * round_up(call_.hidden_size, 16);
  }

  void run_attention(const AttentionBlock& block) {
    float* beside = block.is_parallel ? scratch_.beside.at<float>() : nullptr;
    const Activations normed = pack_normed(block.norm, block.qkv, beside);
    const int64_t width = block.qkv.outputs;
    float* qkv = scratch_.projected.at<float>();
    multiply(team_, num_threads_, normed, block.qkv,
             [&](int64_t row, int64_t num_rows, int64_t panel, const float* out) {
               store_panels(qkv + row * width, out, num_rows, block.qkv_bias, panel, width);
             });
    team_.each_row(num_live_, [&](int64_t row) { prepare_token(block, row, qkv + row * width); });
    float* attended = scratch_.inner.at<float>();
    switch (block.cache_type) {
      case CacheType::kFloat32: attend<CacheType::kFloat32>(block, qkv, width, attended); break;
      case CacheType::kBfloat16: attend<CacheType::kBfloat16>(block, qkv, width, attended); break;
      case CacheType::kInt8: attend<CacheType::kInt8>(block, qkv, width, attended); break;
    }
    const Activations packed(scratch_.narrow, num_live_, block.o);
    team_.each_row(num_live_, [&](int64_t row) {
      float* attended_row = attended + row * block.q_size();
      if (block.has_gate) gate(attended_row, qkv + row * width + block.gate_offset(), block.q_size());
      packed.put_row(row, attended_row);
    });
    add_output(packed, block.o, block.o_bias, block.post_norm, block.norm.eps, block.multiplier);
  }

  // Attention over latents: what of `call` is stored, then read.
  void run_latent(const LatentCall& call) {
    const AttentionBlock& block = call_.blocks[0].attention;
    const int64_t q_size = block.q_size(), y_size = block.num_heads * block.value_dim();
    float *q = scratch_.projected.at<float>(), *y = scratch_.inner.at<float>();
    team_.each_row(num_live_, [&](int64_t row) {
      store_latent(call, block, token_of(row));
      std::memcpy(q + row * q_size, call.queries + token_of(row) * q_size,
                  static_cast<size_t>(q_size) * 4);
    });
    if (block.cache_type == CacheType::kFloat32) {
      attend<CacheType::kFloat32, true>(block, q, q_size, y);
    } else {
      attend<CacheType::kBfloat16, true>(block, q, q_size, y);
    }
    team_.each_row(num_live_, [&](int64_t row) {
      std::memcpy(call.y + token_of(row) * y_size, y + row * y_size,
                  static_cast<size_t>(y_size) * 4);
    });
  }

  // Attention of all tiles and key heads; where these are few, threads share their spans.
  template <CacheType kType, bool kIsLatent = false>
  void attend(const AttentionBlock& block, const float* q, int64_t width, float* attended) {
    const QueryTiles& tiles = tiles_[static_cast<size_t>(block.group)];
    auto& scratch = scratch_.attention[team_.thread()];
    using Kernel = Attention<kType, kIsLatent>;
    Kernel attention(call_, block, tiles, scratch[0]);
    const int64_t num_heads = block.num_kv_heads, out_width = block.num_heads * block.value_dim();
    const int64_t num_items = static_cast<int64_t>(tiles.tiles.size()) * num_heads;
    const auto begin = [&](int64_t item) -> const QueryTile& {
      const QueryTile& tile = tiles.tiles[static_cast<size_t>(item / num_heads)];
      attention.begin(tile, item % num_heads, q + tile.first * width, width);
      return tile;
    };
    if (tiles.num_spans == 1 || num_items >= 2 * num_threads_) {
      const int64_t at_once = heads_at_once(block, num_items, num_threads_);
      const int64_t parts = divide_up(num_heads, at_once);
      std::deque<Kernel> heads;
      std::vector<Kernel*> together;
      for (int64_t h = 0; h < at_once; h++) {
        const auto place = static_cast<size_t>(h);
        together.push_back(&heads.emplace_back(call_, block, tiles, scratch[place]));
      }
      // The last tiles of a prompt see the most: they come first.
      team_.each(static_cast<int64_t>(tiles.tiles.size()) * parts, [&](int64_t item) {
        const size_t place = tiles.tiles.size() - 1 - static_cast<size_t>(item / parts);
        const QueryTile& tile = tiles.tiles[place];
        const int64_t part = item % parts, first = num_heads * part / parts;
        const int64_t count = num_heads * (part + 1) / parts - first;
        float* out = attended + tile.first * out_width;
        const bool is_together = Kernel::runs_together(tile, block.heads_per_kv_head());
        for (int64_t h = 0; h < count; h++) {
          Kernel& head = *together[is_together ? static_cast<size_t>(h) : 0];
          head.begin(tile, first + h, q + tile.first * width, width);
          if (!is_together) head.run(out, out_width);
        }
        if (is_together) Kernel::run_together(together.data(), count, out, out_width);
      });
      return;
    }
    const int64_t most_rows = tiles.most_tokens * block.heads_per_kv_head();
    const auto state_of = [&](int64_t item, int64_t span, int64_t rows) {
      return SoftmaxState(scratch_.spans.at<float>() +
                              (item * tiles.num_spans + span) *
                                  SoftmaxState::num_floats(most_rows, block.value_dim()),
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
      const SoftmaxState state(scratch[0].state.at<float>(), rows_of(tile));
      attention.start(state);
      for (int64_t span = attention.first_span(); span < attention.end_span(); span++) {
        attention.merge(state_of(item, span, rows_of(tile)), state);
      }
      attention.finish(state, attended + tile.first * out_width, out_width);
    });
  }

  // Norms and rotation of one token's q and k, in place; k and v, if there are any, go to their page.
  void prepare_token(const AttentionBlock& block, int64_t row, float* qkv) {
    const int64_t dim = block.head_dim;
    float *q = qkv, *k = qkv + block.q_size(), *v = k + block.kv_size();
    const float eps = block.norm.eps;
    if (block.qk_norm == QkNorm::kFullWidth) {
      normalize_rms(block.q_norm, eps, q, block.q_size());
      if (!block.is_reader) normalize_rms(block.k_norm, eps, k, block.kv_size());
    }
    const int32_t token = token_of(row);
    const int64_t position = call_.positions[token];
    const auto prepare = [&](float* head, const float* weights, int64_t h) {
      if (block.qk_norm == QkNorm::kPerHead || block.qk_norm == QkNorm::kWeightless) {
        normalize_rms(weights, eps, head, dim);
      } else if (block.qk_norm == QkNorm::kEachHead) {
        normalize({NormKind::kLayer, eps, weights + h * dim, nullptr}, head, dim, head);
      }
      rotate(block, token, head);
    };
    const float factor = query_factor(block.query_scale, position);
    for (int64_t h = 0; h < block.num_heads; h++) {
      prepare(q + h * dim, block.q_norm, h);
      for (int64_t i = 0; i < dim && factor != 1.0f; i++) q[h * dim + i] *= factor;
    }
    if (block.is_reader) return;
    const int64_t page =
        block.tables[call_.rows[token] * call_.table_width + position / call_.block_size];
    const int64_t size = page_bytes(block.cache_type, call_.block_size, dim);
    for (int64_t h = 0; h < block.num_kv_heads; h++) {
      float of_key[kMaxHeadDim];
      float *key = k + h * dim, *value = block.is_value_of_key ? of_key : v + h * dim;
      if (block.is_value_of_key) std::memcpy(of_key, key, static_cast<size_t>(dim) * 4);
      if (block.is_value_normed) normalize_rms(nullptr, eps, value, dim);
      prepare(key, block.k_norm, h);
      const int64_t offset = (page * block.num_kv_heads + h) * size;
      store_token(block.cache_type, call_.block_size, dim, static_cast<char*>(block.keys) + offset,
                  static_cast<char*>(block.values) + offset, position % call_.block_size, key,
                  value);
    }
  }

  static float query_factor(const QueryScale& scale, int64_t position) {
    if (scale.beta == 0.0f) return 1.0f;
    const auto steps = static_cast<float>((position + scale.offset) / scale.length);
    return 1.0f + scale.beta * std::log1p(steps);
  }

  // Turns the pairs (i, i + pairs), or (2i, 2i + 1), of one head.
  static void rotate(const AttentionBlock& block, int32_t token, float* x) {
    const int64_t pairs = block.rotary_pairs;
    const float *cosine = block.cosine + token * pairs, *sine = block.sine + token * pairs;
    for (int64_t i = 0; i < pairs && block.is_interleaved; i++) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosine[i] - b * sine[i];
      x[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
    for (int64_t i = 0; i < pairs && !block.is_interleaved; i += kLanes) {
      const int64_t left = pairs - i;
      Vector a = load_part(x + i, left), b = load_part(x + pairs + i, left);
      Vector c = load_part(cosine + i, left), s = load_part(sine + i, left);
      store_part(x + i, a * c - b * s, left);
      store_part(x + pairs + i, b * c + a * s, left);
    }
  }

  // Multiplies a row by the sigmoid of its gates.
  static void gate(float* row, const float* gates, int64_t size) {
    for (int64_t i = 0; i < size; i += kLanes) {
      const Vector opens = 1.0f / (exponential(-load_part(gates + i, size - i)) + 1.0f);
      store_part(row + i, load_part(row + i, size - i) * opens, size - i);
    }
  }

  // ---- MLP block --------------------------------------------------------------------------------------

  void run_mlp(const MlpBlock& block) {
    const float* beside = scratch_.beside.at<float>();
    const Activations normed = block.is_parallel
                                   ? pack_rows(beside, block.gate_up, scratch_.narrow)
                                   : pack_normed(block.norm, block.gate_up);
    const Activations packed(scratch_.wide, num_live_, block.down);
    float* inner = scratch_.inner.at<float>();
    multiply(team_, num_threads_, normed, block.gate_up, GateUp(block, packed, inner));
    if (!GateUp::packs_at_once(block)) pack_rows(inner, block.down, scratch_.wide);
    add_output(packed, block.down, block.down_bias, block.post_norm, block.norm.eps,
               block.multiplier);
  }

  // ---- what both do -----------------------------------------------------------------------------------

  // `beside`, unless it is null, gets what is packed: [M, hidden].
  Activations pack_normed(const Norm& norm, const Matrix& matrix, float* beside = nullptr) {
    const Activations to(scratch_.narrow, num_live_, matrix);
    team_.each_row(num_live_, [&](int64_t row) {
      float* normed = beside ? beside + row * call_.hidden_size : thread_row();
      normalize(norm, x_of(row), call_.hidden_size, normed);
      to.put_row(row, normed);
    });
    return to;
  }

  Activations pack_rows(const float* rows, const Matrix& matrix, const ActivationMemory& memory) {
    const Activations to(memory, num_live_, matrix);
    team_.each_row(num_live_,
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
    team_.each_row(num_live_, [&](int64_t row) {
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

inline bool reserve_attention(Scratch& kept, const AttentionBlock& block, const QueryTiles& tiles,
                              int64_t block_size, int num_threads) {
  const int64_t folded = std::max(kFoldedRows, tiles.most_tokens * block.heads_per_kv_head());
  const int64_t num_items = static_cast<int64_t>(tiles.tiles.size()) * block.num_kv_heads;
  if (tiles.num_spans > 1 && num_items < 2 * num_threads) {
    const int64_t floats = SoftmaxState::num_floats(folded, block.value_dim());
    if (!kept.spans.reserve(num_items * tiles.num_spans * floats * 4)) return false;
  }
  for (int thread = 0; thread < num_threads; thread++) {
    auto& heads = kept.attention[thread];
    const int64_t at_once = heads_at_once(block, num_items, num_threads);
    if (heads.size() < static_cast<size_t>(at_once)) heads.resize(static_cast<size_t>(at_once));
    for (int64_t h = 0; h < at_once; h++) {
      const int64_t rows = h == 0 ? folded : kRowsThatWait;
      if (!heads[static_cast<size_t>(h)].reserve(rows, block, block_size)) return false;
    }
  }
  return true;
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
      const int64_t beside = attention.is_parallel ? num_rows * call.hidden_size * 4 : 0;
      is_enough = is_enough && kept.beside.reserve(beside) &&
                  kept.narrow.reserve(num_rows, attention.qkv) &&
                  kept.narrow.reserve(num_rows, attention.o) &&
                  reserve_attention(kept, attention, tiles, call.block_size, num_threads);
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

inline bool run_latent(const LatentCall& call) {
  const BlocksCall& tokens = call.tokens;
  if (tokens.live.empty()) return true;
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  const int num_threads = pool.num_threads();
  Scratch& kept = scratch();
  const AttentionBlock& block = tokens.blocks[0].attention;
  // Every token turns the latents that it reads, so many of them do it together.
  const std::vector<QueryTiles> tiles{query_tiles(tokens, block.tables, kFoldedLatentRows)};
  const auto num_rows = static_cast<int64_t>(tokens.live.size());
  if (!kept.projected.reserve(num_rows * block.q_size() * 4) ||
      !kept.inner.reserve(num_rows * block.num_heads * block.value_dim() * 4) ||
      !reserve_attention(kept, block, tiles[0], tokens.block_size, num_threads)) {
    return false;
  }
  pool.run(lock, BlockRunner::kPhases, [&](Team& team) {
    BlockRunner(team, num_threads, tokens, kept, tiles).run(call);
  });
  return true;
}
