// The head and the embedding: a decoder's two tables of the vocabulary. Include inside the namespace.

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
    team.each_row(num_rows,
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
    team.each_row(call.num_tokens, [&](int64_t token) {
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
