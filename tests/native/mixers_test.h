// What recurrent layers and attention over latents call.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "call_fields.h"
#include "calls.h"
#include "driver.h"
#include "levels.h"
#include "xla_ffi_c_api.h"

extern "C" {
XLA_FFI_Error* penstock_recurrent(XLA_FFI_CallFrame*);
XLA_FFI_Error* penstock_latent(XLA_FFI_CallFrame*);
XLA_FFI_Error* penstock_by_head(XLA_FFI_CallFrame*);
}

constexpr int64_t kVersion = penstock::kConfigVersion;

// A recurrent layer over tokens of which one follows another, one begins, one is padding and three go
// on from one another. Sizes are no multiples of any vector.
class Recurrent {
 public:
  static constexpr int64_t kRows = 8, kStates = 8, kTaps = 4;
  static constexpr int64_t kHeads = 6, kGroups = 2, kGroupDim = 9, kHeadDim = 150;
  static constexpr int64_t kChannels = kHeads * kHeadDim + 2 * kGroups * kGroupDim;

  explicit Recurrent(int64_t kind) : kind_(kind) {
    Random random;
    const auto add = [&](XLA_FFI_DataType type, std::vector<int64_t> shape) {
      arrays_.emplace_back(type, std::move(shape)).fill(random);
    };
    const auto number = XLA_FFI_DataType_F32, index = XLA_FFI_DataType_S32;
    add(number, {kRows, kChannels});
    add(index, {kRows});
    add(index, {kRows});
    const int32_t before[] = {3, 5, -1, 77, 0, -2, -2, 4};
    const int32_t after[] = {5, 6, 1, -1, -2, 7, 2, 0};
    std::memcpy(arrays_[1].at<char>(), before, sizeof before);
    std::memcpy(arrays_[2].at<char>(), after, sizeof after);
    add(number, {kChannels, kTaps});
    add(number, {kChannels});
    add(number, {kStates, kTaps - 1, kChannels});
    if (kind > 0) {
      if (kind == 1) add(number, {kStates, kHeads, kGroupDim, kHeadDim});
      if (kind == 2) add(number, {kStates, kHeads, kHeadDim, kGroupDim});
      for (int i = 0; i < 2; i++) add(number, {kRows, kHeads});
    }
    if (kind == 2) add(number, {kHeads});
  }

  Array result() const {
    if (kind_ == 0) return Array(XLA_FFI_DataType_F32, {kRows, kChannels});
    return Array(XLA_FFI_DataType_F32, {kRows, kHeads, kHeadDim});
  }
  // As tokens each of which goes on from a state, and two of which leave none.
  void end_chunks() {
    for (int i : {5, 6}) arrays_[1].at<int32_t>()[i] = 1;
    arrays_[2].at<int32_t>()[6] = -2;
  }
  // Of the states as they are by now.
  Call call(Array& y) {
    Call call;
    for (auto& array : arrays_) call.arguments.push_back(array.buffer());
    call.results = {y.buffer(), arrays_[5].buffer()};
    if (kind_ > 0) call.results.push_back(arrays_[6].buffer());
    call.config = {kVersion, kind_, kGroups};
    call.scalars = {1e-6f};
    return call;
  }

 private:
  const int64_t kind_;
  std::deque<Array> arrays_;
};

inline void test_a_state_that_is_kept_nowhere() {
  for (int64_t kind : {1, 2}) {
    Recurrent problem(kind);
    problem.end_chunks();
    Array y = problem.result();
    const std::string error = problem.call(y).run(penstock_recurrent);
    expect(error.empty(), error);
  }
}

inline void test_recurrent() {
  for (int64_t kind = 0; kind < 3; kind++) {
    penstock::choose_level("generic");
    Recurrent plain(kind);
    Array expected = plain.result();
    std::string error = plain.call(expected).run(penstock_recurrent);
    expect(error.empty(), error);
    for (auto level = penstock::compiled_levels(); *level != nullptr; level++) {
      if (!penstock::choose_level((*level)->name)) continue;
      Recurrent problem(kind);
      Array found = problem.result();
      const Call good = problem.call(found);
      for (size_t i = 0; i < good.arguments.size(); i++) {
        Call call = good;
        call.arguments[i].data = static_cast<char*>(good.arguments[i].data) + 2;
        expect(call.run(penstock_recurrent).find("is not aligned to") != std::string::npos,
               "alignment of argument " + std::to_string(i) + " of a recurrent layer");
      }
      for (size_t i = 1; i < good.results.size(); i++) {
        Call call = good;
        call.results[i].data = found.at<char>();
        expect(call.run(penstock_recurrent).find("is not updated in place") != std::string::npos,
               "states of a recurrent layer that are copied");
      }
      for (size_t field = 0; field < good.config.size(); field++) {
        for (int64_t wrong : {INT64_MIN, int64_t{-2}, int64_t{1} << 40, INT64_MAX}) {
          Call call = good;
          call.config[field] = wrong;
          expect(!call.run(penstock_recurrent).empty(), "a wrong field of a recurrent layer");
        }
      }
      Call call = good;
      error = call.run(penstock_recurrent);
      expect(error.empty(), error);
      const double miss = distance(found, expected);
      expect(miss < 1e-5, std::string((*level)->name) + ": recurrent layers of kind " +
                              std::to_string(kind) + " are " + std::to_string(miss) + " away");
    }
  }
}

// Attention over latents: a chunk, a token so far behind that threads share its spans, padding.
class Latents {
 public:
  static constexpr int64_t kTokens = 19, kHeads = 5, kLatent = 34, kRotated = 6;
  static constexpr int64_t kBlockSize = 24, kTableWidth = 46, kNumBlocks = 93;

  explicit Latents(bool is_half) : is_half_(is_half) {
    Random random;
    const auto number = XLA_FFI_DataType_F32, index = XLA_FFI_DataType_S32;
    const auto add = [&](XLA_FFI_DataType type, std::vector<int64_t> shape) -> Array& {
      return arrays_.emplace_back(type, std::move(shape));
    };
    add(number, {kTokens, kHeads, kLatent + kRotated}).fill(random);
    add(number, {kTokens, kRotated}).fill(random);
    add(number, {kTokens, kLatent}).fill(random);
    auto& positions = add(index, {kTokens});
    auto& rows = add(index, {kTokens});
    for (int i = 0; i < kTokens; i++) {
      positions.at<int32_t>()[i] = i < 15 ? 37 + i : i == 17 ? 1103 : -1;
      rows.at<int32_t>()[i] = i < 15 ? 0 : 1;
    }
    auto& tables = add(index, {2, kTableWidth});
    for (int i = 0; i < 2 * kTableWidth; i++) tables.at<int32_t>()[i] = i;
    const int64_t lane = is_half ? 2 : 1;
    for (int64_t width : {kRotated, kLatent}) {
      add(is_half ? XLA_FFI_DataType_U16 : number, {kNumBlocks, 1, width / lane, kBlockSize, lane});
    }
  }

  Array result() const { return Array(XLA_FFI_DataType_F32, {kTokens, kHeads, kLatent}); }
  Call call(Array& y) {
    Call call;
    for (auto& array : arrays_) call.arguments.push_back(array.buffer());
    call.results = {y.buffer(), arrays_[6].buffer(), arrays_[7].buffer()};
    call.config = {kVersion, is_half_ ? 1 : 0};
    call.scalars = {0.3f};
    return call;
  }

 private:
  const bool is_half_;
  std::deque<Array> arrays_;
};

inline void test_latents() {
  for (bool is_half : {false, true}) {
    penstock::choose_level("generic");
    Latents plain(is_half);
    Array expected = plain.result();
    std::string error = plain.call(expected).run(penstock_latent);
    expect(error.empty(), error);
    for (auto level = penstock::compiled_levels(); *level != nullptr; level++) {
      if (!penstock::choose_level((*level)->name)) continue;
      Latents problem(is_half);
      Array found = problem.result();
      const Call good = problem.call(found);
      for (size_t i = 0; i < good.arguments.size(); i++) {
        Call call = good;
        call.arguments[i].data = static_cast<char*>(good.arguments[i].data) + 2;
        expect(call.run(penstock_latent).find("is not aligned to") != std::string::npos,
               "alignment of argument " + std::to_string(i) + " of latents");
      }
      for (size_t i = 1; i < good.results.size(); i++) {
        Call call = good;
        call.results[i].data = found.at<char>();
        expect(call.run(penstock_latent).find("is not updated in place") != std::string::npos,
               "latents that are copied");
      }
      for (int64_t wrong : {INT64_MIN, int64_t{-1}, int64_t{2}, INT64_MAX}) {
        Call call = good;
        call.config[1] = wrong;
        expect(!call.run(penstock_latent).empty(), "a wrong type of latents");
      }
      Call call = good;
      error = call.run(penstock_latent);
      expect(error.empty(), error);
      const double miss = distance(found, expected);
      expect(miss < 2e-3, std::string((*level)->name) + ": latents are " + std::to_string(miss) +
                              " away");
    }
  }
}

// Of each head the second of two matrices.
inline void test_products_by_head() {
  constexpr int64_t kRows = 17, kHeads = 3, kInputs = 70, kOutputs = 40;
  Random random;
  for (int type : {0, 1}) {
    const MatrixForm form(type);
    const int64_t matrix = 2 * form.panel_bytes(kInputs), offset = 3 * penstock::kRowBytes;
    Array x(XLA_FFI_DataType_F32, {kRows, kHeads, kInputs}), wanted(XLA_FFI_DataType_S32, {kRows});
    Array matrices(XLA_FFI_DataType_U8, {kHeads, offset + matrix});
    Array expected(XLA_FFI_DataType_F32, {kRows, kHeads, kOutputs});
    x.fill(random);
    wanted.at<int32_t>()[kRows - 2] = 1;
    for (int64_t head = 0; head < kHeads; head++) {
      form.pack(random, kOutputs, kInputs, false,
                matrices.at<char>() + head * (offset + matrix) + offset, matrix);
    }
    Call good;
    good.arguments = {x.buffer(), wanted.buffer(), matrices.buffer()};
    good.config = form.fields();
    good.config.insert(good.config.begin(), kVersion);
    good.config.push_back(offset);
    for (const char* name : {"generic", ""}) {
      for (auto level = penstock::compiled_levels(); *level != nullptr; level++) {
        const bool is_plain = std::string((*level)->name) == "generic";
        if (is_plain != (*name != 0) || !penstock::choose_level((*level)->name)) continue;
        Array found(XLA_FFI_DataType_F32, {kRows, kHeads, kOutputs});
        Call call = good;
        call.results = {is_plain ? expected.buffer() : found.buffer()};
        const std::string error = call.run(penstock_by_head);
        expect(error.empty(), error);
        if (!is_plain) expect(distance(found, expected) < 2e-3, "products by head differ");
        for (int64_t wrong : {INT64_MIN, int64_t{-128}, offset + 128, INT64_MAX}) {
          Call beside = call;
          beside.config.back() = wrong;
          expect(!beside.run(penstock_by_head).empty(), "a matrix beside its head");
        }
      }
    }
  }
}
