// What becomes of the panels of a product; used by dense blocks and experts. Include inside the
// namespace.

inline void store_panel(float* row, const float* out, const float* bias, int64_t panel,
                        int64_t width) {
  const int64_t first = panel * kPanelOutputs, count = std::min(kPanelOutputs, width - first);
  for (int64_t i = 0; i < count; i += kLanes) {
    Vector y = load(out + i);
    if (bias) y += load_part(bias + first + i, count - i);
    store_part(row + first + i, y, count - i);
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

  void operator()(int64_t row, int64_t panel, const float* out) const {
    const int64_t width = block_.intermediate_size;
    float* to = inner_ + row * width;
    if (!block_.is_gated) {
      store_panel(to, out, block_.gate_up_bias, panel, width);
      const int64_t end = std::min(width, (panel + 1) * kPanelOutputs);
      for (int64_t i = panel * kPanelOutputs; i < end; i += kLanes) {
        store_part(to + i, activate(block_.activation, load_part(to + i, end - i)), end - i);
      }
      return;
    }
    alignas(64) float products[16];
    gate(panel, out, products);
    const int64_t first = panel * 16, count = std::min<int64_t>(16, width - first);
    if (packs_at_once_) {
      packed_.put_part(row, products, first, count);
    } else {
      std::memcpy(to + first, products, static_cast<size_t>(count) * 4);
    }
  }

 private:
  // A panel holds 16 gates and the same 16 of up.
  void gate(int64_t panel, const float* out, float* products) const {
    const int64_t first = panel * 16, left = block_.intermediate_size - first;
    for (int64_t i = 0; i < 16; i += kLanes) {
      Vector gates = load(out + i), ups = load(out + 16 + i);
      if (block_.gate_up_bias && i < left) {
        const float* bias = block_.gate_up_bias + first + i;
        gates += load_part(bias, left - i);
        ups += load_part(bias + block_.intermediate_size, left - i);
      }
      if (block_.clamp > 0.0f) {  // NaN stays NaN.
        const Vector limit = splat(block_.clamp);
        gates = gates > limit ? limit : gates;
        ups = ups > limit ? limit : ups < -limit ? -limit : ups;
      }
      store(products + i, activate(block_.activation, gates) * (ups + block_.up_offset));
    }
  }

  const MlpBlock& block_;
  const Activations& packed_;
  float* const inner_;
  const bool packs_at_once_;
};
