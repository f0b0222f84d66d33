// What becomes of the panels of a product; used by dense blocks and experts. Include inside the
// namespace.

// Of one row.
inline void store_panel(float* row, const float* out, const float* bias, int64_t panel,
                        int64_t width) {
  const int64_t first = panel * kPanelOutputs, count = std::min(kPanelOutputs, width - first);
  for (int64_t i = 0; i < count; i += kLanes) {
    Vector y = load(out + i);
    if (bias) y += load_part(bias + first + i, count - i);
    store_part(row + first + i, y, count - i);
  }
}

// Of rows that stand one behind the other.
inline void store_panels(float* rows, const float* out, int64_t num_rows, const float* bias,
                         int64_t panel, int64_t width) {
  for (int64_t row = 0; row < num_rows; row++) {
    store_panel(rows + row * width, out + row * kPanelOutputs, bias, panel, width);
  }
}

inline void add_panel(float* row, const float* out, const float* bias, int64_t panel, int64_t width,
                      float multiplier) {
  const int64_t first = panel * kPanelOutputs, count = std::min(kPanelOutputs, width - first);
  for (int64_t i = 0; i < count; i += kLanes) {
    Vector y = load(out + i);
    if (bias) y += load_part(bias + first + i, count - i);
    float* at = row + first + i;
    store_part(at, load_part(at, count - i) + y * multiplier, count - i);
  }
}

// Takes the product of gate and up: their activation goes to what `down` multiplies, packed at once
// where a panel's share can be, and else to rows of `inner`.
class GateUp {
 public:
  GateUp(const MlpBlock& block, const Activations& packed, float* inner)
      : block_(block), packed_(packed), inner_(inner), packs_at_once_(packs_at_once(block)) {}

  static bool packs_at_once(const MlpBlock& block) {
    return block.is_gated && block.down.type == WeightType::kBfloat16 &&
           block.intermediate_size % 16 == 0;
  }

  void operator()(int64_t first_row, int64_t num_rows, int64_t panel, const float* out) const {
    if (!block_.is_gated) return take_plain(first_row, num_rows, panel, out);
    if (block_.activation == Activation::kSilu && !block_.gate_up_bias && block_.clamp <= 0.0f &&
        block_.gate_multiplier == 1.0f) {
      return take_gated<true>(first_row, num_rows, panel, out);
    }
    take_gated<false>(first_row, num_rows, panel, out);
  }

 private:
  void take_plain(int64_t first_row, int64_t num_rows, int64_t panel, const float* out) const {
    const int64_t width = block_.intermediate_size;
    const int64_t end = std::min(width, (panel + 1) * kPanelOutputs);
    for (int64_t row = first_row; row < first_row + num_rows; row++, out += kPanelOutputs) {
      float* to = inner_ + row * width;
      store_panel(to, out, block_.gate_up_bias, panel, width);
      for (int64_t i = panel * kPanelOutputs; i < end; i += kLanes) {
        store_part(to + i, activate(block_.activation, load_part(to + i, end - i)), end - i);
      }
    }
  }

  // A panel holds 16 gates and the same 16 of up. kIsUsual: SiLU without bias, multiplier and clamp.
  template <bool kIsUsual>
  void take_gated(int64_t first_row, int64_t num_rows, int64_t panel, const float* out) const {
    const int64_t width = block_.intermediate_size, first = panel * 16;
    const int64_t count = std::min<int64_t>(16, width - first);
#if defined(__AMX_TILE__)
    if (packs_at_once_ && packed_.is_for_amx()) {
      // Runs of neighbouring rows stand side by side: a row takes few instructions, so that those
      // of tiles behind it begin in time.
      char* to = nullptr;
      const bool is_odd_end = first + 16 == width && width * 2 % kRunBytes != 0;
      for (int64_t i = 0; i < num_rows; i++, out += kPanelOutputs, to += kRunBytes) {
        const int64_t row = first_row + i;
        if (i == 0 || row % kMostBlockRows == 0) to = packed_.byte_of_run(row, first * 2);
        const HalfVector bits = to_bfloat16(gated<kIsUsual>(load(out), load(out + 16), first));
        std::memcpy(to, &bits, sizeof bits);
        if (is_odd_end) std::memset(to + sizeof bits, 0, sizeof bits);
      }
      return;
    }
#endif
    for (int64_t row = first_row; row < first_row + num_rows; row++, out += kPanelOutputs) {
      alignas(64) float products[16];
      for (int64_t i = 0; i < 16; i += kLanes) {
        store(products + i, gated<kIsUsual>(load(out + i), load(out + 16 + i), first + i));
      }
      if (packs_at_once_) {
        packed_.put_part(row, products, first, count);
      } else {
        std::memcpy(inner_ + row * width + first, products, static_cast<size_t>(count) * 4);
      }
    }
  }

  template <bool kIsUsual>
  Vector gated(Vector gates, Vector ups, int64_t first) const {
    if (kIsUsual) return activate(Activation::kSilu, gates) * (ups + block_.up_offset);
    const int64_t left = block_.intermediate_size - first;
    if (block_.gate_up_bias && left > 0) {
      const float* bias = block_.gate_up_bias + first;
      gates += load_part(bias, left);
      ups += load_part(bias + block_.intermediate_size, left);
    }
    gates *= block_.gate_multiplier;
    if (block_.clamp > 0.0f) {  // NaN stays NaN.
      const Vector limit = splat(block_.clamp);
      gates = minimum(limit, gates);
      ups = maximum(-limit, minimum(limit, ups));
    }
    return activate(block_.activation, gates) * (ups + block_.up_offset);
  }

  const MlpBlock& block_;
  const Activations& packed_;
  float* const inner_;
  const bool packs_at_once_;
};
