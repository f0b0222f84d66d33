// Drives the handlers of the native kernels as XLA does, for the sanitizers: see sanitize.sh.
//
// Every buffer has exactly the bytes that it should have, so an access beside it is found. Levels
// are held to the plain one; tests/unit/engine_worker/compute/backends holds them to float64.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "call_fields.h"
#include "calls.h"
#include "driver.h"
#include "levels.h"
#include "mixers_test.h"
#include "unwritten_test.h"
#include "xla_ffi_c_api.h"

extern "C" {
XLA_FFI_Error* penstock_blocks(XLA_FFI_CallFrame*);
XLA_FFI_Error* penstock_experts(XLA_FFI_CallFrame*);
XLA_FFI_Error* penstock_head(XLA_FFI_CallFrame*);
XLA_FFI_Error* penstock_likeliest(XLA_FFI_CallFrame*);
XLA_FFI_Error* penstock_embedding(XLA_FFI_CallFrame*);
int32_t penstock_start_threads(int32_t);
}

namespace {

using penstock::CacheType;

constexpr int kBfloat16 = 1, kInt8 = 2, kInt4 = 3;  // Of penstock::WeightType.

// An attention block and an MLP block over a ragged step.
class Problem {
 public:
  static constexpr int64_t kHeads = 6, kKvHeads = 2;
  static constexpr int64_t kBlockSize = 24, kTableWidth = 46, kNumBlocks = 99, kTokens = 47;
  static constexpr int64_t kRows = 5, kSharedBlocks = 11;

  Problem(int type, CacheType cache) : form_(type), cache_(cache) {
    // Odd sizes where the type takes them: those in blocks have whole blocks.
    if (form_.is_in_blocks()) hidden_ = 64, dim_ = 32, inner_ = 128;
    Random random;
    // Row 0: a chunk of 15 from position 37 on; row 1: one token so far behind that threads share
    // its spans, at the end of its last block; rows 2 to 4: seven tokens each behind the beginning of
    // row 1; the rest is padding.
    auto& positions = add(XLA_FFI_DataType_S32, {kTokens});
    auto& rows = add(XLA_FFI_DataType_S32, {kTokens});
    for (int i = 0; i < kTokens; i++) {
      const int behind = i - 24;
      const bool is_behind = behind >= 0 && behind < 21;
      positions.at<int32_t>()[i] = i < 15 ? 37 + i : i == 21 ? 1103 : is_behind ? 270 + behind % 7 : -1;
      rows.at<int32_t>()[i] = i < 15 ? 0 : is_behind ? 2 + behind / 7 : 1;
    }
    auto& tables = add(XLA_FFI_DataType_S32, {kRows, kTableWidth});
    for (int i = 0; i < 2 * kTableWidth; i++) tables.at<int32_t>()[i] = i;
    for (int64_t row = 2; row < kRows; row++) {
      int32_t* table = tables.at<int32_t>() + row * kTableWidth;
      for (int i = 0; i < kSharedBlocks; i++) table[i] = static_cast<int32_t>(kTableWidth + i);
      for (int i = 0; i < 2; i++) {
        table[kSharedBlocks + i] = static_cast<int32_t>(2 * kTableWidth + 2 * (row - 2) + i);
      }
    }
    auto& cosine = add(XLA_FFI_DataType_F32, {kTokens, 7});
    auto& sine = add(XLA_FFI_DataType_F32, {kTokens, 7});
    cosine.fill(random);
    sine.fill(random);
    const int64_t width = (2 * kHeads + 2 * kKvHeads) * dim_;
    add(XLA_FFI_DataType_F32, {hidden_ + width + 2 * dim_ + 2 * hidden_ + kHeads}).fill(random);
    add_matrix(random, width, hidden_, false);
    add_matrix(random, hidden_, kHeads * dim_, false);
    first_page_ = arrays_.size();
    if (cache == CacheType::kInt8) {
      for (int i = 0; i < 2; i++) {
        add(XLA_FFI_DataType_S8, {kNumBlocks, kKvHeads, kBlockSize, dim_ + penstock::kScaleBytes});
      }
    } else {
      const bool is_half = cache == CacheType::kBfloat16;
      const auto numbers = is_half ? XLA_FFI_DataType_U16 : XLA_FFI_DataType_F32;
      const int64_t lane = is_half ? 2 : 1;
      add(numbers, {kNumBlocks, kKvHeads, dim_ / lane, kBlockSize, lane});
      add(numbers, {kNumBlocks, kKvHeads, kBlockSize / lane, dim_, lane});
    }
    const int64_t own_norm = cache == CacheType::kInt8 ? 0 : hidden_;
    add(XLA_FFI_DataType_F32, {own_norm + 2 * inner_}).fill(random);
    add_matrix(random, 2 * inner_, hidden_, true);
    add_matrix(random, hidden_, inner_, false);
  }

  Array residual() const { return Array(XLA_FFI_DataType_F32, {kTokens, hidden_}); }

  // The call over a fresh residual.
  Call call(Array& x) {
    Random random;
    x.fill(random);
    Call call;
    call.arguments.push_back(x.buffer());
    for (auto& array : arrays_) call.arguments.push_back(array.buffer());
    call.results = {x.buffer(), arrays_[first_page_].buffer(), arrays_[first_page_ + 1].buffer()};
    // In the order of handlers.cc: one group of block tables; attention (0) with a norm a head, all
    // biases, a norm behind, sinks, chunks, scaled queries, a gate, an interleaved rope and normed
    // values, and an MLP (1).
    call.config = {kVersion, 1, 2, 1, 0};
    const std::vector<int64_t> format = form_.fields();
    const auto add = [&](std::initializer_list<int64_t> fields) {
      for (int matrix = 0; matrix < 2; matrix++) {
        call.config.insert(call.config.end(), format.begin(), format.end());
      }
      call.config.insert(call.config.end(), fields);
    };
    add({kHeads, kKvHeads, dim_, 0, 0, 1, 1, static_cast<int64_t>(cache_), 0, 1, 1, 1, 1, 0, 900, 8,
         1, 1, 1, 0, 1, 0, 1});
    // The MLP has a norm of its own or, beside a cache of int8, reads that of the attention block.
    const int64_t is_parallel = cache_ == CacheType::kInt8;
    add({inner_, 0, 1, 1 - is_parallel, 0, 1, 0, 0, is_parallel, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
         0});
    call.scalars = {1e-5f, 0.2f, 5.0f, 1.0f, 0.3f, 1e-5f, 1.0f, 0.0f, 0.0f, 0.7f};
    return call;
  }

  Array& argument(size_t index) { return arrays_[index - 1]; }

 private:
  Array& add(XLA_FFI_DataType type, std::vector<int64_t> shape) {
    return arrays_.emplace_back(type, std::move(shape));
  }
  void add_matrix(Random& random, int64_t outputs, int64_t inputs, bool is_gate_up) {
    const int64_t panels = is_gate_up ? penstock::divide_up(outputs / 2, 16)
                                      : penstock::divide_up(outputs, penstock::kPanelOutputs);
    const int64_t size = form_.panel_bytes(inputs);
    auto& packed = add(XLA_FFI_DataType_U8, {panels, size});
    form_.pack(random, outputs, inputs, is_gate_up, packed.at<char>(), panels * size);
  }

  const MatrixForm form_;
  int64_t hidden_ = 70, dim_ = 20, inner_ = 50;
  const CacheType cache_;
  std::deque<Array> arrays_;
  size_t first_page_ = 0;
};

void test_levels() {
  for (int type = 0; type < kNumTypes; type++) {
    for (CacheType cache : {CacheType::kFloat32, CacheType::kBfloat16, CacheType::kInt8}) {
      Problem problem(type, cache);
      Array expected = problem.residual();
      penstock::choose_level("generic");
      std::string error = problem.call(expected).run(penstock_blocks);
      expect(error.empty(), error);
      for (auto level = penstock::compiled_levels(); *level != nullptr; level++) {
        if (!penstock::choose_level((*level)->name)) continue;
        Array found = problem.residual();
        error = problem.call(found).run(penstock_blocks);
        expect(error.empty(), error);
        const double miss = distance(found, expected);
        expect(miss < 2e-3, std::string((*level)->name) + " of type " + std::to_string(type) +
                                " is " + std::to_string(miss) + " away from generic");
      }
    }
  }
}

void test_head_and_embedding() {
  Random random;
  for (int type = 0; type < kNumTypes; type++) {
    const MatrixForm form(type);
    const int64_t outputs = 45, inputs = form.is_in_blocks() ? 128 : 50, rows = 17;
    const int64_t size = form.panel_bytes(inputs);
    Array table(XLA_FFI_DataType_U8, {2, size}), hidden(XLA_FFI_DataType_F32, {rows, inputs});
    Array wanted(XLA_FFI_DataType_S32, {rows}), logits(XLA_FFI_DataType_F32, {rows, outputs});
    Array ids(XLA_FFI_DataType_S32, {rows}), x(XLA_FFI_DataType_F32, {rows, inputs});
    form.pack(random, outputs, inputs, false, table.at<char>(), 2 * size);
    hidden.fill(random);
    for (int i = 0; i < rows; i++) {
      wanted.at<int32_t>()[i] = i == 15;
      ids.at<int32_t>()[i] = i * 7 - 9;
    }
    for (auto level = penstock::compiled_levels(); *level != nullptr; level++) {
      if (!penstock::choose_level((*level)->name)) continue;
      Call head;
      head.arguments = {hidden.buffer(), wanted.buffer(), table.buffer()};
      head.results = {logits.buffer()};
      head.config = form.fields();
      head.config.insert(head.config.begin(), kVersion);
      head.scalars = {1.0f, 3.0f};
      std::string error = head.run(penstock_head);
      expect(error.empty(), error);
      Array tokens(XLA_FFI_DataType_S32, {rows});
      Call likeliest = head;
      likeliest.results = {tokens.buffer()};
      likeliest.vocabulary = {outputs};
      error = likeliest.run(penstock_likeliest);
      expect(error.empty(), error);
      for (int64_t row = 0; row < 16; row++) {
        const float* scores = logits.at<float>() + row * outputs;
        const auto highest = std::max_element(scores, scores + outputs) - scores;
        expect(tokens.at<int32_t>()[row] == highest, "another token than that of the scores");
      }
      Call embedding;
      embedding.arguments = {ids.buffer(), table.buffer()};
      embedding.results = {x.buffer()};
      embedding.config = head.config;
      embedding.scalars = head.scalars;
      embedding.vocabulary = {outputs};
      error = embedding.run(penstock_embedding);
      expect(error.empty(), error);
    }
  }
}

// Experts over some tokens: one that many chose, some that nobody did, tokens without any.
class Experts {
 public:
  static constexpr int64_t kTokens = 41, kChosen = 3, kExperts = 6, kWidth = 64, kInner = 128;

  explicit Experts(int type)
      : form_(type),
        x_(XLA_FFI_DataType_F32, {kTokens, kWidth}),
        experts_(XLA_FFI_DataType_S32, {kTokens, kChosen}),
        weights_(XLA_FFI_DataType_F32, {kTokens, kChosen}),
        vectors_(XLA_FFI_DataType_F32, {kExperts * (2 * kInner + kWidth)}),
        gate_up_(packed(2 * kInner, kWidth, true)),
        down_(packed(kWidth, kInner, false)) {
    x_.fill(random_);
    weights_.fill(random_);
    vectors_.fill(random_);
    const int32_t chosen[] = {4, 1, kExperts, 4, 5, 1, kExperts, kExperts, kExperts};
    for (int64_t i = 0; i < kTokens * kChosen; i++) experts_.at<int32_t>()[i] = chosen[i % 9];
    const std::vector<int64_t> format = form_.fields();
    call.arguments = {x_.buffer(),       experts_.buffer(), weights_.buffer(),
                      vectors_.buffer(), gate_up_.buffer(), down_.buffer()};
    call.config = {kVersion};
    for (int matrix = 0; matrix < 2; matrix++) {
      call.config.insert(call.config.end(), format.begin(), format.end());
    }
    // An activation of GPT-OSS with both biases and its clamp.
    call.config.insert(call.config.end(), {kInner, 4, 1, 0, 0, 1, 1, 0, 0});
    call.scalars = {0.0f, 1.0f, 0.5f, 1.0f, 1.0f};
  }

  std::string run(Array& y) {
    Call copy = call;
    copy.results = {y.buffer()};
    return copy.run(penstock_experts);
  }
  static Array result() { return Array(XLA_FFI_DataType_F32, {kTokens, kWidth}); }
  int32_t* chosen() { return experts_.at<int32_t>(); }

  Call call;

 private:
  Array packed(int64_t outputs, int64_t inputs, bool is_gate_up) {
    const int64_t panels = outputs / penstock::kPanelOutputs;
    const int64_t size = form_.panel_bytes(inputs);
    Array matrices(XLA_FFI_DataType_U8, {kExperts, panels, size});
    for (int64_t expert = 0; expert < kExperts; expert++) {
      form_.pack(random_, outputs, inputs, is_gate_up,
                 matrices.at<char>() + expert * panels * size, panels * size);
    }
    return matrices;
  }

  const MatrixForm form_;
  Random random_;
  Array x_, experts_, weights_, vectors_, gate_up_, down_;
};

void test_experts() {
  for (int type = 0; type < kNumTypes; type++) {
    Experts experts(type);
    Array expected = Experts::result();
    penstock::choose_level("generic");
    std::string error = experts.run(expected);
    expect(error.empty(), error);
    for (auto level = penstock::compiled_levels(); *level != nullptr; level++) {
      if (!penstock::choose_level((*level)->name)) continue;
      Array found = Experts::result();
      error = experts.run(found);
      expect(error.empty(), error);
      const double miss = distance(found, expected);
      expect(miss < 2e-3, std::string((*level)->name) + ": experts of type " +
                              std::to_string(type) + " are " + std::to_string(miss) + " away");
    }
  }
  Experts experts(kBfloat16);
  Array y = Experts::result();
  const Call good = experts.call;
  for (size_t field = 0; field < good.config.size(); field++) {
    for (int64_t wrong : {INT64_MIN, int64_t{-2}, int64_t{1} << 40, INT64_MAX}) {
      experts.call.config[field] = wrong;
      expect(!experts.run(y).empty(), "a wrong field of experts");
      experts.call = good;
    }
  }
  for (size_t i = 0; i < good.arguments.size(); i++) {
    experts.call.arguments[i].data = static_cast<char*>(good.arguments[i].data) + 2;
    expect(experts.run(y).find("is not aligned to") != std::string::npos, "alignment");
    experts.call = good;
  }
  experts.chosen()[5] = Experts::kExperts + 1;
  expect(experts.run(y).find("token 1 chose expert 7 of 6") != std::string::npos, "a wrong expert");
}

void expect_refused(const Call& call, const std::string& what) {
  Call copy = call;
  const std::string error = copy.run(penstock_blocks);
  expect(error.find(what) != std::string::npos, "not refused for '" + what + "' but: " + error);
}

// What jax can't be made to send.
void test_the_border(CacheType cache) {
  Problem problem(kBfloat16, cache);
  Array x = problem.residual();
  const Call good = problem.call(x);
  for (size_t i = 6; i < good.arguments.size(); i++) {
    Call call = good;
    call.arguments[i].data = static_cast<char*>(call.arguments[i].data) + 2;
    expect_refused(call, "is not aligned to");
  }
  for (size_t i = 0; i < good.results.size(); i++) {
    Call call = good;
    Array other = problem.residual();
    call.results[i].data = other.at<char>();
    expect_refused(call, "is not updated in place");
  }
  Call call = good;
  call.arguments[7].data = nullptr;
  expect_refused(call, "is not aligned");
  call = good;
  call.arguments.pop_back();
  expect_refused(call, "down is missing");
  call = good;
  call.arguments.push_back(x.buffer());
  expect_refused(call, "the call has 15 arguments, not 14");
  call = good;
  call.results.pop_back();
  expect_refused(call, "result values is missing");
  call = good;
  call.config.pop_back();
  expect_refused(call, "don't fit the number of blocks");
  for (size_t field = 0; field < good.config.size(); field++) {
    for (int64_t wrong : {INT64_MIN, int64_t{-2}, int64_t{1} << 40, INT64_MAX}) {
      call = good;
      call.config[field] = wrong;
      call.run(penstock_blocks);  // Whatever it means: no crash, nothing beside a buffer.
    }
  }
}

// Several callers at once, and threads that are parked and woken.
void test_callers_at_once() {
  Problem problems[] = {{kBfloat16, CacheType::kBfloat16}, {kInt8, CacheType::kInt8}};
  Experts experts(kInt4);
  std::vector<std::thread> callers;
  callers.emplace_back([&experts] {
    Array first = Experts::result(), again = Experts::result();
    experts.run(first);
    for (int i = 0; i < 40; i++) {
      experts.run(again);
      if (std::memcmp(first.at<char>(), again.at<char>(), first.bytes()) != 0) std::abort();
    }
  });
  for (Problem& problem : problems) {
    callers.emplace_back([&problem] {
      Array first = problem.residual();
      problem.call(first).run(penstock_blocks);
      for (int i = 0; i < 40; i++) {
        Array again = problem.residual();
        problem.call(again).run(penstock_blocks);
        if (std::memcmp(first.at<char>(), again.at<char>(), first.bytes()) != 0) {
          std::printf("FAILED: a caller's result depends on the other\n");
          std::abort();
        }
        if (i % 8 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main() {
  expect(penstock_start_threads(4) == 4, "four threads");
  test_a_state_that_is_kept_nowhere();  // Before others leave memory that would do.
  test_levels();
  test_experts();
  test_recurrent();
  test_latents();
  test_products_by_head();
  test_unwritten();
  test_head_and_embedding();
  for (CacheType cache : {CacheType::kBfloat16, CacheType::kInt8}) test_the_border(cache);
  test_callers_at_once();
  std::printf(num_failures == 0 ? "all well\n" : "%d failures\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}
