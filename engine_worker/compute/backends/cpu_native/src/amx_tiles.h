// Products by the tile registers of AMX. Include in linear.h.
//
// A register holds up to 16 rows of 64 bytes. Of weights one takes 16 groups of inputs of 16 outputs
// as they lie in a panel, of activations 64 bytes of inputs of up to 16 rows. Four registers are the
// sums of 32 rows and 32 outputs (0 and 1 of the first 16 rows, 2 and 3 of the others); 4 and 5 are
// activations, 6 and 7 weights.

constexpr bool kHasAmx = true;
constexpr int64_t kTileRows = 16;
constexpr int64_t kMostBlockRows = 2 * kTileRows;
// Of a panel, as many inputs as two registers hold.
constexpr int64_t kStepBytes = kTileRows * kRowBytes;

// Sums of bfloat16 go in another order than those of vdpbf16ps: all rows take tiles, so that a row's
// bits don't depend on their number. Sums of whole numbers are exact: from as many rows as are faster
// (docs/kernels.md). Scales of smaller groups take longer than their products.
inline bool takes_amx(const Matrix& matrix, int64_t num_rows) {
  switch (matrix.type) {
    case WeightType::kFloat32: return false;
    case WeightType::kBfloat16: return true;
    case WeightType::kInt8: return num_rows >= 4;
    default:
      return num_rows >= 16 && matrix.type != WeightType::kBlocksFp4 &&
             matrix.type != WeightType::kBlocksIq4 && matrix.type != WeightType::kBlocks6 &&
             matrix.group_size % kRunBytes == 0 && !matrix.blocks.has_scales;
  }
}

// What was written before is in memory after this: GCC's intrinsics don't say that they read it.
inline void finish_writes(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

// The registers of a thread, given back when this ends.
class AmxTiles {
 public:
  AmxTiles() = default;
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  ~AmxTiles() {
    if (num_rows_ > 0) _tile_release();
  }

  // As a Tile, of up to kMostBlockRows rows.
  void multiply(WeightType type, const TileInput& in, int64_t num_rows, float* out) {
    if (type == WeightType::kBfloat16) {
      begin(num_rows);
      multiply_panel<Numbers::kBfloat16>(in, in.inputs / 2, out);
    } else if (type == WeightType::kInt8) {
      begin(num_rows);
      multiply_panel<Numbers::kUnsigned>(in, in.inputs / 4, out);
      scale_int8(in, out);
    } else {
      multiply_blocks(type, in, num_rows, out);
    }
  }

  // Starts the sums of a product with some rows of activations.
  void begin(int64_t num_rows) {
    configure(num_rows);
    finish_writes(nullptr);
    _tile_zero(0);
    _tile_zero(1);
    if (!has_second()) return;
    _tile_zero(2);
    _tile_zero(3);
  }

  // Adds the products of one run of bfloat16 inputs.
  void add(const char* x, int64_t x_stride, const char* weights, int64_t stride) const {
    add_run<Numbers::kBfloat16>(x, x_stride, weights, stride);
  }

  // The sums, [num_rows, 32] with so many bytes from row to row.
  void store_sums(void* out, int64_t stride = kPanelOutputs * 4) const {
    char* to = static_cast<char*>(out);
    _tile_stored(0, to, stride);
    _tile_stored(1, to + 64, stride);
    if (!has_second()) return;
    to += kTileRows * stride;
    _tile_stored(2, to, stride);
    _tile_stored(3, to + 64, stride);
  }

 private:
  // Of weights; activations are as these, or signed.
  enum class Numbers { kBfloat16, kUnsigned, kSigned };

  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };

  void configure(int64_t num_rows) {
    if (num_rows == num_rows_) return;
    num_rows_ = num_rows;
    const int64_t first = std::min(num_rows, kTileRows), second = num_rows - first;
    const int64_t rows[8] = {first, first, second, second, first, second, kTileRows, kTileRows};
    Config config;
    for (int i = 0; i < 8; i++) {
      config.rows[i] = static_cast<uint8_t>(rows[i]);
      config.row_bytes[i] = rows[i] > 0 ? 64 : 0;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }

  bool has_second() const { return num_rows_ > kTileRows; }

  template <Numbers kNumbers>
  void add_run(const char* x, int64_t x_stride, const char* weights, int64_t stride) const {
    _tile_loadd(6, weights, stride);
    _tile_loadd(7, weights + 64, stride);
    _tile_loadd(4, x, x_stride);
    if (kNumbers == Numbers::kBfloat16) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    } else if (kNumbers == Numbers::kUnsigned) {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
    } else {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
    }
    if (!has_second()) return;
    _tile_loadd(5, x + kTileRows * x_stride, x_stride);
    if (kNumbers == Numbers::kBfloat16) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else if (kNumbers == Numbers::kUnsigned) {
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    } else {
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }

  template <Numbers kNumbers>
  void multiply_panel(const TileInput& in, int64_t num_groups, float* out) const {
    const auto* x = static_cast<const char*>(in.x);
    const char* weights = in.panel;
    for (int64_t step = 0; step < num_groups / kTileRows; step++) {
      // Few rows are multiplied faster than memory brings the weights.
      for (int64_t i = 0; i < kStepBytes && !has_second(); i += 64) {
        __builtin_prefetch(weights + kTilePrefetchBytes + i);
      }
      add_run<kNumbers>(x, kRunBytes, weights, kRowBytes);
      x += num_rows_ * kRunBytes;
      weights += kStepBytes;
    }
    if (const int64_t left = num_groups % kTileRows; left > 0) {
      // Behind the last group lies something else.
      alignas(64) char last[kStepBytes] = {};
      std::memcpy(last, weights, static_cast<size_t>(left * kRowBytes));
      finish_writes(last);
      add_run<kNumbers>(x, kRunBytes, last, kRowBytes);
    }
    store_sums(out);
  }

  // Sums of whole numbers become those of int8_tile, in place.
  void scale_int8(const TileInput& in, float* out) const {
    const char* weight_scales = in.panel + in.inputs / 4 * kRowBytes;
    for (int64_t row = 0; row < num_rows_; row++) {
      for (int64_t i = 0; i < kPanelOutputs; i += kLanes) {
        float* at = out + row * kPanelOutputs + i;
        const IntVector sum = load_as<IntVector>(at) - in.sums[row] * 128;
        const Vector scale = load_as<Vector>(weight_scales + i * 4);
        store(at, __builtin_convertvector(sum, Vector) * (in.scales[row] * scale));
      }
    }
  }

  // As block_tile, with the same bits.
  void multiply_blocks(WeightType type, const TileInput& in, int64_t num_rows, float* out) {
    const int64_t size = in.group_size, num_blocks = in.inputs / size;
    const int64_t run_words = kRunBytes / (type == WeightType::kBlocks8 ? 4 : 8) * kRowBytes;
    const auto* x = static_cast<const char*>(in.x);
    alignas(64) int32_t sums[kMostBlockRows * kPanelOutputs];
    std::memset(out, 0, static_cast<size_t>(num_rows * kPanelOutputs) * 4);
    for (int64_t block = 0; block < num_blocks; block++) {
      const char* words = in.panel + block * in.blocks.num_bytes(type, size);
      begin(num_rows);
      for (int64_t i = 0; i < size; i += kRunBytes, words += run_words) {
        alignas(64) char numbers[kStepBytes];
        unpack(type, words, run_words, in.blocks.zero(type), numbers);
        add_run<Numbers::kSigned>(x, kRunBytes, numbers, kRowBytes);
        x += num_rows * kRunBytes;
      }
      store_sums(sums);
      add_block(in, block, num_blocks, words, sums, out);
    }
    for (int64_t i = 0; i < num_rows * kPanelOutputs; i += kLanes) {
      store(out + i, load(out + i) * in.scales[i / kPanelOutputs]);
    }
  }

  // Adds the sums of a block, scaled, and takes its minimum off; `behind` its words lie these.
  void add_block(const TileInput& in, int64_t block, int64_t num_blocks, const char* behind,
                 const int32_t* sums, float* out) const {
    const BlockLayout& layout = in.blocks;
    const char* floats = behind + layout.has_minima * kPanelOutputs;
    for (int64_t i = 0; i < kPanelOutputs; i += kLanes) {
      Vector scale = load_scales(floats, layout.scale_type, i);
      for (int64_t at = i; at < num_rows_ * kPanelOutputs; at += kPanelOutputs) {
        const IntVector sum = load_as<IntVector>(sums + at);
        store(out + at, load(out + at) + __builtin_convertvector(sum, Vector) * scale);
      }
      if (!layout.has_minima) continue;
      const IntVector minimum = load_bytes(behind + i);
      scale = load_scales(floats + kPanelOutputs * layout.scale_bytes(), layout.scale_type, i);
      for (int64_t row = 0; row < num_rows_; row++) {
        float* at = out + row * kPanelOutputs + i;
        const IntVector low = minimum * in.sums[row * num_blocks + block];
        store(at, load(at) - __builtin_convertvector(low, Vector) * scale);
      }
    }
  }

  // Words as signed bytes. One of four bits becomes four inputs in one row of a register and four in
  // the next.
  static void unpack(WeightType type, const char* words, int64_t num_bytes, int32_t zero, char* to) {
    typedef uint8_t Bytes __attribute__((vector_size(4 * kLanes)));
    const auto put = [&](IntVector bytes, char* place) {
      const Bytes numbers = bits_as<Bytes>(bytes) - static_cast<uint8_t>(zero);
      std::memcpy(place, &numbers, sizeof numbers);
    };
    for (int64_t i = 0; i < num_bytes; i += kLanes * kLaneBytes) {
      const IntVector word = load_as<IntVector>(words + i);
      if (type == WeightType::kBlocks8) {
        put(word, to + i);
        continue;
      }
      char* row = to + i / kRowBytes * 2 * kRowBytes + i % kRowBytes;
      put(word & 0x0f0f0f0f, row);
      put((word >> 4) & 0x0f0f0f0f, row + kRowBytes);
    }
    finish_writes(to);
  }

  static constexpr int64_t kTilePrefetchBytes = 4096;
  int64_t num_rows_ = 0;
};
