// A mixture of experts: each chosen expert's matrices are read once, for all rows that chose it.
// Include inside the namespace.

// The rows that chose one expert; they stand side by side in the packed activations.
struct ExpertRows {
  int64_t expert, first, count;
};

// Tokens and weights by the expert they chose, and in the order of the tokens within it.
struct SortedRows {
  std::vector<int32_t> tokens;
  std::vector<float> weights;
  std::vector<int32_t> groups;  // Of each row, an index of `experts`.
  std::vector<ExpertRows> experts;

  explicit SortedRows(const ExpertsCall& call) {
    const int64_t num_pairs = call.num_tokens * call.num_chosen;
    std::vector<int64_t> places(static_cast<size_t>(call.num_experts) + 1);
    for (int64_t pair = 0; pair < num_pairs; pair++) places[expert_of(call, pair)]++;
    int64_t first = 0;
    for (int64_t expert = 0; expert < call.num_experts; expert++) {
      int64_t& place = places[static_cast<size_t>(expert)];
      const int64_t count = place;
      place = first;
      if (count == 0) continue;
      groups.insert(groups.end(), static_cast<size_t>(count), static_cast<int32_t>(experts.size()));
      experts.push_back({expert, first, count});
      first += count;
    }
    tokens.resize(static_cast<size_t>(first));
    weights.resize(static_cast<size_t>(first));
    for (int64_t pair = 0; pair < num_pairs; pair++) {
      const size_t expert = expert_of(call, pair);
      if (static_cast<int64_t>(expert) == call.num_experts) continue;
      const auto place = static_cast<size_t>(places[expert]++);
      tokens[place] = static_cast<int32_t>(pair / call.num_chosen);
      weights[place] = call.weights[pair];
    }
  }

 private:
  static size_t expert_of(const ExpertsCall& call, int64_t pair) {
    return static_cast<size_t>(call.experts[pair]);
  }
};

class ExpertsRunner {
 public:
  static constexpr int kPhases = 4;

  ExpertsRunner(Team& team, int num_threads, const ExpertsCall& call, Scratch& scratch,
                const SortedRows& rows)
      : team_(team), num_threads_(num_threads), call_(call), scratch_(scratch), rows_(rows) {}

  void run() {
    const MlpBlock& first = call_.expert;
    const int64_t width = first.down.outputs, inputs = first.gate_up.inputs;
    float* inner = scratch_.inner.at<float>();
    pack(scratch_.narrow, first.gate_up, [&](int64_t row) {
      return call_.x + rows_.tokens[static_cast<size_t>(row)] * inputs;
    });
    const auto num_groups = static_cast<int64_t>(rows_.experts.size());
    const int64_t num_panels = first.gate_up.num_panels();
    const int64_t item_panels = panels_at_once(num_panels * num_groups, num_threads_);
    const int64_t num_columns = divide_up(num_panels, item_panels);
    team_.each(num_groups * num_columns, [&](int64_t item) {
      const ExpertRows& group = rows_.experts[static_cast<size_t>(item / num_columns)];
      const MlpBlock block = first.at(group.expert);
      const Activations normed(scratch_.narrow, group.count, block.gate_up, group.first);
      const Activations packed(scratch_.wide, group.count, block.down, group.first);
      const int64_t panel = item % num_columns * item_panels;
      multiply_part(normed, block.gate_up,
                    {panel, std::min(num_panels, panel + item_panels), 0, normed.num_blocks()},
                    GateUp(block, packed, inner + group.first * block.intermediate_size));
    });
    if (!GateUp::packs_at_once(first)) {
      pack(scratch_.wide, first.down,
           [&](int64_t row) { return inner + row * first.intermediate_size; });
    }
    // A thread adds all experts to its outputs: in the order of their numbers, so that a token's
    // sum doesn't depend on what else there is.
    const int64_t most_panels = first.down.num_panels();
    const int64_t out_panels = panels_at_once(most_panels, num_threads_);
    team_.each(divide_up(most_panels, out_panels), [&](int64_t item) {
      const int64_t panel = item * out_panels, end = std::min(most_panels, panel + out_panels);
      for (const ExpertRows& group : rows_.experts) {
        const MlpBlock block = first.at(group.expert);
        const Activations packed(scratch_.wide, group.count, block.down, group.first);
        multiply_part(packed, block.down, {panel, end, 0, packed.num_blocks()},
                      [&](int64_t row, int64_t num_rows, int64_t at, const float* out) {
                        for (int64_t i = 0; i < num_rows; i++, out += kPanelOutputs) {
                          const auto place = static_cast<size_t>(group.first + row + i);
                          add_panel(call_.y + rows_.tokens[place] * width, out, block.down_bias, at,
                                    width, rows_.weights[place]);
                        }
                      });
      }
    });
  }

 private:
  // Packs all rows for products with `matrix` of their experts.
  template <class Values>
  void pack(const ActivationMemory& memory, const Matrix& matrix, Values&& values) {
    team_.each_row(static_cast<int64_t>(rows_.tokens.size()), [&](int64_t row) {
      const auto index = static_cast<size_t>(rows_.groups[static_cast<size_t>(row)]);
      const ExpertRows& group = rows_.experts[index];
      Activations(memory, group.count, matrix, group.first).put_row(row - group.first, values(row));
    });
  }

  Team& team_;
  const int num_threads_;
  const ExpertsCall& call_;
  Scratch& scratch_;
  const SortedRows& rows_;
};

inline bool run_experts(const ExpertsCall& call) {
  const MlpBlock& expert = call.expert;
  std::fill_n(call.y, call.num_tokens * expert.down.outputs, 0.0f);
  const SortedRows rows(call);
  if (rows.experts.empty()) return true;
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  Scratch& kept = scratch();
  const auto num_rows = static_cast<int64_t>(rows.tokens.size());
  if (!kept.narrow.reserve(num_rows, expert.gate_up) || !kept.wide.reserve(num_rows, expert.down) ||
      !kept.inner.reserve(num_rows * expert.intermediate_size * 4)) {
    return false;
  }
  pool.run(lock, ExpertsRunner::kPhases, [&](Team& team) {
    ExpertsRunner(team, pool.num_threads(), call, kept, rows).run();
  });
  return true;
}
