// Products of the heads of latent attention, each with its own matrix. Include inside the namespace.

inline bool run_by_head(const ByHeadCall& call) {
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  Scratch& kept = scratch();
  const int64_t rows = call.num_rows, heads = call.num_heads;
  const int64_t inputs = call.matrix.inputs, outputs = call.matrix.outputs;
  if (!kept.narrow.reserve(rows * heads, call.matrix)) return false;
  const int64_t num_panels = call.matrix.num_panels();
  const int64_t item_panels = panels_at_once(num_panels * heads, pool.num_threads());
  const int64_t num_columns = divide_up(num_panels, item_panels);
  pool.run(lock, 2, [&](Team& team) {
    const auto packed = [&](int64_t head) {
      return Activations(kept.narrow, rows, call.matrix, head * rows);
    };
    team.each_row(rows, [&](int64_t row) {
      for (int64_t head = 0; head < heads; head++) {
        packed(head).put_row(row, call.x + (row * heads + head) * inputs);
      }
    });
    team.each(heads * num_columns, [&](int64_t item) {
      const int64_t head = item / num_columns, panel = item % num_columns * item_panels;
      const Activations x = packed(head);
      Matrix matrix = call.matrix;
      matrix.data += head * call.head_bytes;
      multiply_part(x, matrix,
                    {panel, std::min(num_panels, panel + item_panels), 0, x.num_blocks()},
                    [&](int64_t row, int64_t num_rows, int64_t at, const float* out) {
                      for (int64_t i = 0; i < num_rows; i++, out += kPanelOutputs) {
                        float* y = call.y + ((row + i) * heads + head) * outputs;
                        store_panel(y, out, nullptr, at, outputs);
                      }
                    });
    });
  });
  return true;
}
