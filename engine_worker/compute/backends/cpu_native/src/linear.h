// Products of packed activations and packed matrices. Include inside the level's namespace.

// Packed rows stand side by side with so many bytes of each: a line of the caches is of one row, so
// threads that pack neighbours don't take it from each other. Integers in blocks have a group
// instead.
constexpr int64_t kRunBytes = 64;

// What a tile of kRows rows and one panel is computed from.
struct TileInput {
  const void* x;            // The tile's rows, packed.
  const char* panel;
  int64_t inputs;           // Padded, see padded_inputs.
  int64_t group_size;       // Of blocks.
  const float* scales;      // All but floats: one for each row,
  const int32_t* sums;      // and the sum of the inputs of each row and group.
  BlockLayout blocks;
  int64_t prefetch_bytes;   // Weights so far ahead are asked for; not in blocks.
};

// Writes [kRows, 32] float32.
using Tile = void (*)(const TileInput&, float* out);

// Adds the products of a tile's runs and of 2 * kLanes outputs from `first` on.
template <class Product, int kRows>
inline void multiply_runs(const TileInput& in, int64_t first,
                          typename Product::Sum (&sums)[kRows][2]) {
  using Input = typename Product::Input;
  const char* weights = in.panel + first * kLaneBytes;
  multiply_groups<Product, kRows, 2, true, kRunBytes / sizeof(Input)>(
      static_cast<const Input*>(in.x), 0, 0, weights, kRowBytes, in.inputs / Product::kInputs,
      nullptr, weights + in.prefetch_bytes, sums);
}

template <class Product, int kRows>
void float_tile(const TileInput& in, float* out) {
  constexpr int kStep = 2 * kLanes;
  for (int64_t first = 0; first < kPanelOutputs; first += kStep) {
    typename Product::Sum sums[kRows][2] = {};
    multiply_runs<Product, kRows>(in, first, sums);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; row++) {
      store(out + row * kPanelOutputs + first, bits_as<Vector>(sums[row][0]));
      store(out + row * kPanelOutputs + first + kLanes, bits_as<Vector>(sums[row][1]));
    }
  }
}

template <int kRows>
void int8_tile(const TileInput& in, float* out) {
  using Product = IntegerProduct<false>;
  constexpr int kStep = 2 * kLanes;
  const char* weight_scales = in.panel + in.inputs / 4 * kRowBytes;
  for (int64_t first = 0; first < kPanelOutputs; first += kStep) {
    IntVector sums[kRows][2] = {};
    multiply_runs<Product, kRows>(in, first, sums);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; row++) {
      for (int v = 0; v < 2; v++) {
        // Weights are stored as w + 128.
        IntVector sum = sums[row][v] - in.sums[row] * 128;
        Vector scale = load_as<Vector>(weight_scales + (first + v * kLanes) * 4);
        store(out + row * kPanelOutputs + first + v * kLanes,
              __builtin_convertvector(sum, Vector) * (in.scales[row] * scale));
      }
    }
  }
}

#include "block_tile.h"

constexpr int kMostRows = 14;

template <class Product, int... kRows>
constexpr std::array<Tile, kMostRows + 1> float_tiles(std::integer_sequence<int, kRows...>) {
  return {nullptr, float_tile<Product, kRows + 1>...};
}
template <int... kRows>
constexpr std::array<Tile, kMostRows + 1> int8_tiles(std::integer_sequence<int, kRows...>) {
  return {nullptr, int8_tile<kRows + 1>...};
}

struct TileTable {
  int max_rows;
  std::array<Tile, kMostRows + 1> tiles;  // by number of rows
};

// Blocks keep twice as many sums.
constexpr int kMaxBlockTileRows = (IntegerProduct<true>::kMaxRows + 1) / 2;

template <WeightType kType, bool kHasScales, int... kRows>
constexpr TileTable block_tiles(std::integer_sequence<int, kRows...>) {
  return {kMaxBlockTileRows, {nullptr, block_tile<kRows + 1, kType, kHasScales>...}};
}

template <WeightType kType>
const TileTable& block_tile_table(const BlockLayout& blocks) {
  using Rows = std::make_integer_sequence<int, kMaxBlockTileRows>;
  static constexpr TileTable kPlain = block_tiles<kType, false>(Rows());
  if constexpr (kType != WeightType::kBlocksFp4) {
    static constexpr TileTable kScales = block_tiles<kType, true>(Rows());
    if (blocks.has_scales) return kScales;
  }
  return kPlain;
}

inline const TileTable& tile_table(const Matrix& matrix) {
  static constexpr TileTable kFloat32{
      Float32Product::kMaxRows,
      float_tiles<Float32Product>(std::make_integer_sequence<int, Float32Product::kMaxRows>())};
  static constexpr TileTable kBfloat16{
      Bfloat16Product::kMaxRows,
      float_tiles<Bfloat16Product>(std::make_integer_sequence<int, Bfloat16Product::kMaxRows>())};
  static constexpr TileTable kInt8{
      IntegerProduct<false>::kMaxRows,
      int8_tiles(std::make_integer_sequence<int, IntegerProduct<false>::kMaxRows>())};
  switch (matrix.type) {
    case WeightType::kFloat32: return kFloat32;
    case WeightType::kBfloat16: return kBfloat16;
    case WeightType::kInt8: return kInt8;
    case WeightType::kBlocks8: return block_tile_table<WeightType::kBlocks8>(matrix.blocks);
    case WeightType::kBlocks4: return block_tile_table<WeightType::kBlocks4>(matrix.blocks);
    case WeightType::kBlocks6: return block_tile_table<WeightType::kBlocks6>(matrix.blocks);
    case WeightType::kBlocksIq4: return block_tile_table<WeightType::kBlocksIq4>(matrix.blocks);
    default: return block_tile_table<WeightType::kBlocksFp4>(matrix.blocks);
  }
}

#if defined(__AMX_TILE__)
#include "amx_tiles.h"
#else
class AmxTiles;
constexpr bool kHasAmx = false;
constexpr int64_t kMostBlockRows = kMostRows;
inline bool takes_amx(const Matrix&, int64_t) { return false; }
#endif

// ---- integers -------------------------------------------------------------------------------------

// One scale for some numbers: the largest becomes 127.
struct IntegerScale {
  float scale, inverse;

  IntegerScale(const float* values, int64_t count) {
    Vector largest{}, probe{};
    for (int64_t i = 0; i < count; i += kLanes) {
      Vector x = load_part(values + i, count - i);
      largest = maximum(absolute(x), largest);
      probe += x * 0.0f;
    }
    const float limit = maximum_of(largest);
    // Of a limit that is small enough, 127 / limit is infinite: such numbers are all zeros.
    inverse = limit > 1e-30f ? 127.0f / limit : 0.0f;
    // With NaN or infinity among them the scale is no number, and so nothing is.
    scale = limit / 127.0f + sum_of(probe);
  }

  IntVector integers(Vector x) const {
    const float magic = 12582912.0f;
    Vector shifted = x * inverse + magic;
    return bits_as<IntVector>(shifted) - bits_as<IntVector>(splat(magic));
  }
};

// ---- activations ----------------------------------------------------------------------------------

// Memory of packed rows.
struct ActivationMemory {
  Memory packed, scales, sums;

  bool reserve(int64_t num_rows, const Matrix& matrix) {
    // Four bytes an input hold float32 and, on levels without bfloat16 products, its pairs.
    return packed.reserve(num_rows * round_up(matrix.padded() * 4, kRunBytes)) &&
           scales.reserve(num_rows * 4) &&
           sums.reserve(num_rows * matrix.num_groups() * 4);
  }
};

// Rows in the type that a matrix is multiplied in. They stand in blocks of nearly equal size, at
// most a tile; in a block the run is the outer index and the row the inner one. For AMX blocks are
// as large as they can be. Rows for integers in blocks have a group of inputs instead of a run,
// unless they are for AMX. Each thread has its own view of the one memory.
class Activations {
 public:
  // Behind `first` rows of others.
  Activations(const ActivationMemory& memory, int64_t num_rows, const Matrix& matrix,
              int64_t first = 0)
      : type_(matrix.type),
        num_rows_(num_rows),
        num_inputs_(matrix.inputs),
        padded_(matrix.padded()),
        group_size_(matrix.group_size),
        blocks_(matrix.blocks),
        num_groups_(matrix.num_groups()),
        row_bytes_(round_up(padded_ * input_bytes(), kRunBytes)),
        is_for_amx_(takes_amx(matrix, num_rows)),
        has_runs_(is_for_amx_ || !is_in_blocks(matrix.type)),
        packed_(memory.packed.at<char>() + first * row_bytes_),
        scales_(memory.scales.at<float>() + first),
        sums_(memory.sums.at<int32_t>() + first * num_groups_),
        num_blocks_(divide_up(num_rows, is_for_amx_ ? kMostBlockRows : tile_table(matrix).max_rows)),
        block_rows_(is_for_amx_       ? std::min(num_rows, kMostBlockRows)
                    : num_blocks_ > 0 ? divide_up(num_rows, num_blocks_)
                                      : 0) {}

  bool is_for_amx() const { return is_for_amx_; }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t first_row(int64_t block) const { return block * block_rows_; }
  int64_t rows_of(int64_t block) const {
    int64_t left = num_rows_ - block * block_rows_;
    return left < block_rows_ ? left : block_rows_;
  }

  // Packs `values`, as many as the matrix has inputs.
  void put_row(int64_t row, const float* values) const {
    switch (type_) {
      case WeightType::kFloat32: return put_floats<Float32Product>(row, values, 0, num_inputs_);
      case WeightType::kBfloat16: return put_part(row, values, 0, num_inputs_);
      default: return put_integers(row, values);
    }
  }

  // Packs `count` values from input `first` on, a multiple of 16; bfloat16 only.
  void put_part(int64_t row, const float* values, int64_t first, int64_t count) const {
    put_floats<Bfloat16Product>(row, values, first, count);
  }

  // Inputs of a block from a step on; each takes a run of every row.
  const char* at_step(int64_t block, int64_t step) const {
    return packed_ + first_row(block) * row_bytes_ + step * rows_of(block) * kRunBytes;
  }
  // Where a row has the packed bytes from `byte` on.
  char* byte_of_run(int64_t row, int64_t byte) const { return runs_of(row).at(byte); }
  int64_t row_bytes() const { return row_bytes_; }
  float scale_at(int64_t row) const { return scales_[row]; }
  int32_t sum_at(int64_t row, int64_t group) const { return sums_[row * num_groups_ + group]; }
  int64_t input_bytes() const {
    switch (type_) {
      case WeightType::kFloat32: return sizeof(Float32Product::Input);
      case WeightType::kBfloat16: return sizeof(Bfloat16Product::Input) / 2;
      default: return 1;
    }
  }

  TileInput tile(int64_t block, const char* panel, int64_t prefetch_bytes) const {
    int64_t row = first_row(block);
    return {packed_ + row * row_bytes_,
            panel,
            padded_,
            group_size_,
            scales_ + row,
            sums_ + row * num_groups_,
            blocks_,
            prefetch_bytes};
  }

 private:
  // Of a row.
  struct Runs {
    char* first;
    int64_t stride;

    char* at(int64_t byte) const { return first + byte / kRunBytes * stride + byte % kRunBytes; }
  };

  Runs runs_of(int64_t row) const {
    const int64_t block = static_cast<uint32_t>(row) / static_cast<uint32_t>(block_rows_);
    return {packed_ + first_row(block) * row_bytes_ + (row - first_row(block)) * kRunBytes,
            rows_of(block) * kRunBytes};
  }

  // The last values are followed by zeros up to a whole run.
  template <class Product>
  void put_floats(int64_t row, const float* values, int64_t first, int64_t count) const {
    using Input = typename Product::Input;
    constexpr int64_t kBytes = sizeof(Input) / Product::kInputs, kRunInputs = kRunBytes / kBytes;
    const Runs to = runs_of(row);
    const int64_t end = first + count;
    const int64_t filled = end == num_inputs_ ? round_up(end, kRunInputs) - first : count;
    for (int64_t i = 0; i < filled; i += kLanes) {
      const Vector x = i < count ? load_part(values + i, count - i) : Vector{};
      Product::put_side_by_side(reinterpret_cast<Input*>(to.at((first + i) * kBytes)), x);
    }
  }

  // One scale for the whole row.
  void put_integers(int64_t row, const float* values) const {
    const IntegerScale scale(values, num_inputs_);
    scales_[row] = scale.scale;
    const int64_t block = row / block_rows_, stride = rows_of(block);
    uint32_t* to = reinterpret_cast<uint32_t*>(packed_ + first_row(block) * row_bytes_) +
                   (row - first_row(block));
    const Runs runs = runs_of(row);
    int32_t* sums = sums_ + row * num_groups_;
    const int64_t whole = has_runs_ ? row_bytes_ : padded_;
    const int64_t group_inputs = num_groups_ == 1 ? whole : group_size_;
    for (int64_t group = 0; group < num_groups_; group++) {
      IntVector sum{};
      const int64_t end = (group + 1) * group_inputs;
      for (int64_t i = group * group_inputs; i < end; i += kLanes) {
        Vector x = i < num_inputs_ ? load_part(values + i, num_inputs_ - i) : Vector{};
        IntVector rounded = scale.integers(x);
        sum += rounded;
        const ByteVector bytes = __builtin_convertvector(rounded, ByteVector);
        if (has_runs_) {
          std::memcpy(runs.at(i), &bytes, sizeof bytes);
          continue;
        }
        uint32_t words[kLanes / 4];
        std::memcpy(words, &bytes, sizeof bytes);
        const int64_t num_words = std::min<int64_t>(kLanes, end - i) / 4;
        for (int64_t k = 0; k < num_words; k++) to[(i / 4 + k) * stride] = words[k];
      }
      sums[group] = sum_of(sum);
    }
  }

  WeightType type_;
  int64_t num_rows_, num_inputs_, padded_, group_size_;
  BlockLayout blocks_;
  int64_t num_groups_, row_bytes_;
  bool is_for_amx_, has_runs_;
  char* packed_;
  float* scales_;
  int32_t* sums_;
  int64_t num_blocks_, block_rows_;
};

// ---- products --------------------------------------------------------------------------------------

// A range of panels, and one of blocks of rows.
struct Part {
  int64_t first_panel, end_panel, first_block, end_block;
};

#if defined(__AMX_TILE__)
#include "amx_products.h"
#endif

// How far ahead the first rows that meet a panel ask for its weights; the next ones find them in the
// second cache. A few rows wait for memory whatever is asked for: what is asked for too far ahead is
// another thread's panel. More rows compute for so long that memory must be asked early.
inline int64_t prefetch_bytes(int64_t num_rows) { return num_rows > 4 ? 8192 : kPrefetchBytes; }

// Calls finish(first_row, num_rows, panel, const float* [num_rows, 32]) for the rows and panels of a
// part.
template <class Finish>
void multiply_part(const Activations& x, const Matrix& matrix, const Part& part, Finish&& finish) {
#if defined(__AMX_TILE__)
  if (x.is_for_amx()) {
    AmxProduct product(x, matrix, finish);
    const int64_t most_blocks = blocks_at_once(x);
    for (int64_t block = part.first_block; block < part.end_block; block += most_blocks) {
      const int64_t end_block = std::min(part.end_block, block + most_blocks);
      const int64_t most_panels = kMostPartSums / (end_block - block);
      for (int64_t panel = part.first_panel; panel < part.end_panel; panel += most_panels) {
        product.run({panel, std::min(part.end_panel, panel + most_panels), block, end_block});
      }
    }
    return;
  }
#endif
  const TileTable& table = tile_table(matrix);
  const int64_t stride = matrix.panel_stride();
  alignas(64) float out[kMostRows * kPanelOutputs];
  for (int64_t panel = part.first_panel; panel < part.end_panel; panel++) {
    for (int64_t block = part.first_block; block < part.end_block; block++) {
      const int64_t num_rows = x.rows_of(block);
      const int64_t ahead = block == part.first_block ? prefetch_bytes(num_rows) : 0;
      table.tiles[num_rows](x.tile(block, matrix.data + panel * stride, ahead), out);
      finish(x.first_row(block), num_rows, panel, out);
    }
  }
}

// Panels that a thread takes at once: a few where there are plenty.
inline int64_t panels_at_once(int64_t num_panels, int num_threads) {
  return std::clamp<int64_t>(num_panels / (int64_t{8} * num_threads), 1, 8);
}

// Does so for all, spread over the team.
template <class Finish>
void multiply(Team& team, int num_threads, const Activations& x, const Matrix& matrix,
              Finish&& finish) {
  const int64_t num_panels = matrix.num_panels();
  const int64_t item_panels = panels_at_once(num_panels, num_threads);
  const int64_t num_columns = divide_up(num_panels, item_panels);
  // A part of the rows an item where there are few panels, or more rows than the second cache holds.
  const int64_t most_parts = divide_up(x.num_blocks(), 4);
  int64_t row_parts = std::min(divide_up(int64_t{4} * num_threads, num_columns), most_parts);
#if defined(__AMX_TILE__)
  if (x.is_for_amx()) row_parts = std::max(row_parts, divide_up(x.num_blocks(), blocks_at_once(x)));
#endif
  row_parts = std::max<int64_t>(row_parts, 1);
  // All panels for some rows, then for the next ones.
  team.each(num_columns * row_parts, [&](int64_t item) {
    const int64_t first_panel = item % num_columns * item_panels, part = item / num_columns;
    multiply_part(x, matrix,
                  {first_panel, std::min(num_panels, first_panel + item_panels),
                   x.num_blocks() * part / row_parts, x.num_blocks() * (part + 1) / row_parts},
                  finish);
  });
}
