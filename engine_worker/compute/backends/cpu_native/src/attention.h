// Attention of a few neighbouring tokens of one row over the row's pages. Include inside the
// namespace.
//
// Online softmax (arXiv 1805.02867) in chunks of positions, and a softmax of its own for each span of
// chunks, which are merged in order. The borders of both are fixed: a token's result has the same
// bits whatever other tokens it is computed with, and whether or not threads share its spans.

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
constexpr int64_t kFoldedRows = 24;

// Neighbouring live tokens of one row at ascending positions.
struct QueryTile {
  int64_t first, count;  // in the order of BlocksCall::live
};

struct QueryTiles {
  std::vector<QueryTile> tiles;
  int64_t most_tokens = 1;  // of a tile
  int64_t num_spans = 1;    // up to the furthest position
};

template <CacheType kType>
struct CacheTraits;
template <>
struct CacheTraits<CacheType::kFloat32> {
  using Product = Float32Product;
  using Element = float;
  static Vector load_value(const Element* from) { return load(from); }
  static Vector load_value_part(const Element* from, int64_t n) { return load_part(from, n); }
};
template <>
struct CacheTraits<CacheType::kBfloat16> {
  using Product = Bfloat16Product;
  using Element = uint16_t;
  static Vector load_value(const Element* from) { return load_bfloat16(from); }
  static Vector load_value_part(const Element* from, int64_t n) {
    return load_bfloat16_part(from, n);
  }
};

// A softmax in progress: for each folded row its largest score, the sum of exp(score - largest), and
// the sum of that times the value.
struct SoftmaxState {
  float *maximums, *totals, *weighted;  // [rows], [rows], [rows, head_dim]

  static int64_t num_floats(int64_t rows, int64_t head_dim) { return rows * (head_dim + 2); }
  SoftmaxState(float* memory, int64_t rows)
      : maximums(memory), totals(memory + rows), weighted(memory + 2 * rows) {}
};

// What one thread needs for one tile and key head.
struct AttentionScratch {
  Memory queries, scores, state, span_state, page;

  bool reserve(int64_t folded_rows, int64_t head_dim, int64_t block_size) {
    return queries.reserve(folded_rows * head_dim * 4) &&
           scores.reserve(folded_rows * score_stride(block_size) * 4) &&
           state.reserve(SoftmaxState::num_floats(folded_rows, head_dim) * 4) &&
           span_state.reserve(SoftmaxState::num_floats(folded_rows, head_dim) * 4) &&
           page.reserve(head_dim * round_up(block_size, 2 * kLanes) * kLaneBytes);
  }

  // A page is computed in whole steps, so the last one of a chunk may hang over.
  static int64_t score_stride(int64_t block_size) {
    return round_up(chunk_size(block_size), kLanes) + 2 * kLanes;
  }
};

template <CacheType kType>
class Attention {
  using Traits = CacheTraits<kType>;
  using Product = typename Traits::Product;
  using Element = typename Traits::Element;
  using Input = typename Product::Input;
  static constexpr int kScoreRows = Product::kMaxRows < 12 ? Product::kMaxRows : 12;
  static constexpr int kScoreStep = 2 * kLanes;
  static constexpr int kValueRows = 6;
  static constexpr int kValueVectors = kLanes == 16 ? 4 : 2;

 public:
  Attention(const BlocksCall& call, const AttentionBlock& block, AttentionScratch& scratch)
      : call_(call),
        block_(block),
        dim_(block.head_dim),
        page_size_(call.block_size),
        chunk_size_(chunk_size(call.block_size)),
        span_size_(span_size(call.block_size)),
        heads_(block.heads_per_kv_head()),
        stride_(AttentionScratch::score_stride(call.block_size)),
        queries_(scratch.queries.at<Input>()),
        scores_(scratch.scores.at<float>()),
        page_(scratch.page.at<char>()),
        scratch_(scratch) {}

  // Turns to a tile and a key head; `q` are the queries of the tile's first token, further ones stand
  // `q_stride` floats apart.
  void begin(const QueryTile& tile, int64_t kv_head, const float* q, int64_t q_stride) {
    kv_head_ = kv_head;
    num_folded_ = tile.count * heads_;
    const int32_t token = call_.live[static_cast<size_t>(tile.first)];
    first_position_ = call_.positions[token];
    end_ = first_position_ + tile.count;
    table_ = call_.block_tables + call_.rows[token] * call_.table_width;
    pack_queries(q, q_stride);
  }

  // Everything that the tile sees, span by span.
  void run(float* out, int64_t out_stride) {
    const SoftmaxState state(scratch_.state.at<float>(), num_folded_);
    const SoftmaxState own(scratch_.span_state.at<float>(), num_folded_);
    start(state);
    for (int64_t span = first_span(); span < end_span(); span++) {
      run_span(span, own);
      merge(own, state);
    }
    finish(state, out, out_stride);
  }

  int64_t first_span() const { return first_seen(0) / span_size_; }
  int64_t end_span() const { return divide_up(end_, span_size_); }

  // One span alone.
  void run_span(int64_t span, const SoftmaxState& state) {
    clear(state);
    const int64_t begin = std::max(first_seen(0), span * span_size_);
    const int64_t end = std::min(end_, (span + 1) * span_size_);
    for (int64_t chunk = begin / chunk_size_ * chunk_size_; chunk < end; chunk += chunk_size_) {
      const int64_t from = std::max(chunk, begin), to = std::min(end, chunk + chunk_size_);
      score_chunk(chunk, from, to);
      for (int64_t row = 0; row < num_folded_; row++) absorb(row, chunk, from, to, state);
      add_values(chunk, from, to, state.weighted);
    }
  }

  // The softmax over no key yet, or over the sinks.
  void start(const SoftmaxState& state) const {
    clear(state);
    if (block_.sinks == nullptr) return;
    for (int64_t row = 0; row < num_folded_; row++) {
      state.maximums[row] = block_.sinks[kv_head_ * heads_ + row % heads_];
      state.totals[row] = 1.0f;
    }
  }

  // Adds the softmax over further keys.
  void merge(const SoftmaxState& from, const SoftmaxState& to) const {
    for (int64_t row = 0; row < num_folded_; row++) {
      const float largest = std::max(to.maximums[row], from.maximums[row]);
      const float kept = exponential(splat(to.maximums[row] - largest))[0];
      const float added = exponential(splat(from.maximums[row] - largest))[0];
      to.maximums[row] = largest;
      to.totals[row] = to.totals[row] * kept + from.totals[row] * added;
      const float* values = from.weighted + row * dim_;
      float* sums = to.weighted + row * dim_;
      for (int64_t i = 0; i < dim_; i++) sums[i] = sums[i] * kept + values[i] * added;
    }
  }

  // `out` is of the tile's first token, further ones stand `out_stride` floats apart.
  void finish(const SoftmaxState& state, float* out, int64_t out_stride) const {
    for (int64_t row = 0; row < num_folded_; row++) {
      const float* from = state.weighted + row * dim_;
      float* to = out + row / heads_ * out_stride + (kv_head_ * heads_ + row % heads_) * dim_;
      const float inverse = 1.0f / state.totals[row];
      for (int64_t i = 0; i < dim_; i++) to[i] = from[i] * inverse;
    }
  }

 private:
  static constexpr float kMasked = -1e30f;

  void clear(const SoftmaxState& state) const {
    for (int64_t row = 0; row < num_folded_; row++) {
      state.maximums[row] = kMasked;
      state.totals[row] = 0.0f;
    }
    std::memset(state.weighted, 0, static_cast<size_t>(num_folded_ * dim_) * 4);
  }

  int64_t groups() const { return dim_ / Product::kInputs; }
  int64_t position_of(int64_t row) const { return first_position_ + row / heads_; }
  int64_t first_seen(int64_t row) const {
    return block_.window > 0 ? std::max<int64_t>(0, position_of(row) - block_.window + 1) : 0;
  }
  int64_t rows_of_piece(int64_t piece) const {
    return std::min<int64_t>(kScoreRows, num_folded_ - piece);
  }
  const Element* page_at(const void* pages, int64_t position) const {
    const int64_t block = table_[position / page_size_];
    return static_cast<const Element*>(pages) +
           (block * block_.num_kv_heads + kv_head_) * page_size_ * dim_;
  }

  // Scaled, in pieces of at most kScoreRows rows: the group of inputs is the outer index.
  void pack_queries(const float* q, int64_t q_stride) {
    float scaled[kMaxHeadDim];
    for (int64_t row = 0; row < num_folded_; row++) {
      const float* from = q + row / heads_ * q_stride + (kv_head_ * heads_ + row % heads_) * dim_;
      for (int64_t i = 0; i < dim_; i++) scaled[i] = from[i] * block_.scale;
      const int64_t piece = row / kScoreRows * kScoreRows;
      Product::put(queries_ + piece * groups() + (row - piece), rows_of_piece(piece), scaled, dim_);
    }
  }

  // Scores of positions `from` to `to`, each at its place in the chunk, and noise beside them.
  void score_chunk(int64_t chunk, int64_t from, int64_t to) {
    for (int64_t page = from / page_size_ * page_size_; page < to; page += page_size_) {
      const int64_t first = std::max(from, page) - page;
      const int64_t end = std::min(to - page, page_size_);
      const char* keys = reinterpret_cast<const char*>(page_at(block_.keys, page));
      const int64_t next = page + page_size_ < end_ ? page + page_size_ : page;
      const char* ahead = reinterpret_cast<const char*>(page_at(block_.keys, next));
      const char* values = reinterpret_cast<const char*>(page_at(block_.values, page));
      for (int64_t i = 0; i < page_size_ * dim_ * int64_t{sizeof(Element)}; i += 64) {
        __builtin_prefetch(values + i, 0, 2);
      }
      int64_t stride = page_size_ * kLaneBytes;
      if (page_size_ % kScoreStep != 0) {
        keys = copy_padded(keys);
        stride = round_up(page_size_, kScoreStep) * kLaneBytes;
      }
      for (int64_t at = first / kScoreStep * kScoreStep; at < end; at += kScoreStep) {
        for (int64_t piece = 0; piece < num_folded_; piece += kScoreRows) {
          const auto score = kScoreFunctions[static_cast<size_t>(rows_of_piece(piece))];
          score(queries_ + piece * groups(), keys + at * kLaneBytes, stride, groups(),
                ahead + at * kLaneBytes, scores_ + piece * stride_ + page - chunk + at, stride_);
        }
      }
    }
  }

  const char* copy_padded(const char* keys) const {
    const int64_t from_bytes = page_size_ * kLaneBytes;
    const int64_t to_bytes = round_up(page_size_, kScoreStep) * kLaneBytes;
    for (int64_t group = 0; group < groups(); group++) {
      char* to = page_ + group * to_bytes;
      std::memcpy(to, keys + group * from_bytes, static_cast<size_t>(from_bytes));
      std::memset(to + from_bytes, 0, static_cast<size_t>(to_bytes - from_bytes));
    }
    return page_;
  }

  using ScoreFunction = void (*)(const Input*, const char*, int64_t, int64_t, const char*, float*,
                                 int64_t);

  template <int kRows>
  static void score_rows(const Input* queries, const char* keys, int64_t key_stride,
                         int64_t num_groups, const char* ahead, float* scores,
                         int64_t score_stride) {
    typename Product::Sum sums[kRows][2] = {};
    multiply_groups<Product, kRows, 2>(queries, keys, key_stride, num_groups, ahead, sums);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; row++) {
      store(scores + row * score_stride, bits_as<Vector>(sums[row][0]));
      store(scores + row * score_stride + kLanes, bits_as<Vector>(sums[row][1]));
    }
  }

  template <int... kRows>
  static constexpr std::array<ScoreFunction, kScoreRows + 1> score_functions(
      std::integer_sequence<int, kRows...>) {
    return {nullptr, score_rows<kRows + 1>...};
  }
  static inline const std::array<ScoreFunction, kScoreRows + 1> kScoreFunctions =
      score_functions(std::make_integer_sequence<int, kScoreRows>());

  // Turns a row's scores into weights of the softmax so far.
  void absorb(int64_t row, int64_t chunk, int64_t from, int64_t to, const SoftmaxState& state) {
    float* scores = scores_ + row * stride_;
    const auto low = static_cast<int32_t>(std::max(first_seen(row), chunk) - chunk);
    const auto high = static_cast<int32_t>(std::min(position_of(row) + 1, to) - chunk);
    const int64_t begin = (from - chunk) / kLanes * kLanes, end = to - chunk;
    Vector largest = splat(kMasked);
    for (int64_t at = begin; at < end; at += kLanes) {
      Vector x = load(scores + at);
      if (block_.softcap > 0.0f) x = block_.softcap * tanh_of(x / block_.softcap);
      store(scores + at, x);
      largest = maximum(is_between(at, low, high) ? x : splat(kMasked), largest);
    }
    const float old_maximum = state.maximums[row];
    const float new_maximum = std::max(old_maximum, maximum_of(largest));
    Vector sum{};
    for (int64_t at = begin; at < end; at += kLanes) {
      Vector weight = exponential(load(scores + at) - new_maximum);
      weight = is_between(at, low, high) ? weight : Vector{};
      store(scores + at, weight);
      sum += weight;
    }
    const float decay = exponential(splat(old_maximum - new_maximum))[0];
    state.totals[row] = state.totals[row] * decay + sum_of(sum);
    state.maximums[row] = new_maximum;
    if (decay == 1.0f) return;
    float* weighted = state.weighted + row * dim_;
    for (int64_t i = 0; i < dim_; i++) weighted[i] *= decay;
  }

  static IntVector is_between(int64_t at, int32_t low, int32_t high) {
    IntVector index;
    for (int lane = 0; lane < kLanes; lane++) index[lane] = lane;
    index += static_cast<int32_t>(at);
    return (index >= low) & (index < high);
  }

  // Adds weight times value of positions `from` to `to`.
  void add_values(int64_t chunk, int64_t from, int64_t to, float* weighted) {
    for (int64_t row = 0; row < num_folded_; row += kValueRows) {
      const int64_t num_rows = std::min<int64_t>(kValueRows, num_folded_ - row);
      const auto& functions = kValueFunctions[static_cast<size_t>(num_rows)];
      for (int64_t first = 0; first < dim_;) {
        const int64_t left = dim_ - first;
        const int form = left >= kValueVectors * kLanes ? 0 : left >= kLanes ? 1 : 2;
        (this->*functions[static_cast<size_t>(form)])(row, first, chunk, from, to,
                                                      weighted + row * dim_ + first);
        first += form == 0 ? kValueVectors * kLanes : kLanes;
      }
    }
  }

  using ValueFunction = void (Attention::*)(int64_t, int64_t, int64_t, int64_t, int64_t, float*);

  // kVectors whole vectors of the head's width from `first` on; kIsPart: its last lanes only.
  template <int kRows, int kVectors, bool kIsPart>
  void add_rows(int64_t row, int64_t first, int64_t chunk, int64_t from, int64_t to,
                float* weighted) {
    const int64_t left = dim_ - first;
    Vector sums[kRows][kVectors];
    for (int r = 0; r < kRows; r++) {
      for (int v = 0; v < kVectors; v++) {
        const float* at = weighted + r * dim_ + v * kLanes;
        sums[r][v] = kIsPart ? load_part(at, left) : load(at);
      }
    }
    for (int64_t page = from / page_size_ * page_size_; page < to; page += page_size_) {
      const int64_t begin = std::max(from, page), end = std::min(to, page + page_size_);
      const Element* values = page_at(block_.values, page) + (begin - page) * dim_ + first;
      const float* weights = scores_ + row * stride_ - chunk;
      for (int64_t position = begin; position < end; position++, values += dim_) {
        Vector x[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) {
          x[v] = kIsPart ? Traits::load_value_part(values, left)
                         : Traits::load_value(values + v * kLanes);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) {
          const Vector weight = splat(weights[r * stride_ + position]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; v++) sums[r][v] += weight * x[v];
        }
      }
    }
    for (int r = 0; r < kRows; r++) {
      for (int v = 0; v < kVectors; v++) {
        float* at = weighted + r * dim_ + v * kLanes;
        if (kIsPart) {
          store_part(at, sums[r][v], left);
        } else {
          store(at, sums[r][v]);
        }
      }
    }
  }

  using ValueForms = std::array<ValueFunction, 3>;
  template <int... kRows>
  static constexpr std::array<ValueForms, kValueRows + 1> value_functions(
      std::integer_sequence<int, kRows...>) {
    return {ValueForms{}, ValueForms{&Attention::add_rows<kRows + 1, kValueVectors, false>,
                                     &Attention::add_rows<kRows + 1, 1, false>,
                                     &Attention::add_rows<kRows + 1, 1, true>}...};
  }
  static inline const std::array<ValueForms, kValueRows + 1> kValueFunctions =
      value_functions(std::make_integer_sequence<int, kValueRows>());

  const BlocksCall& call_;
  const AttentionBlock& block_;
  const int64_t dim_, page_size_, chunk_size_, span_size_, heads_, stride_;
  Input* queries_;
  float* scores_;
  char* page_;
  AttentionScratch& scratch_;
  int64_t kv_head_ = 0, num_folded_ = 0, first_position_ = 0;
  int64_t end_ = 0;  // of the positions that any query sees
  const int32_t* table_ = nullptr;
};
