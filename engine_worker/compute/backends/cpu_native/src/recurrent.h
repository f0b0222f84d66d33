// Tokens of some sequences through a recurrent layer: its convolution, and what its heads remember.
// Include inside the level's namespace.
//
// A thread takes some channels, or a head, of all tokens, one after the other: so a token finds what
// the one before it of the same sequence left, and each number is computed in one order. Where tokens
// go on from one another, a thread takes a part of a head, which stays in the first cache meanwhile.

// What a head makes of a token's query and key, and how much it keeps.
struct DeltaScalars {
  float q_scale, k_scale, asked, kept;  // asked: the product of query and key
};

// What a call needs beside its arrays.
struct RecurrentScratch {
  float* convolved;       // [T, channels]
  DeltaScalars* scalars;  // [T, num_heads] of a delta net
  float* parts;           // [threads, floats of a part]
};

class RecurrentRunner {
 public:
  static constexpr int kPhases = 3;

  RecurrentRunner(Team& team, const RecurrentCall& call, const RecurrentScratch& scratch)
      : team_(team),
        call_(call),
        scratch_(scratch),
        convolved_(scratch.convolved),
        size_(size_of_parts(call)),
        num_parts_(divide_up(call.head_dim, std::max<int64_t>(1, size_))),
        own_(scratch.parts + team.thread() * num_part_floats(call)) {}

  void run() {
    team_.each(divide_up(call_.channels, kSomeChannels),
               [&](int64_t item) { convolve(item * kSomeChannels); });
    if (call_.kind == MixerKind::kConvolution) return;
    if (is_delta_net(call_)) team_.each_row(call_.num_rows, [&](int64_t row) { prepare(row); });
    team_.each(call_.num_heads * num_parts_, [&](int64_t item) {
      const int64_t head = item / num_parts_, first = item % num_parts_ * size_;
      const int64_t count = std::min(size_, call_.head_dim - first);
      for (int64_t row = 0; row < call_.num_rows; row++) {
        if (is_token(row)) advance(row, head, first, count);
      }
      end_streaming();
    });
  }

  // Of a part, as it is between tokens that go on from one another; 0 where there are none.
  static int64_t num_part_floats(const RecurrentCall& call) {
    if (!has_chunks(call)) return 0;
    const int64_t size = size_of_parts(call);
    return is_delta_net(call) ? call.group_dim * round_up(size, kLanes)
                              : size * round_up(call.group_dim, kLanes);
  }

 private:
  static constexpr int64_t kSomeChannels = 128;  // Whole vectors; a tail of them is read at once.
  static constexpr int64_t kRowsAhead = 4;  // They lie far from one another and are asked for.
  // Columns of a memory that are computed together, so that no sum waits for the one before it.
  static constexpr int kColumns = kLanes == 16 ? 8 : 4;
  static constexpr int kPartColumns = kLanes == 16 ? 4 : 2;
  static constexpr int64_t kPartFloats = 8192;
  // Rows of a state space's memory that are computed together.
  static constexpr int kRowsAtOnce = 4;

  // A part of a head's memory around a token: lines that stand so many floats apart.
  struct Part {
    const float* from;
    float *to, *stored;  // stored: where `to` is copied to; or null.
    int64_t from_stride, to_stride;
    bool is_whole, is_streamed;  // Lines are whole vectors; `to` is read by none of this call.
  };

  // One token of one head of a delta net.
  struct DeltaToken {
    const float *q, *k, *v;
    float* y;
    DeltaScalars scalars;
    float strength;
  };

  static bool is_delta_net(const RecurrentCall& call) { return call.kind == MixerKind::kDeltaNet; }
  static bool has_chunks(const RecurrentCall& call) {
    const auto go_on = [&](const int32_t* states) {
      const int32_t* end = states + call.num_rows;
      return std::find(states, end, kGoesOn) != end;
    };
    return call.num_heads > 0 && (go_on(call.before) || go_on(call.after));
  }
  // Of a head, how many columns of a delta net's memory or rows of a state space's a thread takes:
  // none of these has to do with the others.
  static int64_t size_of_parts(const RecurrentCall& call) {
    if (!has_chunks(call)) return call.head_dim;
    const int64_t step = is_delta_net(call) ? kPartColumns * kLanes : 1;
    return std::max(step, kPartFloats / call.group_dim / step * step);
  }

  bool is_token(int64_t row) const { return call_.after[row] != -1; }
  bool goes_on(int64_t row) const { return call_.before[row] == kGoesOn; }

  void convolve(int64_t first) const {
    const int64_t count = std::min(kSomeChannels, call_.channels - first);
    const int64_t num_before = call_.num_taps - 1, size = num_before * call_.channels;
    float taps[kMaxTaps][kSomeChannels] = {};
    for (int64_t channel = 0; channel < count; channel++) {
      for (int64_t tap = 0; tap <= num_before; tap++) {
        taps[tap][channel] = call_.taps[(first + channel) * call_.num_taps + tap];
      }
    }
    float window[kMaxTaps][kSomeChannels] = {};  // The last inputs, oldest first.
    const auto each_tap = [&](int64_t state, auto&& f) {
      for (int64_t tap = 0; tap < num_before; tap++) {
        f(window[tap], call_.tails + state * size + tap * call_.channels + first);
      }
    };
    const auto num_bytes = static_cast<size_t>(count) * 4;
    for (int64_t row = 0; row < call_.num_rows; row++) {
      if (!is_token(row)) continue;
      if (call_.before[row] == -1) {
        each_tap(0, [&](float* seen, float*) { std::memset(seen, 0, num_bytes); });
      } else if (!goes_on(row)) {
        each_tap(call_.before[row],
                 [&](float* seen, float* from) { std::memcpy(seen, from, num_bytes); });
      }
      const float* x = call_.mixed + row * call_.channels + first;
      float* y = convolved_ + row * call_.channels + first;
      for (int64_t channel = 0; channel < count; channel += kLanes) {
        const int64_t left = count - channel;
        __builtin_prefetch(x + kRowsAhead * call_.channels + channel);
        __builtin_prefetch(y + kRowsAhead * call_.channels + channel, 1);
        const Vector newest = load_part(x + channel, left);
        Vector sum{};
        for (int64_t tap = 0; tap < num_before; tap++) {
          const Vector seen = load(&window[tap][channel]);
          sum += seen * load(&taps[tap][channel]);
          if (tap > 0) store(&window[tap - 1][channel], seen);
        }
        if (num_before > 0) store(&window[num_before - 1][channel], newest);
        sum += newest * load(&taps[num_before][channel]);
        if (call_.bias) sum += load_part(call_.bias + first + channel, left);
        const bool is_activated = call_.kind != MixerKind::kConvolution;
        store_part(y + channel, is_activated ? activate(Activation::kSilu, sum) : sum, left);
      }
      if (call_.after[row] >= 0) {
        each_tap(call_.after[row],
                 [&](float* seen, float* to) { std::memcpy(to, seen, num_bytes); });
      }
    }
  }

  // What a head's part is before and after a token; `offset` is its place in the head's memory, whose
  // lines are `stride` floats long and of which it has `num_lines`, as wide as `width`.
  Part part_of(int64_t row, int64_t head, int64_t offset, int64_t stride, int64_t num_lines,
               int64_t width) const {
    const int64_t head_size = call_.group_dim * call_.head_dim;
    const auto at = [&](int64_t state) {
      return call_.memories + (state * call_.num_heads + head) * head_size + offset;
    };
    const int32_t before = call_.before[row], after = call_.after[row];
    const int64_t own_stride = round_up(width, kLanes);
    const bool is_last = row + 1 == call_.num_rows || !goes_on(row + 1) || !is_token(row + 1);
    Part part{own_, own_, nullptr, own_stride, own_stride, width % kLanes == 0, false};
    if (is_last && after >= 0) {
      part.to = at(after);
      part.to_stride = stride;
      // All weights are read before it is read again, so it would be in no cache, and to store it
      // there would read it first.
      part.is_streamed = part.is_whole && stride % kLanes == 0 &&
                         reinterpret_cast<uintptr_t>(part.to) % sizeof(Vector) == 0;
    } else if (after >= 0) {
      part.stored = at(after);
    }
    if (before >= 0) {
      part.from = at(before);
      part.from_stride = stride;
    } else if (before == -1) {  // Zeros, which are put in its place.
      part.from = part.to;
      part.from_stride = part.to_stride;
      for (int64_t i = 0; i < num_lines; i++) std::fill_n(part.to + i * part.to_stride, width, 0.0f);
    }
    return part;
  }

  void advance(int64_t row, int64_t head, int64_t first, int64_t count) const {
    const bool is_delta = is_delta_net(call_);
    const int64_t stride = is_delta ? call_.head_dim : call_.group_dim;
    const int64_t num_lines = is_delta ? call_.group_dim : count;
    const int64_t width = is_delta ? count : call_.group_dim;
    const Part part =
        part_of(row, head, is_delta ? first : first * stride, stride, num_lines, width);
    if (is_delta) {
      correct(row, head, first, count, part);
    } else if (part.is_streamed) {
      add_values<true>(row, head, first, count, part);
    } else {
      add_values<false>(row, head, first, count, part);
    }
    for (int64_t i = 0; i < num_lines && part.stored; i++) {
      std::memcpy(part.stored + i * stride, part.to + i * part.to_stride,
                  static_cast<size_t>(width) * 4);
    }
  }

  const float* query_of(int64_t row, int64_t head) const {
    return convolved_ + row * call_.channels + head / call_.heads_per_group() * call_.group_dim;
  }

  void prepare(int64_t row) const {
    for (int64_t head = 0; head < call_.num_heads && is_token(row); head++) {
      const float *q = query_of(row, head), *k = q + call_.num_groups * call_.group_dim;
      DeltaScalars& scalars = scratch_.scalars[row * call_.num_heads + head];
      scalars.q_scale = unit_scale(q) / std::sqrt(static_cast<float>(call_.group_dim));
      scalars.k_scale = unit_scale(k);
      scalars.asked = product(q, k) * scalars.q_scale * scalars.k_scale;
      scalars.kept = std::exp(call_.forgets[row * call_.num_heads + head]);
    }
  }

  // Columns of the memory [group_dim, head_dim] of a head forget, recall what is there for the key,
  // and correct that towards the value.
  void correct(int64_t row, int64_t head, int64_t first, int64_t count, const Part& part) const {
    const int64_t scalar = row * call_.num_heads + head, width = call_.head_dim;
    DeltaToken token{};
    token.q = query_of(row, head);
    token.k = token.q + call_.num_groups * call_.group_dim;
    token.v = convolved_ + row * call_.channels + 2 * call_.num_groups * call_.group_dim +
              head * width + first;
    token.scalars = scratch_.scalars[scalar];
    token.strength = call_.writes[scalar];
    token.y = call_.y + scalar * width + first;
    int64_t column = 0;
    if (part.is_streamed) {
      column = correct_all<kColumns, true>(token, part, column, count);
      correct_all<1, true>(token, part, column, count);
    } else {
      if (part.is_whole) column = correct_all<kPartColumns, false>(token, part, column, count);
      correct_all<1, false>(token, part, column, count);
    }
  }

  // From `column` on, so many vectors at once; where there are fewer the next call begins.
  template <int kVectors, bool kIsStreamed>
  int64_t correct_all(const DeltaToken& token, const Part& part, int64_t column,
                      int64_t count) const {
    constexpr int64_t kStep = kVectors * kLanes;
    for (; column + (kVectors > 1 ? kStep : 1) <= count; column += kStep) {
      correct_columns<kVectors, kIsStreamed>(token, part, column, count);
    }
    return column;
  }

  template <int kVectors, bool kIsStreamed>
  void correct_columns(const DeltaToken& token, const Part& part, int64_t column,
                       int64_t count) const {
    const int64_t size = call_.group_dim;
    const int64_t left = kIsStreamed || kVectors > 1 ? kLanes : count - column;
    const DeltaScalars& scalars = token.scalars;
    // One pass over the old memory for both: what the new one has for the query beside that is the
    // correction, as far as the query is the key.
    Vector by_key[kVectors] = {}, by_query[kVectors] = {}, correction[kVectors];
    const float* from = part.from + column;
    for (int64_t i = 0; i < size; i++, from += part.from_stride) {
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
      const Vector recalled = by_key[n] * (scalars.k_scale * scalars.kept);
      correction[n] = (load_part(token.v + at, left) - recalled) * token.strength;
      const Vector y =
          by_query[n] * (scalars.q_scale * scalars.kept) + correction[n] * scalars.asked;
      store_part(token.y + at, y, left);
    }
    from = part.from + column;
    float* to = part.to + column;
    for (int64_t i = 0; i < size; i++, from += part.from_stride, to += part.to_stride) {
      const Vector k = splat(token.k[i] * scalars.k_scale);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; n++) {
        const Vector memory =
            load_part(from + n * kLanes, left) * scalars.kept + k * correction[n];
        if (kIsStreamed) {
          stream(to + n * kLanes, memory);
        } else {
          store_part(to + n * kLanes, memory, left);
        }
      }
    }
  }

  // One token of one head of a state space, or of some rows of its memory.
  struct SpaceToken {
    const float *values, *writes, *reads;
    float* y;
    float kept, time, passed;
  };

  // Rows of the memory [head_dim, group_dim] of a head forget, and to each its value adds.
  template <bool kIsStreamed>
  void add_values(int64_t row, int64_t head, int64_t first, int64_t count, const Part& part) const {
    const int64_t size = call_.group_dim, width = call_.head_dim;
    const int64_t scalar = row * call_.num_heads + head;
    const float* convolved = convolved_ + row * call_.channels;
    SpaceToken token{};
    token.values = convolved + head * width + first;
    token.writes =
        convolved + call_.num_heads * width + head / call_.heads_per_group() * size;
    token.reads = token.writes + call_.num_groups * size;
    token.y = call_.y + scalar * width + first;
    token.kept = std::exp(call_.forgets[scalar]);
    token.time = call_.writes[scalar];
    token.passed = call_.passed[head];
    int64_t at = 0;
    for (; at + kRowsAtOnce <= count; at += kRowsAtOnce) {
      add_rows<kRowsAtOnce, kIsStreamed>(token, part, at);
    }
    for (; at < count; at++) add_rows<1, kIsStreamed>(token, part, at);
  }

  template <int kRows, bool kIsStreamed>
  void add_rows(const SpaceToken& token, const Part& part, int64_t at) const {
    const int64_t size = call_.group_dim;
    const float* from = part.from + at * part.from_stride;
    float* to = part.to + at * part.to_stride;
    Vector value[kRows], sum[kRows] = {};
    for (int r = 0; r < kRows; r++) value[r] = splat(token.values[at + r] * token.time);
    for (int64_t n = 0; n < size; n += kLanes) {
      const int64_t left = kIsStreamed || part.is_whole ? kLanes : size - n;
      const Vector writes = load_part(token.writes + n, left);
      const Vector reads = load_part(token.reads + n, left);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) {
        const Vector memory =
            load_part(from + r * part.from_stride + n, left) * token.kept + value[r] * writes;
        if (kIsStreamed) {
          stream(to + r * part.to_stride + n, memory);
        } else {
          store_part(to + r * part.to_stride + n, memory, left);
        }
        sum[r] += memory * reads;
      }
    }
    for (int r = 0; r < kRows; r++) {
      token.y[at + r] = sum_of(sum[r]) + token.values[at + r] * token.passed;
    }
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
  const RecurrentScratch scratch_;
  float* const convolved_;
  const int64_t size_, num_parts_;  // Of a head's part, and how many it has.
  float* const own_;                // The thread's part between tokens that go on from one another.
};

inline bool run_recurrent(const RecurrentCall& call) {
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  RecurrentScratch needed{call.y, nullptr, nullptr};
  if (call.kind != MixerKind::kConvolution) {
    Scratch& kept = scratch();
    const int64_t num_scalars = call.num_rows * call.num_heads;
    const int64_t num_floats = pool.num_threads() * RecurrentRunner::num_part_floats(call);
    if (!kept.inner.reserve(call.num_rows * call.channels * 4) ||
        !kept.spans.reserve(num_scalars * static_cast<int64_t>(sizeof(DeltaScalars))) ||
        !kept.projected.reserve(num_floats * 4)) {
      return false;
    }
    needed = {kept.inner.at<float>(), kept.spans.at<DeltaScalars>(), kept.projected.at<float>()};
  }
  pool.run(lock, RecurrentRunner::kPhases,
           [&](Team& team) { RecurrentRunner(team, call, needed).run(); });
  return true;
}
