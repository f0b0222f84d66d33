// Panels of a matrix times blocks of rows, by AMX. Include in linear.h.
//
// Rows pass by a piece of a panel, which stays in the first cache; what is to be done with sums that
// are ready is done while the registers multiply the next ones.

// Steps of a piece: 36 KiB.
constexpr int64_t kPieceSteps = 18;
// Panels times blocks of rows of a part, whose sums are kept from piece to piece.
constexpr int64_t kMostPartSums = 32;

// Blocks of rows that a panel is read once for; their inputs stay in the second cache meanwhile.
inline int64_t blocks_at_once(const Activations& x) {
  constexpr int64_t kMostBytes = 1 << 20;
  return std::clamp<int64_t>(kMostBytes / (kMostBlockRows * x.row_bytes()), 4, 16);
}

template <class Finish>
class AmxProduct {
  using Numbers = AmxTiles::Numbers;

 public:
  AmxProduct(const Activations& x, const Matrix& matrix, Finish& finish)
      : x_(x),
        matrix_(matrix),
        finish_(finish),
        stride_(matrix.panel_stride()),
        num_steps_(divide_up(matrix.padded() * x.input_bytes(), kRunBytes)),
        group_steps_(is_in_blocks(matrix.type) ? matrix.group_size / kRunBytes : 1) {}

  void run(const Part& part) {
    switch (matrix_.type) {
      case WeightType::kBfloat16: return run_as<Numbers::kBfloat16>(part);
      case WeightType::kInt8: return run_as<Numbers::kUnsigned>(part);
      default: return run_as<Numbers::kSigned>(part);
    }
  }

 private:
  static constexpr int64_t kSums = kMostBlockRows * kPanelOutputs;
  static constexpr int64_t kAheadBytes = 4096;

  // Rows of one panel whose sums are ready.
  struct Waiting {
    float* sums = nullptr;
    int64_t panel = 0, block = 0, row = 0, num_rows = 0;
  };

  // Some steps of one panel.
  struct Piece {
    int64_t panel, first, count;
    const char *weights, *last;  // the last step's weights are here
    const char* ahead;           // what is read next
  };

  template <Numbers kNumbers>
  void run_as(const Part& part) {
    const int64_t num_blocks = part.end_block - part.first_block;
    const bool is_packed = kNumbers == Numbers::kSigned;
    // One block of rows passes no panel twice.
    int64_t most = num_blocks > 1 || is_packed ? kPieceSteps : num_steps_;
    most = std::max(group_steps_, most / group_steps_ * group_steps_);
    for (int64_t first = 0; first < num_steps_; first += most) {
      const int64_t count = std::min(most, num_steps_ - first);
      for (int64_t panel = part.first_panel; panel < part.end_panel; panel++) {
        Piece piece = piece_of<kNumbers>(panel, first, count);
        const bool is_end = panel + 1 == part.end_panel;
        piece.ahead = num_blocks == 1                    ? piece.weights + kAheadBytes
                      : !is_end                          ? piece.weights + stride_
                      : first + count == num_steps_      ? matrix_.data + (panel + 1) * stride_
                      : matrix_.data + part.first_panel * stride_ + (first + count) * kStepBytes;
        for (int64_t block = part.first_block; block < part.end_block; block++) {
          // Sums that are gone on with have a place of their own.
          const int64_t place = count == num_steps_ ? turn_++ % 2
                                : (panel - part.first_panel) * num_blocks + block - part.first_block;
          float* sums = sums_ + place * kSums;
          if (is_packed) {
            multiply_groups(piece, block, sums);
          } else {
            multiply<kNumbers>(piece, block, block - part.first_block, num_blocks, sums);
          }
          if (first + count < num_steps_) continue;
          finish_rows(kMostBlockRows);
          waiting_ = {sums, panel, block, 0, x_.rows_of(block)};
        }
      }
    }
    finish_rows(kMostBlockRows);
  }

  template <Numbers kNumbers>
  Piece piece_of(int64_t panel, int64_t first, int64_t count) {
    const char* data = matrix_.data + panel * stride_;
    if (kNumbers == Numbers::kSigned) {
      if (unpacks_at_once()) unpack_steps(data, first, count, unpacked_);
      return {panel, first, count, data, nullptr, nullptr};
    }
    const char* weights = data + first * kStepBytes;
    const char* last = weights + (count - 1) * kStepBytes;
    const int64_t left = matrix_.padded() * x_.input_bytes() / kLaneBytes % kTileRows;
    if (first + count == num_steps_ && left > 0) {
      // Behind the last group lies something else.
      std::memset(last_, 0, sizeof last_);
      std::memcpy(last_, last, static_cast<size_t>(left * kRowBytes));
      finish_writes(last_);
      last = last_;
    }
    return {panel, first, count, weights, last, nullptr};
  }

  template <Numbers kNumbers>
  void multiply(const Piece& piece, int64_t block, int64_t index, int64_t num_blocks, float* sums) {
    const int64_t num_rows = x_.rows_of(block);
    const char* x = x_.at_step(block, piece.first);
    // Of what comes next, a part for each block.
    const int64_t lines = kStepBytes / 64;
    const int64_t begin = lines * index / num_blocks, end = lines * (index + 1) / num_blocks;
    const int64_t rows_at_once = divide_up(waiting_.num_rows, piece.count);
    if (piece.first == 0) {
      amx_.begin(num_rows);
    } else {
      amx_.resume(num_rows, sums);
    }
    for (int64_t step = 0; step < piece.count; step++) {
      const char* ahead = piece.ahead + step * kStepBytes;
      for (int64_t i = begin; i < end; i++) __builtin_prefetch(ahead + i * 64, 0, 2);
      const bool is_last = step + 1 == piece.count;
      const char* weights = is_last ? piece.last : piece.weights + step * kStepBytes;
      if (num_blocks > 1) {
        amx_.template add<kNumbers, true>(x, kRunBytes, weights, kRowBytes);
      } else {
        amx_.template add<kNumbers>(x, kRunBytes, weights, kRowBytes);
      }
      finish_rows(rows_at_once);
      x += num_rows * kRunBytes;
    }
    amx_.store_sums(sums);
  }

  // Numbers in blocks that are one group each: a group's sums are scaled while the next one is
  // multiplied. With the same bits as block_tile.
  void multiply_groups(const Piece& piece, int64_t block, float* totals) {
    const int64_t num_rows = x_.rows_of(block);
    const char* x = x_.at_step(block, piece.first);
    const int64_t first = piece.first / group_steps_, num_groups = piece.count / group_steps_;
    const int64_t rows_at_once = divide_up(waiting_.num_rows, num_groups);
    if (first == 0) std::memset(totals, 0, static_cast<size_t>(num_rows * kRowBytes));
    for (int64_t group = 0; group < num_groups; group++) {
      amx_.begin(num_rows);
      for (int64_t i = 0; i < group_steps_; i++, x += num_rows * kRunBytes) {
        const int64_t step = group * group_steps_ + i;
        const char* weights = unpacked_ + step * kStepBytes;
        if (!unpacks_at_once()) {
          unpack_steps(piece.weights, piece.first + step, 1, unpacked_);
          weights = unpacked_;
        }
        amx_.template add<Numbers::kSigned>(x, kRunBytes, weights, kRowBytes);
      }
      if (group > 0) add_group(piece.weights, block, first + group - 1, whole_[(group - 1) % 2], totals);
      finish_rows(rows_at_once);
      amx_.store_sums(whole_[group % 2]);
    }
    add_group(piece.weights, block, first + num_groups - 1, whole_[(num_groups - 1) % 2], totals);
  }

  // Adds the sums of a group, scaled, and takes its minimum off.
  void add_group(const char* panel, int64_t block, int64_t group, const int32_t* sums,
                 float* totals) const {
    const BlockLayout& layout = matrix_.blocks;
    const char* behind = panel + group * layout.num_bytes(matrix_.type, matrix_.group_size) +
                         layout.words_bytes(matrix_.type);
    const char* floats = behind + layout.has_minima * kPanelOutputs;
    const int64_t num_rows = x_.rows_of(block);
    for (int64_t i = 0; i < kPanelOutputs; i += kLanes) {
      Vector scale = load_scales(floats, layout.scale_type, i);
      for (int64_t at = i; at < num_rows * kPanelOutputs; at += kPanelOutputs) {
        const IntVector sum = load_as<IntVector>(sums + at);
        store(totals + at, load(totals + at) + __builtin_convertvector(sum, Vector) * scale);
      }
      if (!layout.has_minima) continue;
      const IntVector minimum = load_bytes(behind + i);
      scale = load_scales(floats + kPanelOutputs * layout.scale_bytes(), layout.scale_type, i);
      for (int64_t row = 0; row < num_rows; row++) {
        float* at = totals + row * kPanelOutputs + i;
        const IntVector low = minimum * x_.sum_at(x_.first_row(block) + row, group);
        store(at, load(at) - __builtin_convertvector(low, Vector) * scale);
      }
    }
  }

  bool unpacks_at_once() const { return group_steps_ <= kPieceSteps; }

  // Words as signed bytes. One of four bits becomes four inputs in one row of a register and four in
  // the next.
  void unpack_steps(const char* panel, int64_t first, int64_t count, char* to) const {
    typedef uint8_t Bytes __attribute__((vector_size(4 * kLanes)));
    const bool is_byte = matrix_.type == WeightType::kBlocks8;
    const BlockLayout& layout = matrix_.blocks;
    const int64_t group_bytes = layout.num_bytes(matrix_.type, matrix_.group_size);
    const int64_t step_bytes = kRunBytes / (is_byte ? 4 : 8) * kRowBytes;
    const auto zero = static_cast<uint8_t>(layout.zero(matrix_.type));
    const auto put = [&](IntVector bytes, char* place) {
      const Bytes numbers = bits_as<Bytes>(bytes) - zero;
      std::memcpy(place, &numbers, sizeof numbers);
    };
    for (int64_t step = first; step < first + count; step++, to += kStepBytes) {
      const char* words =
          panel + step / group_steps_ * group_bytes + step % group_steps_ * step_bytes;
      for (int64_t i = 0; i < step_bytes; i += kLanes * kLaneBytes) {
        __builtin_prefetch(words + i + kAheadBytes / 2, 0, 2);
        const IntVector word = load_as<IntVector>(words + i);
        if (is_byte) {
          put(word, to + i);
          continue;
        }
        char* row = to + i / kRowBytes * 2 * kRowBytes + i % kRowBytes;
        put(word & 0x0f0f0f0f, row);
        put((word >> 4) & 0x0f0f0f0f, row + kRowBytes);
      }
    }
    finish_writes(to);
  }

  // The next rows of what is ready.
  void finish_rows(int64_t count) {
    const int64_t num_rows = std::min(waiting_.num_rows - waiting_.row, count);
    if (num_rows <= 0) return;
    const int64_t row = x_.first_row(waiting_.block) + waiting_.row;
    float* out = waiting_.sums + waiting_.row * kPanelOutputs;
    if (matrix_.type != WeightType::kBfloat16) scale_rows(row, num_rows, out);
    finish_(row, num_rows, waiting_.panel, out);
    waiting_.row += num_rows;
  }

  // What int8_tile and block_tile do at their end, in place.
  void scale_rows(int64_t first, int64_t num_rows, float* out) const {
    const char* weight_scales =
        matrix_.data + waiting_.panel * stride_ + matrix_.padded() / 4 * kRowBytes;
    for (int64_t row = first; row < first + num_rows; row++, out += kPanelOutputs) {
      const float scale = x_.scale_at(row);
      for (int64_t i = 0; i < kPanelOutputs; i += kLanes) {
        if (matrix_.type == WeightType::kInt8) {
          const IntVector sum = load_as<IntVector>(out + i) - x_.sum_at(row, 0) * 128;
          const Vector of_weights = load_as<Vector>(weight_scales + i * 4);
          store(out + i, __builtin_convertvector(sum, Vector) * (scale * of_weights));
        } else {
          store(out + i, load(out + i) * scale);
        }
      }
    }
  }

  const Activations& x_;
  const Matrix& matrix_;
  Finish& finish_;
  const int64_t stride_, num_steps_, group_steps_;
  AmxTiles amx_;
  Waiting waiting_;
  int64_t turn_ = 0;
  alignas(64) float sums_[kMostPartSums * kSums];
  alignas(64) int32_t whole_[2][kSums];
  alignas(64) char unpacked_[kPieceSteps * kStepBytes];
  alignas(64) char last_[kStepBytes];
};
