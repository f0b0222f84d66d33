// Attention of a few neighbouring tokens of one row over the row's pages. Include inside the
// namespace.
//
// Online softmax (arXiv 1805.02867) in chunks of positions, and a softmax of its own for each span of
// chunks, which are merged in order. The borders of both are fixed: a token's result has the same
// bits whatever other tokens it is computed with, and whether or not threads share its spans.

// Positions of a page that registers of AMX take at once.
constexpr int64_t kRunPositions = kRunBytes / 2;

template <CacheType kType>
using CacheProduct =
    std::conditional_t<kType == CacheType::kFloat32, Float32Product, Bfloat16Product>;

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
  Memory begun;           // sums of the values that segments share, by 32 of the head's width
  Memory rows;            // the largest score of each in a chunk, and how its sums decay
  Memory values;  // a chunk's, of int8 widened, of latents turned
  Memory scales;  // of int8: of a chunk's keys and values

  bool reserve(int64_t folded_rows, const AttentionBlock& block, int64_t block_size) {
    const int64_t head_dim = block.head_dim, value_dim = block.value_dim();
    const bool is_int8 = block.cache_type == CacheType::kInt8;
    if (is_int8 && !scales.reserve(2 * score_stride(block_size) * 4)) return false;
    if ((is_int8 || block.is_latent()) &&
        !values.reserve(chunk_size(block_size) * value_dim * kLaneBytes)) {
      return false;
    }
    return queries.reserve(2 * folded_rows * round_up(head_dim, kRunPositions) * 4) &&
           scores.reserve(folded_rows * score_stride(block_size) * 4) &&
           state.reserve(SoftmaxState::num_floats(folded_rows, value_dim) * 4) &&
           span_state.reserve(SoftmaxState::num_floats(folded_rows, value_dim) * 4) &&
           begun.reserve(kMostBlockRows * round_up(value_dim, kPanelOutputs) * 4) &&
           rows.reserve(2 * folded_rows * 4) &&
           page.reserve(head_dim * round_up(block_size, 2 * kLanes) * kLaneBytes);
  }

  // A page is computed in whole steps, so the last one of a chunk may hang over.
  static int64_t score_stride(int64_t block_size) {
    return round_up(chunk_size(block_size), kLanes) + 3 * kLanes;
  }
};

// Some numbers of the keys of 2 * kLanes positions: groups that stand `stride` bytes apart.
struct KeyPart {
  const char* keys;
  int64_t stride, num_groups;
  const char* ahead;  // Is asked for.
};

// Scores of kRows queries and 2 * kLanes positions; where a key is in two places, of both parts.
template <class Product, int kRows, bool kHasTwoParts>
void score_rows(const typename Product::Input* queries, KeyPart first, KeyPart second,
                float* scores, int64_t score_stride) {
  typename Product::Sum sums[kRows][2] = {};
  multiply_groups<Product, kRows, 2>(queries, 1, kRows, first.keys, first.stride, first.num_groups,
                                     nullptr, first.ahead, sums);
  if constexpr (kHasTwoParts) {
    multiply_groups<Product, kRows, 2>(queries + first.num_groups * kRows, 1, kRows, second.keys,
                                       second.stride, second.num_groups, nullptr, second.ahead,
                                       sums);
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
    store(scores + row * score_stride, bits_as<Vector>(sums[row][0]));
    store(scores + row * score_stride + kLanes, bits_as<Vector>(sums[row][1]));
  }
}

// Adds the values of some groups of positions, `stride` bytes apart, to kVectors vectors of kRows
// rows of `width` floats. The values of the last group are at `last`, unless that is null; `ahead`
// is asked for. kIsPart: the last lanes of a row only. Where this is inlined, GCC 12 keeps the sums
// in memory.
template <class Product, int kRows, int kVectors, bool kIsPart>
__attribute__((noinline)) void add_groups(const typename Product::Input* weights,
                                          int64_t weight_stride, const char* values,
                                          int64_t stride, int64_t num_groups, const char* last,
                                          const char* ahead, float* weighted, int64_t width) {
  typename Product::Sum sums[kRows][kVectors] = {};
  multiply_groups<Product, kRows, kVectors>(weights, weight_stride, 1, values, stride, num_groups,
                                            last, ahead, sums);
  const int64_t left = kIsPart ? width % kLanes : kLanes;
  const auto add = [&](float* at, typename Product::Sum sum) {
    store_part(at, load_part(at, left) + bits_as<Vector>(sum), left);
  };
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) {
    float* at = weighted + r * width;
    add(at, sums[r][0]);
    if constexpr (kVectors > 1) add(at + kLanes, sums[r][1]);
  }
}

// By number of rows.
template <class Product>
using ScoreFunction = void (*)(const typename Product::Input*, KeyPart, KeyPart, float*, int64_t);
template <class Product>
using ValueFunction = void (*)(const typename Product::Input*, int64_t, const char*, int64_t,
                               int64_t, const char*, const char*, float*, int64_t);

template <class Product, bool kHasTwoParts, int... kRows>
constexpr std::array<ScoreFunction<Product>, sizeof...(kRows) + 1> score_functions(
    std::integer_sequence<int, kRows...>) {
  return {nullptr, score_rows<Product, kRows + 1, kHasTwoParts>...};
}
template <class Product, int kVectors, bool kIsPart, int... kRows>
constexpr std::array<ValueFunction<Product>, sizeof...(kRows) + 1> value_functions(
    std::integer_sequence<int, kRows...>) {
  return {nullptr, add_groups<Product, kRows + 1, kVectors, kIsPart>...};
}

// kIsLatent: the values are latents and lie as keys do. A token's key is its latent and, behind that,
// what is in `keys`.
template <CacheType kType, bool kIsLatent = false>
class Attention {
  using Product = CacheProduct<kType>;
  using Input = typename Product::Input;
  using Weight = typename Product::Weight;
  // All rows or none, as for products of bfloat16 weights.
  static constexpr bool kByAmx = kHasAmx && kType != CacheType::kFloat32 && !kIsLatent;
  static constexpr bool kIsInt8 = kType == CacheType::kInt8, kCopiesValues = kIsInt8 || kIsLatent;
  static constexpr int64_t kNumberBytes = kLaneBytes / Product::kInputs;  // of multiplied pages
  struct NoTiles {};
  using Tiles = std::conditional_t<kByAmx, AmxTiles, NoTiles>;
  static constexpr int kValueRows = Product::kMaxRows < 12 ? Product::kMaxRows : 12;
  static constexpr int64_t kScoreRows = kByAmx ? kMostBlockRows : kValueRows;
  static constexpr int kScoreStep = 2 * kLanes;
  static constexpr int kValueVectors = 2;

  // Folded rows that read the same pages.
  struct Part {
    int64_t row, num_rows;
    int64_t begin, end;  // of the positions that any of them sees
    const int32_t* table;
    const Input* queries;
  };

 public:
  Attention(const BlocksCall& call, const AttentionBlock& block, const QueryTiles& tiles,
            AttentionScratch& scratch)
      : call_(call),
        block_(block),
        tiles_(tiles),
        dim_(block.head_dim),
        value_dim_(block.value_dim()),
        page_size_(call.block_size),
        chunk_size_(chunk_size(call.block_size)),
        span_size_(span_size(call.block_size)),
        heads_(block.heads_per_kv_head()),
        stride_(AttentionScratch::score_stride(call.block_size)),
        key_bytes_(page_bytes(kType, page_size_, kIsLatent ? dim_ - value_dim_ : dim_)),
        value_bytes_(page_bytes(kType, page_size_, value_dim_)),
        scores_(scratch.scores.at<float>()),
        key_scales_(scratch.scales.at<float>()),
        value_scales_(kIsInt8 ? key_scales_ + stride_ : nullptr),
        page_(scratch.page.at<char>()),
        largest_(scratch.rows.at<float>()),
        scratch_(scratch) {}

  // Turns to a tile and a key head; `q` are the queries of the tile's first token, further ones stand
  // `q_stride` floats apart.
  void begin(const QueryTile& tile, int64_t kv_head, const float* q, int64_t q_stride) {
    tile_ = &tile;
    kv_head_ = kv_head;
    num_folded_ = tile.count * heads_;
    decays_ = largest_ + num_folded_;
    Input* queries = scratch_.queries.at<Input>();
    parts_.clear();
    for (int64_t i = 0; i < tile.num_segments; i++) {
      const auto& segment = tiles_.segments[static_cast<size_t>(tile.first_segment + i)];
      parts_.push_back(part_of(segment.first, segment.count, q, q_stride, queries));
    }
    begin_ = parts_[0].begin;
    end_ = parts_[0].end;
    for (const Part& part : parts_) {
      begin_ = std::min(begin_, part.begin);
      end_ = std::max(end_, part.end);
    }
    if (tile.num_segments > 1) {
      whole_ = part_of(tile.first, tile.count, q, q_stride, queries + num_folded_ * query_size());
      whole_.begin = begin_;
      whole_.end = tile.num_shared;
    }
  }

  // Everything that the tile sees, span by span.
  void run(float* out, int64_t out_stride) {
    start(state());
    for (int64_t span = first_span(); span < end_span(); span++) {
      run_span(span, own());
      merge(own(), state());
    }
    finish(state(), out, out_stride);
  }

  // The same of `count` neighbouring heads of one tile, which each began, page by page: their keys
  // in a page lie one behind the other, and so do their values.
  static void run_together(Attention* const* heads, int64_t count, float* out,
                           int64_t out_stride) {
    const Attention& one = *heads[0];
    const Part& part = one.parts_[0];
    for (int64_t h = 0; h < count; h++) heads[h]->start(heads[h]->state());
    for (int64_t span = one.first_span(); span < one.end_span(); span++) {
      for (int64_t h = 0; h < count; h++) heads[h]->clear(heads[h]->own());
      const int64_t end = std::min(one.end_, (span + 1) * one.span_size_);
      const int64_t first = one.begin_ / one.chunk_size_ * one.chunk_size_;
      for (int64_t chunk = std::max(first, span * one.span_size_); chunk < end;
           chunk += one.chunk_size_) {
        run_chunk_together(heads, count, chunk, std::max(chunk, part.begin),
                           std::min(end, chunk + one.chunk_size_));
      }
      for (int64_t h = 0; h < count; h++) heads[h]->merge(heads[h]->own(), heads[h]->state());
    }
    for (int64_t h = 0; h < count; h++) heads[h]->finish(heads[h]->state(), out, out_stride);
  }

  // Whether these are so few rows that they wait for memory.
  static bool runs_together(const QueryTile& tile, int64_t heads_per_kv_head) {
    return !kByAmx && !kIsLatent && tile.num_segments == 1 &&
           tile.count * heads_per_kv_head <= kRowsThatWait;
  }

  int64_t first_span() const { return begin_ / span_size_; }
  int64_t end_span() const { return divide_up(end_, span_size_); }

  // One span alone.
  void run_span(int64_t span, const SoftmaxState& state) {
    clear(state);
    const int64_t begin = std::max(begin_ / chunk_size_ * chunk_size_, span * span_size_);
    const int64_t end = std::min(end_, (span + 1) * span_size_);
    for (int64_t chunk = begin; chunk < end; chunk += chunk_size_) {
      const int64_t shared = tile_->num_segments > 1 ? tile_->num_shared - chunk : 0;
      if (shared >= chunk_size_) {
        run_chunk(whole_, chunk, state);
      } else if (shared > 0) {
        run_divided_chunk(chunk, state);
      } else {
        for (const Part& part : parts_) run_chunk(part, chunk, state);
      }
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
      const float kept = decay_of(to.maximums[row], largest);
      const float added = decay_of(from.maximums[row], largest);
      to.maximums[row] = largest;
      to.totals[row] = to.totals[row] * kept + from.totals[row] * added;
      const float* values = from.weighted + row * value_dim_;
      float* sums = to.weighted + row * value_dim_;
      for (int64_t i = 0; i < value_dim_; i++) sums[i] = sums[i] * kept + values[i] * added;
    }
  }

  // `out` is of the tile's first token, further ones stand `out_stride` floats apart.
  void finish(const SoftmaxState& state, float* out, int64_t out_stride) const {
    for (int64_t row = 0; row < num_folded_; row++) {
      const float* from = state.weighted + row * value_dim_;
      float* to = out + row / heads_ * out_stride + (kv_head_ * heads_ + row % heads_) * value_dim_;
      const float inverse = 1.0f / state.totals[row];
      for (int64_t i = 0; i < value_dim_; i++) to[i] = from[i] * inverse;
    }
  }

 private:
  static constexpr float kMasked = -1e30f;
  static constexpr float kLog2OfE = 1.44269504f;

  // Of everything so far, and of a span.
  SoftmaxState state() const { return {scratch_.state.at<float>(), num_folded_}; }
  SoftmaxState own() const { return {scratch_.span_state.at<float>(), num_folded_}; }

  // What some heads see of a chunk.
  static void run_chunk_together(Attention* const* heads, int64_t count, int64_t chunk,
                                 int64_t from, int64_t to) {
    const Attention& one = *heads[0];
    const int64_t size = one.page_size_, first = from / size * size;
    for (int64_t page = first; page < to; page += size) {
      for (int64_t h = 0; h < count; h++) {
        const Attention* next = heads[(h + 1) % count];
        const int64_t next_page = h + 1 < count ? page : page + size;
        const char* ahead = next_page < to ? next->keys_at(next->parts_[0], next_page)
                                           : next->stored_values_at(next->parts_[0], first);
        heads[h]->score_page(heads[h]->parts_[0], chunk, page, from, to, ahead);
      }
    }
    for (int64_t h = 0; h < count; h++) {
      heads[h]->absorb(heads[h]->parts_[0], chunk, from, to, heads[h]->own());
    }
    for (int64_t page = first; page < to; page += size) {
      const int64_t begin = std::max(from, page), end = std::min(to, page + size);
      for (int64_t h = 0; h < count; h++) {
        const Attention* next = heads[(h + 1) % count];
        const int64_t next_page = h + 1 < count ? page : page + size;
        const Part& part = heads[h]->parts_[0];
        const int64_t ahead_page = next_page < to ? next_page : page;
        const char* ahead = next->stored_values_at(next->parts_[0], ahead_page);
        if constexpr (kIsInt8) {
          for (int64_t i = 0; i < one.value_bytes_; i += 64) __builtin_prefetch(ahead + i, 0, 2);
          ahead = nullptr;
        }
        heads[h]->copy_values(part, chunk, begin, end);
        heads[h]->add_values(part, chunk, begin, end, heads[h]->own().weighted, Sums::kWhole,
                             ahead);
      }
    }
  }

  static float decay_of(float maximum, float larger) {
    return exponential_of_two(splat((maximum - larger) * kLog2OfE))[0];
  }

  void clear(const SoftmaxState& state) const {
    for (int64_t row = 0; row < num_folded_; row++) {
      state.maximums[row] = kMasked;
      state.totals[row] = 0.0f;
    }
    std::memset(state.weighted, 0, static_cast<size_t>(num_folded_ * value_dim_) * 4);
  }

  int64_t groups() const { return dim_ / Product::kInputs; }
  int64_t query_size() const {
    return (kByAmx ? round_up(dim_, kRunPositions) : dim_) / Product::kInputs;
  }
  int32_t token_of(int64_t row) const {
    return call_.live[static_cast<size_t>(tile_->first + row / heads_)];
  }
  int64_t position_of(int64_t row) const { return call_.positions[token_of(row)]; }
  int64_t first_seen(int64_t row) const {
    const int64_t position = position_of(row);
    const int64_t in_chunk = block_.chunk > 0 ? position / block_.chunk * block_.chunk : 0;
    return block_.window > 0 ? std::max(in_chunk, position - block_.window + 1) : in_chunk;
  }
  static int64_t rows_of_piece(const Part& part, int64_t piece) {
    return std::min<int64_t>(kScoreRows, part.num_rows - piece);
  }
  int64_t page_of(const Part& part, int64_t position) const {
    return part.table[position / page_size_] * block_.num_kv_heads + kv_head_;
  }
  const char* keys_at(const Part& part, int64_t position) const {
    return static_cast<const char*>(block_.keys) + page_of(part, position) * key_bytes_;
  }
  const char* stored_values_at(const Part& part, int64_t position) const {
    return static_cast<const char*>(block_.values) + page_of(part, position) * value_bytes_;
  }
  // Values of a page of a chunk, as they are multiplied.
  const char* values_at(const Part& part, int64_t chunk, int64_t page) const {
    if (!kCopiesValues) return stored_values_at(part, page);
    return scratch_.values.at<char>() + (page - chunk) * value_dim_ * kNumberBytes;
  }

  // Packs the queries of some tokens, scaled, in pieces of at most kScoreRows rows: the group of
  // inputs, or the run for AMX, is the outer index. `queries` and `q` are those of the tile.
  Part part_of(int64_t first, int64_t count, const float* q, int64_t q_stride,
               Input* queries) const {
    Part part{};
    part.row = (first - tile_->first) * heads_;
    part.num_rows = count * heads_;
    part.begin = first_seen(part.row);
    const int32_t token = token_of(part.row);
    part.end = call_.positions[token] + count;
    part.table = block_.tables + call_.rows[token] * call_.table_width;
    queries += part.row * query_size();
    part.queries = queries;
    float scaled[kMaxKeyDim];
    for (int64_t row = 0; row < part.num_rows; row++) {
      const int64_t head = kv_head_ * heads_ + row % heads_;
      const float* from = q + (part.row + row) / heads_ * q_stride + head * dim_;
      for (int64_t i = 0; i < dim_; i++) scaled[i] = from[i] * block_.scale;
      const int64_t piece = row / kScoreRows * kScoreRows, rows = rows_of_piece(part, piece);
      Input* to = queries + piece * query_size();
      if constexpr (kByAmx) {
        for (int64_t i = 0; i < round_up(dim_, kRunPositions); i += kLanes) {
          const int64_t run = i / kRunPositions * rows + (row - piece);
          Product::put_side_by_side(to + (run * kRunPositions + i % kRunPositions) / 2,
                                    i < dim_ ? load_part(scaled + i, dim_ - i) : Vector{});
        }
      } else {
        Product::put(to + (row - piece), rows, scaled, dim_);
      }
    }
    return part;
  }

  // What some rows see of a chunk.
  void run_chunk(const Part& part, int64_t chunk, const SoftmaxState& state) {
    const int64_t from = std::max(chunk, part.begin);
    const int64_t to = std::min(part.end, chunk + chunk_size_);
    if (from >= to) return;
    score_chunk(part, chunk, from, to);
    absorb(part, chunk, from, to, state);
    copy_values(part, chunk, from, to);
    add_values(part, chunk, from, to, state.weighted, Sums::kWhole);
  }

  // A chunk whose first pages all segments share. Scores are of one position each, and sums of values
  // go on from page to page, so a row has the same bits as by itself.
  void run_divided_chunk(int64_t chunk, const SoftmaxState& state) {
    const int64_t from = std::max(chunk, whole_.begin), middle = tile_->num_shared;
    score_chunk(whole_, chunk, from, middle);
    for (const Part& part : parts_) {
      const int64_t to = std::min(part.end, chunk + chunk_size_);
      score_chunk(part, chunk, std::max(middle, part.begin), to);
      absorb(part, chunk, from, to, state);
    }
    copy_values(whole_, chunk, from, middle);
    add_values(whole_, chunk, from, middle, state.weighted, Sums::kBegun);
    for (const Part& part : parts_) {
      const int64_t to = std::min(part.end, chunk + chunk_size_);
      const int64_t own = std::max(middle, part.begin);
      copy_values(part, chunk, own, to);
      add_values(part, chunk, own, to, state.weighted, Sums::kContinued);
    }
  }

  float* scores_of(int64_t row) const { return scores_ + row * stride_; }
  // The weights of the softmax take the place of the scores.
  Input* weights_of(int64_t row) const { return reinterpret_cast<Input*>(scores_of(row)); }

  // Scores of positions `from` to `to`, each at its place in the chunk, and noise beside them.
  void score_chunk(const Part& part, int64_t chunk, int64_t from, int64_t to) {
    for (int64_t page = from / page_size_ * page_size_; page < to; page += page_size_) {
      const int64_t next = page + page_size_ < part.end ? page + page_size_ : page;
      if constexpr (kIsLatent) {
        const int64_t first = std::max(from, page) - page;
        score_latents(part, page, next, chunk, first, std::min(to - page, page_size_));
        continue;
      }
      const char* values = stored_values_at(part, page);
      for (int64_t i = 0; i < value_bytes_; i += 64) __builtin_prefetch(values + i, 0, 2);
      score_page(part, chunk, page, from, to, keys_at(part, next));
    }
  }

  // Those of one page; `ahead`, which lies as its keys do, is asked for.
  void score_page(const Part& part, int64_t chunk, int64_t page, int64_t from, int64_t to,
                  const char* ahead) {
    const int64_t first = std::max(from, page) - page, end = std::min(to - page, page_size_);
    const char* keys = keys_at(part, page);
    int64_t stride = page_size_ * kLaneBytes;
    if constexpr (kIsInt8) {
      copy_scales(keys, stored_values_at(part, page), page - chunk);
      keys = widen_keys(keys, ahead, first, end);
      stride = round_up(page_size_, kScoreStep) * kLaneBytes;
      ahead = keys;
    } else if (page_size_ % kScoreStep != 0) {
      keys = copy_padded(keys, groups(), page_);
      stride = round_up(page_size_, kScoreStep) * kLaneBytes;
    }
    for (int64_t at = first / kScoreStep * kScoreStep; at < end; at += kScoreStep) {
      for (int64_t piece = 0; piece < part.num_rows; piece += kScoreRows) {
        const Input* queries = part.queries + piece * query_size();
        const int64_t rows = rows_of_piece(part, piece), place = at * kLaneBytes;
        float* scores = scores_of(part.row + piece) + page - chunk + at;
        if constexpr (kByAmx) {
          score_by_amx(queries, rows, keys + place, stride, ahead + place, scores);
        } else {
          const auto score = kScoreFunctions[static_cast<size_t>(rows)];
          score(queries, {keys + place, stride, groups(), ahead + place}, {}, scores, stride_);
        }
      }
    }
  }

  // Of a page of latents: a key is in two places.
  void score_latents(const Part& part, int64_t page, int64_t next, int64_t chunk, int64_t first,
                     int64_t end) {
    const int64_t num_latent = value_dim_ / Product::kInputs;
    const char *latents = stored_values_at(part, page), *ahead = stored_values_at(part, next);
    const char *keys = keys_at(part, page), *keys_ahead = keys_at(part, next);
    int64_t stride = page_size_ * kLaneBytes;
    if (page_size_ % kScoreStep != 0) {
      stride = round_up(page_size_, kScoreStep) * kLaneBytes;
      latents = copy_padded(latents, num_latent, page_);
      keys = copy_padded(keys, groups() - num_latent, page_ + num_latent * stride);
      ahead = latents;
      keys_ahead = keys;
    }
    for (int64_t at = first / kScoreStep * kScoreStep; at < end; at += kScoreStep) {
      const int64_t place = at * kLaneBytes;
      for (int64_t piece = 0; piece < part.num_rows; piece += kScoreRows) {
        const Input* queries = part.queries + piece * query_size();
        const auto score = kScoreFunctions[static_cast<size_t>(rows_of_piece(part, piece))];
        score(queries, {latents + place, stride, num_latent, ahead + place},
              {keys + place, stride, groups() - num_latent, keys_ahead + place},
              scores_of(part.row + piece) + page - chunk + at, stride_);
      }
    }
  }

  const char* copy_padded(const char* keys, int64_t num_groups, char* copy) const {
    const int64_t from_bytes = page_size_ * kLaneBytes;
    const int64_t to_bytes = round_up(page_size_, kScoreStep) * kLaneBytes;
    for (int64_t group = 0; group < num_groups; group++) {
      char* to = copy + group * to_bytes;
      std::memcpy(to, keys + group * from_bytes, static_cast<size_t>(from_bytes));
      std::memset(to + from_bytes, 0, static_cast<size_t>(to_bytes - from_bytes));
    }
    return copy;
  }

  void copy_scales(const char* keys, const char* values, int64_t at) const {
    const int64_t behind = page_size_ * dim_;
    std::memcpy(key_scales_ + at, keys + behind, static_cast<size_t>(page_size_ * kScaleBytes));
    std::memcpy(value_scales_ + at, values + behind, static_cast<size_t>(page_size_ * kScaleBytes));
  }

  // The steps of an int8 page with positions `first` to `end`; `ahead` is asked for.
  const char* widen_keys(const char* keys, const char* ahead, int64_t first, int64_t end) const {
    const int64_t to_bytes = round_up(page_size_, kScoreStep) * kLaneBytes;
    const int64_t begin = first / kScoreStep * kScoreStep;
    const int64_t count = std::min(round_up(end, kScoreStep), page_size_) - begin;
    const int64_t behind = (round_up(count, kScoreStep) - count) * kLaneBytes;
    for (int64_t i = 0; i < key_bytes_; i += 64) __builtin_prefetch(ahead + i, 0, 2);
    for (int64_t group = 0; group < groups(); group++) {
      char* to = page_ + group * to_bytes + begin * kLaneBytes;
      widen_pairs(keys + (group * page_size_ + begin) * 2, count, to);
      if (behind > 0) std::memset(to + count * kLaneBytes, 0, static_cast<size_t>(behind));
    }
    return page_;
  }

  // Values of positions `from` to `to` of pages that aren't multiplied as they lie.
  void copy_values(const Part& part, int64_t chunk, int64_t from, int64_t to) const {
    for (int64_t page = from / page_size_ * page_size_; page < to && kCopiesValues;
         page += page_size_) {
      const int64_t begin = (std::max(from, page) - page) / 2 * 2;
      const int64_t end = round_up(std::min(to - page, page_size_), 2);
      const char* values = stored_values_at(part, page);
      char* copy = const_cast<char*>(values_at(part, chunk, page));
      if constexpr (kIsLatent) {
        turn_latents<kType>(values, page_size_, value_dim_, begin, end, copy);
      } else {
        widen_pairs(values + begin * value_dim_, (end - begin) * value_dim_ / 2,
                    copy + begin * value_dim_ * 2);
      }
    }
  }

#if defined(__AMX_TILE__)
  // Scores of a piece and 32 positions; `ahead` is asked for.
  void score_by_amx(const Input* queries, int64_t num_rows, const char* keys, int64_t stride,
                    const char* ahead, float* scores) {
    amx_.begin(num_rows);
    const char* x = reinterpret_cast<const char*>(queries);
    for (int64_t group = 0; group < groups(); group += kTileRows) {
      const int64_t left = groups() - group;
      for (int64_t i = 0; i < kTileRows && num_rows <= kRowsThatWait; i++) {
        __builtin_prefetch(ahead + (group + i) * stride, 0, 2);
        __builtin_prefetch(ahead + (group + i) * stride + 64, 0, 2);
      }
      if (left >= kTileRows) {
        amx_.add(x, kRunBytes, keys, stride);
      } else {
        alignas(64) char last[kStepBytes] = {};
        for (int64_t i = 0; i < left; i++) {
          std::memcpy(last + i * kRowBytes, keys + i * stride, static_cast<size_t>(kRowBytes));
        }
        finish_writes(last);
        amx_.add(x, kRunBytes, last, kRowBytes);
      }
      x += num_rows * kRunBytes;
      keys += kTileRows * stride;
    }
    amx_.store_sums(scores, stride_ * 4);
  }
#endif

  static inline const std::array<ScoreFunction<Product>, kScoreRows + 1> kScoreFunctions =
      score_functions<Product, kIsLatent>(std::make_integer_sequence<int, kScoreRows>());

  // Turns the rows' scores of a chunk into weights of the softmax so far.
  void absorb(const Part& part, int64_t chunk, int64_t from, int64_t to,
              const SoftmaxState& state) {
    int64_t begin = (from - chunk) / kLanes * kLanes, end = to - chunk;
    if constexpr (kByAmx) {  // Weights of 0 up to whole runs of the pages.
      const int64_t length = (to - 1) % page_size_ + 1;
      begin = (from - from % page_size_ % kRunPositions - chunk) / kLanes * kLanes;
      end += round_up(length, kRunPositions) - length;
    }
    // What a row sees of these, and whether that is every lane of them.
    const auto seen = [&](int64_t row) {
      const int64_t low = std::max(first_seen(row), chunk) - chunk;
      const int64_t high = std::min(position_of(row) + 1, to) - chunk;
      return std::tuple(low, high, low <= begin && high >= round_up(end, kLanes));
    };
    // First all maxima, then what follows from them for kLanes rows at once: no row waits for the
    // end of another one's sums.
    const int64_t end_row = part.row + part.num_rows;
    for (int64_t row = part.row; row < end_row; row++) {
      const auto [low, high, is_whole] = seen(row);
      largest_[row] = is_whole ? largest_score<true>(row, begin, end, low, high)
                               : largest_score<false>(row, begin, end, low, high);
    }
    for (int64_t row = part.row; row < end_row; row += kLanes) {
      const int64_t left = end_row - row;
      const Vector old_maximum = load_part(state.maximums + row, left);
      const Vector new_maximum = maximum(load_part(largest_ + row, left), old_maximum);
      store_part(decays_ + row, exponential_of_two((old_maximum - new_maximum) * kLog2OfE), left);
      store_part(state.maximums + row, new_maximum, left);
    }
    for (int64_t row = part.row; row < end_row; row++) {
      const auto [low, high, is_whole] = seen(row);
      const float largest = state.maximums[row];
      const float sum = is_whole ? weigh<true>(row, begin, end, low, high, largest)
                                 : weigh<false>(row, begin, end, low, high, largest);
      const float decay = decays_[row];
      state.totals[row] = state.totals[row] * decay + sum;
      if (decay == 1.0f) continue;
      float* weighted = state.weighted + row * value_dim_;
      for (int64_t i = 0; i < value_dim_; i += kLanes) {
        store_part(weighted + i, load_part(weighted + i, value_dim_ - i) * decay, value_dim_ - i);
      }
    }
  }

  // Of a row's scores in their final form, of positions `low` to `high`. kIsWhole: these are all.
  template <bool kIsWhole>
  float largest_score(int64_t row, int64_t begin, int64_t end, int64_t low, int64_t high) {
    float* scores = scores_of(row);
    Vector largest = splat(kMasked);
    for (int64_t at = begin; at < end; at += kLanes) {
      Vector x = load(scores + at);
      if constexpr (kIsInt8) x *= load(key_scales_ + at);
      if (block_.softcap > 0.0f) x = block_.softcap * tanh_of(x / block_.softcap);
      if (kIsInt8 || block_.softcap > 0.0f) store(scores + at, x);
      if (!kIsWhole && (at < low || at + kLanes > high)) {
        x = is_between(at, low, high) ? x : splat(kMasked);
      }
      largest = maximum(x, largest);
    }
    return maximum_of(largest);
  }

  // Puts the weights in the place of a row's scores; their sum.
  template <bool kIsWhole>
  float weigh(int64_t row, int64_t begin, int64_t end, int64_t low, int64_t high, float largest) {
    const float* scores = scores_of(row);
    Input* weights = weights_of(row);
    const float offset = largest * kLog2OfE;
    Vector sum{};
    for (int64_t at = begin; at < end; at += kLanes) {
      Vector weight = exponential_of_two(load(scores + at) * kLog2OfE - offset);
      Vector scaled = weight;
      if constexpr (kIsInt8) scaled *= load(value_scales_ + at);
      if (!kIsWhole && (at < low || at + kLanes > high)) {
        const IntVector is_seen = is_between(at, low, high);
        weight = is_seen ? weight : Vector{};
        scaled = is_seen ? scaled : Vector{};
      }
      Product::put_side_by_side(weights + at / Product::kInputs, scaled);
      sum += weight;
    }
    return sum_of(sum);
  }

  static IntVector is_between(int64_t at, int64_t low, int64_t high) {
    IntVector index;
    for (int lane = 0; lane < kLanes; lane++) index[lane] = lane;
    index += static_cast<int32_t>(at);
    return (index >= static_cast<int32_t>(low)) & (index < static_cast<int32_t>(high));
  }

  // Of a chunk's values: all, or those of its first pages and those of the others behind them.
  enum class Sums { kWhole, kBegun, kContinued };

  // Adds weight times value of positions `from` to `to`. `ahead`, which lies as the values of a
  // page do, is asked for, unless it is null or by AMX.
  void add_values(const Part& part, int64_t chunk, int64_t from, int64_t to, float* weighted,
                  [[maybe_unused]] Sums sums, [[maybe_unused]] const char* ahead = nullptr) {
    if constexpr (kByAmx) {
      for (int64_t piece = 0; piece < part.num_rows; piece += kScoreRows) {
        for (int64_t first = 0; first < value_dim_; first += kPanelOutputs) {
          add_by_amx(part, piece, first, chunk, from, to, weighted, sums);
        }
      }
    } else {
      for (int64_t row = part.row; row < part.row + part.num_rows; row += kValueRows) {
        int64_t first = 0;
        for (; value_dim_ - first >= kValueVectors * kLanes; first += kValueVectors * kLanes) {
          add_rows<kValueVectors, false>(part, row, first, chunk, from, to, weighted, ahead);
        }
        for (; value_dim_ - first >= kLanes; first += kLanes) {
          add_rows<1, false>(part, row, first, chunk, from, to, weighted, ahead);
        }
        if (first < value_dim_) {
          add_rows<1, true>(part, row, first, chunk, from, to, weighted, ahead);
        }
      }
    }
  }

#if defined(__AMX_TILE__)
  // For a piece and 32 of the head's width from `first` on. Sums that are begun are kept as they are:
  // added to what came before they would be rounded once more.
  void add_by_amx(const Part& part, int64_t piece, int64_t first, int64_t chunk, int64_t from,
                  int64_t to, float* weighted, Sums kind) {
    const int64_t row = part.row + piece, num_rows = rows_of_piece(part, piece);
    const int64_t stride = value_dim_ * kLaneBytes;
    const int64_t width = std::min(kPanelOutputs, value_dim_ - first);
    float* begun = scratch_.begun.at<float>() + first * kMostBlockRows + row * kPanelOutputs;
    if (kind == Sums::kContinued) {
      amx_.resume(num_rows, begun);
    } else {
      amx_.begin(num_rows);
    }
    for (int64_t page = from / page_size_ * page_size_; page < to; page += page_size_) {
      const int64_t begin = std::max(from, page) - page, end = std::min(to - page, page_size_);
      const char* values = values_at(part, chunk, page) + first * kLaneBytes;
      for (int64_t at = begin - begin % kRunPositions; at < end; at += kRunPositions) {
        const char* x = reinterpret_cast<const char*>(weights_of(row) + (page - chunk + at) / 2);
        const char* from_pair = values + at / 2 * stride;
        if (at >= begin && at + kRunPositions <= end && width == kPanelOutputs) {
          amx_.add(x, stride_ * 4, from_pair, stride);
          continue;
        }
        // Beside these positions and the page may lie anything.
        alignas(64) BitVector pairs[kTileRows][2] = {};
        for (int64_t pair = 0; pair < kTileRows; pair++) {
          const int64_t position = at + 2 * pair;
          if (position + 1 < begin || position >= end) continue;
          std::memcpy(pairs[pair], from_pair + pair * stride, static_cast<size_t>(width * kLaneBytes));
          for (BitVector& bits : pairs[pair]) {
            if (position < begin) bits &= 0xffff0000u;
            if (position + 1 == end) bits &= 0xffffu;
          }
        }
        finish_writes(pairs);
        amx_.add(x, stride_ * 4, reinterpret_cast<const char*>(pairs), kRowBytes);
      }
    }
    if (kind == Sums::kBegun) {
      amx_.store_sums(begun);
      finish_writes(begun);
      return;
    }
    alignas(64) float sums[kMostBlockRows * kPanelOutputs];
    amx_.store_sums(sums);
    for (int64_t r = 0; r < num_rows; r++) {
      for (int64_t i = 0; i < width; i += kLanes) {
        float* to_row = weighted + (row + r) * value_dim_ + first + i;
        store_part(to_row, load_part(to_row, width - i) + load(sums + r * kPanelOutputs + i),
                   width - i);
      }
    }
  }
#endif

  // At most kValueRows rows and kVectors whole vectors of the head's width from `first` on; kIsPart:
  // its last lanes only.
  template <int kVectors, bool kIsPart>
  void add_rows(const Part& part, int64_t row, int64_t first, int64_t chunk, int64_t from,
                int64_t to, float* weighted, const char* ahead) {
    static constexpr std::array<ValueFunction<Product>, kValueRows + 1> kFunctions =
        value_functions<Product, kVectors, kIsPart>(std::make_integer_sequence<int, kValueRows>());
    const int64_t num_rows = std::min<int64_t>(kValueRows, part.row + part.num_rows - row);
    const auto add = kFunctions[static_cast<size_t>(num_rows)];
    const int64_t weight_stride = weights_of(1) - weights_of(0);
    const int64_t stride = value_dim_ * kLaneBytes;
    weighted += row * value_dim_ + first;
    for (int64_t page = from / page_size_ * page_size_; page < to; page += page_size_) {
      const int64_t begin = (std::max(from, page) - page) / Product::kInputs;
      const int64_t length = std::min(to - page, page_size_);
      const int64_t end = length / Product::kInputs;
      const Input* weights = weights_of(row) + (page - chunk) / Product::kInputs;
      const char* values = values_at(part, chunk, page) + first * kLaneBytes;
      const auto copy = [&](int64_t group, BitVector (&lanes)[kVectors]) {
        std::memcpy(lanes, values + group * stride,
                    kIsPart ? static_cast<size_t>((value_dim_ - first) * kLaneBytes) : sizeof lanes);
        for (BitVector& bits : lanes) {
          if (group == end) bits &= 0xffffu;
        }
        return reinterpret_cast<const char*>(lanes);
      };
      // What is no whole vector, and a last position without its neighbour, are copied: behind them
      // may lie anything.
      BitVector lanes[kVectors] = {};
      if (!kIsPart) {
        const char* last = end * Product::kInputs < length ? copy(end, lanes) : nullptr;
        const char* asked = ahead ? ahead + first * kLaneBytes : values + begin * stride;
        add(weights + begin, weight_stride, values + begin * stride, stride,
            end - begin + (last != nullptr), last, asked, weighted, value_dim_);
        continue;
      }
      for (int64_t group = begin; group * Product::kInputs < length; group++) {
        const char* copied = copy(group, lanes);
        add(weights + group, weight_stride, copied, 0, 1, copied, copied, weighted, value_dim_);
      }
    }
  }

  const BlocksCall& call_;
  const AttentionBlock& block_;
  const QueryTiles& tiles_;
  const int64_t dim_, value_dim_, page_size_, chunk_size_, span_size_, heads_, stride_;
  const int64_t key_bytes_, value_bytes_;  // of a page
  float *scores_, *key_scales_, *value_scales_;  // scales: of int8, at their positions in a chunk
  char* page_;
  float* largest_;            // of each folded row, in a chunk
  float* decays_ = nullptr;   // behind these
  AttentionScratch& scratch_;
  const QueryTile* tile_ = nullptr;
  int64_t kv_head_ = 0, num_folded_ = 0;
  int64_t begin_ = 0, end_ = 0;  // of the positions that any query sees
  std::vector<Part> parts_;      // one for each segment
  Part whole_{};                 // all of them, where there are several
  Tiles amx_;
};
