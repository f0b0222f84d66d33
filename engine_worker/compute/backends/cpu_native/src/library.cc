// What Python calls through ctypes: versions, levels, threads and packing.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "calls.h"
#include "levels.h"
#include "thread_pool.h"

#define PENSTOCK_EXPORT extern "C" __attribute__((visibility("default")))

namespace penstock {
namespace {

// Raised with every change of a call, an attribute or a packed layout; library.py asks for it.
constexpr int32_t kInterfaceVersion = 12;

enum class PackStatus : int32_t { kOk = 0, kNotFinite = 1, kBadShape = 2 };

struct Source {
  const void* values;  // [outputs, inputs]
  bool is_bfloat16;
  int64_t outputs, inputs;

  uint16_t bits(int64_t output, int64_t input) const {
    return static_cast<const uint16_t*>(values)[output * inputs + input];
  }
  float at(int64_t output, int64_t input) const {
    if (!is_bfloat16) return static_cast<const float*>(values)[output * inputs + input];
    const uint32_t bits32 = static_cast<uint32_t>(bits(output, input)) << 16;
    float value;
    std::memcpy(&value, &bits32, 4);
    return value;
  }
};

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float from_bfloat16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

int round_to(float value, int low, int high) {
  const long rounded = std::lrintf(value);
  return rounded < low ? low : rounded > high ? high : static_cast<int>(rounded);
}

// What the value furthest from zero becomes with each candidate for a scale: about the end of the
// range that reaches further, -8, or a whole number. With these, numbers that were multiples of one
// scale before (a checkpoint in four bits) are found again. A candidate stands in each lane.
constexpr int kNumCandidates = 13;
constexpr float kInt4Ends[kNumCandidates] = {-7.4f, -7.5f, -7.6f, -7.7f, -7.8f, -7.9f, -8.0f,
                                             -8.1f, -8.2f, 7.0f,  6.0f,  5.0f,  4.0f};
typedef float Candidates __attribute__((vector_size(16)));

// The scale of a group of int4 with the least squared error of the candidates.
float int4_scale(const float* values, int64_t count) {
  float extreme = 0.0f;
  for (int64_t i = 0; i < count; i++) {
    if (std::fabs(values[i]) > std::fabs(extreme)) extreme = values[i];
  }
  if (extreme == 0.0f) return 0.0f;
  float scales[16] = {}, errors[16];
  for (int k = 0; k < kNumCandidates; k++) {
    scales[k] = from_bfloat16(to_bfloat16(extreme / kInt4Ends[k]));
  }
  Candidates scale_vectors[4], error_vectors[4] = {};
  std::memcpy(scale_vectors, scales, sizeof scales);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  const Candidates low = Candidates{} - 8.0f, high = Candidates{} + 7.0f;
  for (int64_t i = 0; i < count; i++) {
    for (int v = 0; v < 4; v++) {
      Candidates whole = values[i] / scale_vectors[v];
      whole = whole < low ? low : whole;
      whole = whole > high ? high : whole;
      const Candidates miss = ((whole + magic) - magic) * scale_vectors[v] - values[i];
      error_vectors[v] += miss * miss;
    }
  }
  std::memcpy(errors, error_vectors, sizeof errors);
  float best = 0.0f, least = INFINITY;
  for (int k = 0; k < kNumCandidates; k++) {
    if (scales[k] != 0.0f && errors[k] < least) {
      least = errors[k];
      best = scales[k];
    }
  }
  return best;
}

int64_t num_panels_of(int64_t outputs, bool is_gate_up) {
  return is_gate_up ? divide_up(outputs / 2, kPanelOutputs / 2) : divide_up(outputs, kPanelOutputs);
}

// The output in a lane; -1 behind the last one.
int64_t output_of(int64_t outputs, bool is_gate_up, int64_t panel, int64_t lane) {
  const int64_t half = kPanelOutputs / 2;
  if (!is_gate_up) {
    const int64_t output = panel * kPanelOutputs + lane;
    return output < outputs ? output : -1;
  }
  const int64_t inner = outputs / 2, output = panel * half + lane % half;
  return output >= inner ? -1 : lane < half ? output : inner + output;
}

class Packer {
 public:
  Packer(const Source& source, WeightType type, bool is_gate_up, int64_t group_size, char* to)
      : source_(source), type_(type), is_gate_up_(is_gate_up), group_size_(group_size), to_(to) {}

  int64_t num_panels() const {
    return num_panels_of(source_.outputs, is_gate_up_);
  }

  void pack_panel(int64_t panel) {
    const int64_t size = panel_bytes(type_, source_.inputs, group_size_);
    char* to = to_ + panel * size;
    std::memset(to, 0, static_cast<size_t>(size));
    for (int64_t lane = 0; lane < kPanelOutputs; lane++) {
      const int64_t output = output_of(source_.outputs, is_gate_up_, panel, lane);
      if (output < 0) continue;
      switch (type_) {
        case WeightType::kFloat32: pack_float32(output, to + lane * kLaneBytes); break;
        case WeightType::kBfloat16: pack_bfloat16(output, to + lane * kLaneBytes); break;
        case WeightType::kInt8: pack_int8(output, to, lane); break;
        case WeightType::kInt4: pack_int4(output, to, lane); break;
        case WeightType::kBlocks8:
        case WeightType::kBlocks4:
        case WeightType::kBlocksFp4:
        case WeightType::kBlocksIq4:
        case WeightType::kBlocks6: break;  // never made of floats
      }
    }
  }

  bool is_finite() const { return is_finite_.load(); }

 private:
  void check(float value) {
    if (!std::isfinite(value)) is_finite_.store(false);
  }

  void pack_float32(int64_t output, char* to) {
    for (int64_t i = 0; i < source_.inputs; i++) {
      const float value = source_.at(output, i);
      check(value);
      std::memcpy(to + i * kRowBytes, &value, 4);
    }
  }

  void pack_bfloat16(int64_t output, char* to) {
    for (int64_t i = 0; i < source_.inputs; i++) {
      const uint16_t bits = source_.is_bfloat16 ? source_.bits(output, i)
                                                : to_bfloat16(source_.at(output, i));
      check(from_bfloat16(bits));
      std::memcpy(to + i / 2 * kRowBytes + i % 2 * 2, &bits, 2);
    }
  }

  void pack_int8(int64_t output, char* panel, int64_t lane) {
    const int64_t inputs = source_.inputs, padded = padded_inputs(type_, inputs, 0);
    float largest = 0.0f;
    for (int64_t i = 0; i < inputs; i++) {
      check(source_.at(output, i));
      largest = std::fmax(largest, std::fabs(source_.at(output, i)));
    }
    const float scale = largest / 127.0f;
    std::memcpy(panel + padded / 4 * kRowBytes + lane * 4, &scale, 4);
    if (!std::isfinite(scale)) return;
    for (int64_t i = 0; i < padded; i++) {
      const float value = i < inputs && scale > 0.0f ? source_.at(output, i) / scale : 0.0f;
      panel[i / 4 * kRowBytes + lane * kLaneBytes + i % 4] =
          static_cast<char>(static_cast<uint8_t>(round_to(value, -127, 127) + 128));
    }
  }

  void pack_int4(int64_t output, char* panel, int64_t lane) {
    const int64_t words = group_size_ / 8 * kRowBytes;
    float values[128];
    for (int64_t first = 0; first < source_.inputs; first += group_size_) {
      for (int64_t i = 0; i < group_size_; i++) {
        values[i] = first + i < source_.inputs ? source_.at(output, first + i) : 0.0f;
        check(values[i]);
      }
      if (!is_finite_.load()) return;
      const float scale = int4_scale(values, group_size_);
      char* group = panel + first / group_size_ * (words + kPanelOutputs * 2);
      const uint16_t bits = to_bfloat16(scale);
      std::memcpy(group + words + lane * 2, &bits, 2);
      for (int64_t i = 0; i < group_size_; i++) {
        const int value = scale != 0.0f ? round_to(values[i] / scale, -8, 7) : 0;
        char* byte = group + i / 8 * kRowBytes + lane * kLaneBytes + i % 4;
        const int shift = i % 8 < 4 ? 0 : 4;
        *byte = static_cast<char>(static_cast<uint8_t>(*byte) | ((value + 8) << shift));
      }
    }
  }

  const Source source_;
  const WeightType type_;
  const bool is_gate_up_;
  const int64_t group_size_;
  char* const to_;
  std::atomic<bool> is_finite_{true};
};

// Numbers in blocks as a checkpoint holds them, row by row.
struct BlockSource {
  const uint8_t* integers;      // [outputs, inputs], as they are stored in the panel
  const int8_t *scales, *minima;  // [outputs, inputs / group], null without them
  const char *floats, *minima_floats;  // [outputs, inputs / block] in the layout's type

  // Bits `first` and more of four bytes, into four others.
  static void add_bits(char* to, const uint8_t* from, int first, int mask, int shift) {
    for (int64_t k = 0; k < 4; k++) {
      const int bits = ((from[k] >> first) & mask) << shift;
      to[k] = static_cast<char>(static_cast<uint8_t>(to[k]) | bits);
    }
  }

  void pack_lane(const Matrix& matrix, int64_t output, int64_t lane, char* panel) const {
    const BlockLayout& layout = matrix.blocks;
    const int64_t size = layout.block_size, num_blocks = matrix.inputs / size;
    const int64_t num_groups = size / matrix.group_size, float_bytes = layout.scale_bytes();
    const bool is_six = matrix.type == WeightType::kBlocks6;
    for (int64_t block = 0; block < num_blocks; block++) {
      const uint8_t* from = integers + output * matrix.inputs + block * size;
      char* to = panel + block * layout.num_bytes(matrix.type, matrix.group_size);
      for (int64_t i = 0; i < size; i += 4, from += 4) {
        if (matrix.type == WeightType::kBlocks8) {
          std::memcpy(to + i / 4 * kRowBytes + lane * kLaneBytes, from, 4);
          continue;
        }
        const int64_t row = is_six ? i / 16 * 3 + i / 8 % 2 : i / 8;
        add_bits(to + row * kRowBytes + lane * kLaneBytes, from, 0, 15, i % 8 == 0 ? 0 : 4);
        if (!is_six) continue;
        char* top = to + (i / 16 * 3 + 2) * kRowBytes + lane * kLaneBytes;
        add_bits(top, from, 4, 3, static_cast<int>(i % 16 / 2));
      }
      to += layout.words_bytes(matrix.type);
      const int64_t first = (output * num_blocks + block) * num_groups;
      for (const int8_t* bytes : {scales, minima}) {
        if (bytes == nullptr) continue;
        for (int64_t group = 0; group < num_groups; group++) {
          to[group * kPanelOutputs + lane] = static_cast<char>(bytes[first + group]);
        }
        to += num_groups * kPanelOutputs;
      }
      for (const char* values : {floats, minima_floats}) {
        if (values == nullptr) continue;
        std::memcpy(to + lane * float_bytes, values + (output * num_blocks + block) * float_bytes,
                    static_cast<size_t>(float_bytes));
        to += kPanelOutputs * float_bytes;
      }
    }
  }
};

}  // namespace
}  // namespace penstock

PENSTOCK_EXPORT int32_t penstock_interface_version() { return penstock::kInterfaceVersion; }

// Names of all compiled levels with a blank between, the best first.
PENSTOCK_EXPORT const char* penstock_compiled_levels() {
  static const std::string* names = [] {
    auto* text = new std::string;
    for (auto level = penstock::compiled_levels(); *level != nullptr; level++) {
      if (!text->empty()) *text += ' ';
      *text += (*level)->name;
    }
    return text;
  }();
  return names->c_str();
}

PENSTOCK_EXPORT const char* penstock_level() { return penstock::current_level().name; }

// 1 if the level is there and this processor has it; calls that run are not changed.
PENSTOCK_EXPORT int32_t penstock_choose_level(const char* name) {
  return penstock::choose_level(name) ? 1 : 0;
}

PENSTOCK_EXPORT int32_t penstock_start_threads(int32_t num_threads) {
  return penstock::ThreadPool::instance().start(num_threads);
}

// Packs [outputs, inputs] float32 or bfloat16 into num_panels * panel_bytes. Returns a PackStatus.
PENSTOCK_EXPORT int32_t penstock_pack(const void* values, int32_t is_bfloat16, int64_t outputs,
                                      int64_t inputs, int32_t weight_type, int32_t is_gate_up,
                                      int64_t group_size, void* to, int64_t to_bytes) {
  using namespace penstock;
  if (outputs <= 0 || inputs <= 0 || weight_type < 0 || weight_type > 3 ||
      (is_gate_up != 0 && outputs % 2 != 0)) {
    return static_cast<int32_t>(PackStatus::kBadShape);
  }
  const auto type = static_cast<WeightType>(weight_type);
  if (type == WeightType::kInt4 && group_size != 32 && group_size != 64 && group_size != 128) {
    return static_cast<int32_t>(PackStatus::kBadShape);
  }
  if (is_in_blocks(type)) return static_cast<int32_t>(PackStatus::kBadShape);
  Packer packer({values, is_bfloat16 != 0, outputs, inputs}, type, is_gate_up != 0, group_size,
                static_cast<char*>(to));
  if (to_bytes != packer.num_panels() * panel_bytes(type, inputs, group_size)) {
    return static_cast<int32_t>(PackStatus::kBadShape);
  }
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  pool.run(lock, 1, [&](Team& team) {
    team.each(packer.num_panels(), [&](int64_t panel) { packer.pack_panel(panel); });
  });
  return static_cast<int32_t>(packer.is_finite() ? PackStatus::kOk : PackStatus::kNotFinite);
}

// Packs numbers in blocks, see BlockSource; `inputs` is a multiple of the block. Returns a
// PackStatus.
PENSTOCK_EXPORT int32_t penstock_pack_blocks(const void* integers, const void* scales,
                                             const void* minima, const void* floats,
                                             const void* minima_floats, int64_t outputs,
                                             int64_t inputs, int32_t weight_type,
                                             int32_t is_gate_up,
                                             int64_t group_size, int64_t block_size,
                                             int32_t scale_type, void* to, int64_t to_bytes) {
  using namespace penstock;
  const auto bad_shape = static_cast<int32_t>(PackStatus::kBadShape);
  if (outputs <= 0 || inputs <= 0 || group_size <= 0 || group_size % 16 != 0 || block_size <= 0 ||
      block_size % group_size != 0 || inputs % block_size != 0 || scale_type < 0 ||
      scale_type > 3 || weight_type < 4 || weight_type > 8 || (is_gate_up != 0 && outputs % 2 != 0) ||
      (minima == nullptr) != (minima_floats == nullptr)) {
    return bad_shape;
  }
  const BlockLayout layout{block_size, static_cast<ScaleType>(scale_type), scales != nullptr,
                           minima != nullptr};
  const auto type = static_cast<WeightType>(weight_type);
  if (type == WeightType::kBlocksFp4 && (scales != nullptr || minima != nullptr)) return bad_shape;
  if (type == WeightType::kBlocksIq4 && minima != nullptr) return bad_shape;
  const Matrix matrix{nullptr, outputs, inputs, type, group_size, layout};
  const int64_t num_panels = num_panels_of(outputs, is_gate_up != 0), size = matrix.panel_stride();
  if (to_bytes != num_panels * size) return bad_shape;
  const BlockSource source{static_cast<const uint8_t*>(integers),
                           static_cast<const int8_t*>(scales), static_cast<const int8_t*>(minima),
                           static_cast<const char*>(floats),
                           static_cast<const char*>(minima_floats)};
  ThreadPool& pool = ThreadPool::instance();
  const auto lock = pool.begin_call();
  pool.run(lock, 1, [&](Team& team) {
    team.each(num_panels, [&](int64_t panel) {
      char* place = static_cast<char*>(to) + panel * size;
      std::memset(place, 0, static_cast<size_t>(size));
      for (int64_t lane = 0; lane < kPanelOutputs; lane++) {
        const int64_t output = output_of(outputs, is_gate_up != 0, panel, lane);
        if (output >= 0) source.pack_lane(matrix, output, lane, place);
      }
    });
  });
  return static_cast<int32_t>(PackStatus::kOk);
}
