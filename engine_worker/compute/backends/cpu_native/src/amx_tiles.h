// Products by the tile registers of AMX. Include in linear.h.
//
// A register holds up to 16 rows of 64 bytes. Of weights one takes 16 groups of inputs of 16 outputs
// as they lie in a panel, of activations 64 bytes of inputs of up to 16 rows. Four registers are the
// sums of 32 rows and 32 outputs (0 and 1 of the first 16 rows, 2 and 3 of the others); 4 and 5 are
// activations, 6 and 7 weights.

constexpr bool kHasAmx = true;
constexpr int64_t kTileRows = 16;
constexpr int64_t kMostBlockRows = 2 * kTileRows;
// Of a panel, as many inputs as two registers hold: a step.
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
  // Of weights; activations are as these, or signed.
  enum class Numbers { kBfloat16, kUnsigned, kSigned };

  AmxTiles() = default;
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  ~AmxTiles() {
    if (num_rows_ > 0) _tile_release();
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

  // Goes on with sums that were stored.
  void resume(int64_t num_rows, const void* sums) {
    configure(num_rows);
    finish_writes(sums);
    const char* from = static_cast<const char*>(sums);
    _tile_loadd(0, from, kRowBytes);
    _tile_loadd(1, from + 64, kRowBytes);
    if (!has_second()) return;
    from += kTileRows * kRowBytes;
    _tile_loadd(2, from, kRowBytes);
    _tile_loadd(3, from + 64, kRowBytes);
  }

  // Adds the products of one run of inputs. kIsPassing: the activations are not kept in the first
  // cache, so that the weights stay there.
  template <Numbers kNumbers = Numbers::kBfloat16, bool kIsPassing = false>
  void add(const char* x, int64_t x_stride, const char* weights, int64_t stride) const {
    const char* second = x + kTileRows * x_stride;
    if (kIsPassing) {
      _tile_stream_loadd(4, x, x_stride);
      if (has_second()) _tile_stream_loadd(5, second, x_stride);
    } else {
      _tile_loadd(4, x, x_stride);
      if (has_second()) _tile_loadd(5, second, x_stride);
    }
    _tile_loadd(6, weights, stride);
    if (kNumbers == Numbers::kBfloat16) {
      _tile_dpbf16ps(0, 4, 6);
      if (has_second()) _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, weights + 64, stride);
      _tile_dpbf16ps(1, 4, 7);
      if (has_second()) _tile_dpbf16ps(3, 5, 7);
    } else if (kNumbers == Numbers::kUnsigned) {
      _tile_dpbsud(0, 4, 6);
      if (has_second()) _tile_dpbsud(2, 5, 6);
      _tile_loadd(7, weights + 64, stride);
      _tile_dpbsud(1, 4, 7);
      if (has_second()) _tile_dpbsud(3, 5, 7);
    } else {
      _tile_dpbssd(0, 4, 6);
      if (has_second()) _tile_dpbssd(2, 5, 6);
      _tile_loadd(7, weights + 64, stride);
      _tile_dpbssd(1, 4, 7);
      if (has_second()) _tile_dpbssd(3, 5, 7);
    }
  }

  // The sums, [num_rows, 32] with so many bytes from row to row.
  void store_sums(void* out, int64_t stride = kRowBytes) const {
    char* to = static_cast<char*>(out);
    _tile_stored(0, to, stride);
    _tile_stored(1, to + 64, stride);
    if (!has_second()) return;
    to += kTileRows * stride;
    _tile_stored(2, to, stride);
    _tile_stored(3, to + 64, stride);
  }

 private:
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

  int64_t num_rows_ = 0;
};
