// Rows of one token through a recurrent layer: its convolution, and what its heads remember. Include
// inside the level's namespace.
//
// A thread takes some channels, or a head, of all rows, one row after the other: so a row finds what
// a row before it of the same sequence left, and each number is computed in one order.

class RecurrentRunner {
 public:
  static constexpr int kPhases = 2;

  RecurrentRunner(Team& team, const RecurrentCall& call, float* convolved)
      : team_(team), call_(call), convolved_(convolved) {}

  void run() {
    team_.each(divide_up(call_.channels, kSomeChannels),
               [&](int64_t item) { convolve(item * kSomeChannels); });
    if (call_.kind == MixerKind::kConvolution) return;
    team_.each(call_.num_heads, [&](int64_t head) {
      for (int64_t row = 0; row < call_.num_rows; row++) {
        if (!is_token(row)) continue;
        if (call_.kind == MixerKind::kDeltaNet) {
          correct(row, head);
        } else {
          add(row, head);
        }
      }
      end_streaming();
    });
  }

 private:
  static constexpr int64_t kSomeChannels = 128;  // Whole vectors; a tail of them is read at once.
  // Columns of a memory that are computed together, so that no sum waits for the one before it.
  static constexpr int kColumns = kLanes == 16 ? 8 : 4;

  // One token of one head of a delta net.
  struct DeltaToken {
    const float *q, *k, *v, *from;
    float *to, *y;
    float q_scale, k_scale, asked, kept, strength;  // asked: the product of query and key
  };

  bool is_token(int64_t row) const { return call_.after[row] >= 0; }

  // A part of the state after a row, and through `from` what it is made of: that before the row,
  // or zeros, which are put in its place, for the first token of a sequence.
  float* state(float* states, int64_t size, int64_t first, int64_t count, int64_t row,
               const float** from) const {
    float* to = states + call_.after[row] * size + first;
    *from = call_.before[row] < 0 ? to : states + call_.before[row] * size + first;
    if (call_.before[row] < 0) std::fill_n(to, count, 0.0f);
    return to;
  }

  // Whether rows of a memory are whole vectors. All weights are read before it is read again, so it
  // would be in no cache, and to store it there would read it first.
  static bool is_streamed(const float* to, int64_t width) {
    return width % kLanes == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(Vector) == 0;
  }

  void convolve(int64_t first) const {
    const int64_t count = std::min(kSomeChannels, call_.channels - first);
    const int64_t num_before = call_.num_taps - 1;
    float taps[kMaxTaps][kSomeChannels] = {};
    for (int64_t channel = 0; channel < count; channel++) {
      for (int64_t tap = 0; tap <= num_before; tap++) {
        taps[tap][channel] = call_.taps[(first + channel) * call_.num_taps + tap];
      }
    }
    for (int64_t row = 0; row < call_.num_rows; row++) {
      if (!is_token(row)) continue;
      const float* x = call_.mixed + row * call_.channels + first;
      float* y = convolved_ + row * call_.channels + first;
      const float* from[kMaxTaps];
      float* to[kMaxTaps];
      for (int64_t tap = 0; tap < num_before; tap++) {
        to[tap] = state(call_.tails, num_before * call_.channels, tap * call_.channels + first,
                        count, row, &from[tap]);
      }
      for (int64_t channel = 0; channel < count; channel += kLanes) {
        const int64_t left = count - channel;
        const Vector newest = load_part(x + channel, left);
        Vector sum{};
        for (int64_t tap = 0; tap < num_before; tap++) {
          const Vector seen = load_part(from[tap] + channel, left);
          sum += seen * load(&taps[tap][channel]);
          if (tap > 0) store_part(to[tap - 1] + channel, seen, left);
        }
        if (num_before > 0) store_part(to[num_before - 1] + channel, newest, left);
        sum += newest * load(&taps[num_before][channel]);
        if (call_.bias) sum += load_part(call_.bias + first + channel, left);
        const bool is_activated = call_.kind != MixerKind::kConvolution;
        store_part(y + channel, is_activated ? activate(Activation::kSilu, sum) : sum, left);
      }
    }
  }

  // The memory [group_dim, head_dim] of a head forgets, recalls what is there for the key, and
  // corrects that towards the value.
  void correct(int64_t row, int64_t head) const {
    const int64_t size = call_.group_dim, width = call_.head_dim;
    const float* convolved = convolved_ + row * call_.channels;
    DeltaToken token{};
    token.q = convolved + head / call_.heads_per_group() * size;
    token.k = token.q + call_.num_groups * size;
    token.v = convolved + 2 * call_.num_groups * size + head * width;
    token.q_scale = unit_scale(token.q) / std::sqrt(static_cast<float>(size));
    token.k_scale = unit_scale(token.k);
    token.asked = product(token.q, token.k) * token.q_scale * token.k_scale;
    token.kept = std::exp(call_.forgets[row * call_.num_heads + head]);
    token.strength = call_.writes[row * call_.num_heads + head];
    token.y = call_.y + (row * call_.num_heads + head) * width;
    token.to = head_state(row, head, &token.from);
    int64_t column = 0;
    if (is_streamed(token.to, width)) {
      for (; column + kColumns * kLanes <= width; column += kColumns * kLanes) {
        correct_columns<kColumns, true>(token, column);
      }
      for (; column < width; column += kLanes) correct_columns<1, true>(token, column);
    } else {
      for (; column < width; column += kLanes) correct_columns<1, false>(token, column);
    }
  }

  template <int kVectors, bool kIsStreamed>
  void correct_columns(const DeltaToken& token, int64_t column) const {
    const int64_t size = call_.group_dim, width = call_.head_dim;
    const int64_t left = kIsStreamed ? kLanes : width - column;
    // One pass over the old memory for both: what the new one has for the query beside that is the
    // correction, as far as the query is the key.
    Vector by_key[kVectors] = {}, by_query[kVectors] = {}, correction[kVectors];
    const float* from = token.from + column;
    for (int64_t i = 0; i < size; i++, from += width) {
      const Vector k = splat(token.k[i]), q = splat(token.q[i]);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; n++) {
        const Vector memory = load_part(from + n * kLanes, left);
        by_key[n] += memory * k;
        by_query[n] += memory * q;
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; n++) {
      const int64_t at = column + n * kLanes;
      const Vector recalled = by_key[n] * (token.k_scale * token.kept);
      correction[n] = (load_part(token.v + at, left) - recalled) * token.strength;
      const Vector y = by_query[n] * (token.q_scale * token.kept) + correction[n] * token.asked;
      store_part(token.y + at, y, left);
    }
    from = token.from + column;
    float* to = token.to + column;
    for (int64_t i = 0; i < size; i++, from += width, to += width) {
      const Vector k = splat(token.k[i] * token.k_scale);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; n++) {
        const Vector memory = load_part(from + n * kLanes, left) * token.kept + k * correction[n];
        if (kIsStreamed) {
          stream(to + n * kLanes, memory);
        } else {
          store_part(to + n * kLanes, memory, left);
        }
      }
    }
  }

  // The memory [head_dim, group_dim] of a head forgets, and each value adds to its row.
  void add(int64_t row, int64_t head) const {
    const float* from = nullptr;
    float* to = head_state(row, head, &from);
    if (is_streamed(to, call_.group_dim)) {
      add_values<true>(row, head, from, to);
    } else {
      add_values<false>(row, head, from, to);
    }
  }

  template <bool kIsStreamed>
  void add_values(int64_t row, int64_t head, const float* from, float* to) const {
    const int64_t size = call_.group_dim, width = call_.head_dim;
    const int64_t scalar = row * call_.num_heads + head;
    const float* values = convolved_ + row * call_.channels + head * width;
    const float* writes = convolved_ + row * call_.channels + call_.num_heads * width +
                          head / call_.heads_per_group() * size;
    const float* reads = writes + call_.num_groups * size;
    const float kept = std::exp(call_.forgets[scalar]), time = call_.writes[scalar];
    for (int64_t i = 0; i < width; i++, from += size, to += size) {
      const Vector value = splat(values[i] * time);
      Vector sum{};
      for (int64_t n = 0; n < size; n += kLanes) {
        const int64_t left = kIsStreamed ? kLanes : size - n;
        const Vector memory = load_part(from + n, left) * kept + value * load_part(writes + n, left);
        if (kIsStreamed) {
          stream(to + n, memory);
        } else {
          store_part(to + n, memory, left);
        }
        sum += memory * load_part(reads + n, left);
      }
      call_.y[scalar * width + i] = sum_of(sum) + values[i] * call_.passed[head];
    }
  }

  float* head_state(int64_t row, int64_t head, const float** from) const {
    const int64_t size = call_.group_dim * call_.head_dim;
    return state(call_.memories, call_.num_heads * size, head * size, size, row, from);
  }

  // What makes a query or key of the group's width as long as 1.
  float unit_scale(const float* x) const { return 1.0f / std::sqrt(product(x, x) + call_.eps); }

  float product(const float* a, const float* b) const {
    Vector sum{};
    for (int64_t i = 0; i < call_.group_dim; i += kLanes) {
      const int64_t left = call_.group_dim - i;
      sum += load_part(a + i, left) * load_part(b + i, left);
    }
    return sum_of(sum);
  }

  Team& team_;
  const RecurrentCall& call_;
  float* convolved_;  // [T, channels]
};

inline bool run_recurrent(const RecurrentCall& call) {
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  float* convolved = call.y;
  if (call.kind != MixerKind::kConvolution) {
    Memory& kept = scratch().inner;
    if (!kept.reserve(call.num_rows * call.channels * 4)) return false;
    convolved = kept.at<float>();
  }
  pool.run(lock, RecurrentRunner::kPhases,
           [&](Team& team) { RecurrentRunner(team, call, convolved).run(); });
  return true;
}
