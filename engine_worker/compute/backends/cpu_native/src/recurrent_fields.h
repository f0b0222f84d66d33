// What a call of a recurrent layer says, with every bound checked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "call_fields.h"
#include "call_frame.h"
#include "calls.h"

namespace penstock {

// config: version, kind, groups; scalars: eps.
class RecurrentReader {
 public:
  explicit RecurrentReader(const CallFrame& frame) : frame_(frame) {}

  RecurrentCall read() {
    int64_t num_fields = 0, num_scalars = 0;
    const auto* config = frame_.array<int64_t>("config", XLA_FFI_DataType_S64, &num_fields);
    const auto* scalars = frame_.array<float>("scalars", XLA_FFI_DataType_F32, &num_scalars);
    require(num_fields == 3 && num_scalars == 1 && config[0] == kConfigVersion,
            "the call was built for another version of the kernels");
    Fields fields(config + 1, scalars);
    call_.kind = static_cast<MixerKind>(fields.integer(0, 2, "kind of mixer"));
    call_.num_groups = fields.integer(1, kMaxSize, "groups");
    call_.eps = fields.scalar("eps");
    read_convolution();
    if (call_.kind != MixerKind::kConvolution) read_heads();
    const bool is_space = call_.kind == MixerKind::kStateSpace;
    frame_.expect_arguments(call_.kind == MixerKind::kConvolution ? 6 : is_space ? 10 : 9);
    check_states();
    return call_;
  }

 private:
  void read_convolution() {
    const auto& mixed = argument(0, "mixed", {kAny, kAny});
    const int64_t rows = call_.num_rows = mixed.dims[0];
    const int64_t channels = call_.channels = mixed.dims[1];
    call_.mixed = floats(mixed);
    call_.before = integers(frame_.argument(1, "before", XLA_FFI_DataType_S32, {rows}, kFloat));
    call_.after = integers(frame_.argument(2, "after", XLA_FFI_DataType_S32, {rows}, kFloat));
    const auto& taps = argument(3, "taps", {channels, kAny});
    call_.taps = floats(taps);
    call_.num_taps = taps.dims[1];
    require(call_.num_taps >= 1 && call_.num_taps <= kMaxTaps && channels > 0,
            "a convolution has 1 to 16 taps, and channels");
    const auto& bias = argument(4, "bias", {kAny});
    require(bias.dims[0] == 0 || bias.dims[0] == channels, "bias has not one number a channel");
    call_.bias = bias.dims[0] == 0 ? nullptr : floats(bias);
    const auto& tails = argument(5, "tails", {kAny, call_.num_taps - 1, channels});
    frame_.aliased_result(1, "tails", tails);
    call_.tails = static_cast<float*>(tails.data);
    call_.num_states = tails.dims[0];
    if (call_.kind == MixerKind::kConvolution) call_.y = result({rows, channels});
  }

  void read_heads() {
    const bool is_space = call_.kind == MixerKind::kStateSpace;
    const auto& memories = argument(6, "memories", {call_.num_states, kAny, kAny, kAny});
    frame_.aliased_result(2, "memories", memories);
    call_.memories = static_cast<float*>(memories.data);
    const int64_t rows = call_.num_rows, heads = call_.num_heads = memories.dims[1];
    call_.head_dim = memories.dims[is_space ? 2 : 3];
    call_.group_dim = memories.dims[is_space ? 3 : 2];
    require(heads > 0 && heads % call_.num_groups == 0 && call_.head_dim > 0 && call_.group_dim > 0,
            "there are no heads, or their number is no multiple of the groups'");
    require(call_.channels ==
                heads * call_.head_dim + 2 * call_.num_groups * call_.group_dim,
            "the channels are not those of heads and groups");
    call_.writes = floats(argument(7, "writes", {rows, heads}));
    call_.forgets = floats(argument(8, "forgets", {rows, heads}));
    if (is_space) call_.passed = floats(argument(9, "passed", {heads}));
    call_.y = result({rows, heads, call_.head_dim});
  }

  // Each token's states are there; what padding gets is zeros.
  void check_states() const {
    const int64_t width = call_.kind == MixerKind::kConvolution
                              ? call_.channels
                              : call_.num_heads * call_.head_dim;
    for (int64_t row = 0; row < call_.num_rows; row++) {
      const int64_t before = call_.before[row], after = call_.after[row];
      if (after == -1) {
        std::fill_n(call_.y + row * width, width, 0.0f);
      } else if (before < kGoesOn || before >= call_.num_states || after < kGoesOn ||
                 after >= call_.num_states ||
                 (before == kGoesOn && (row == 0 || call_.after[row - 1] == -1))) {
        throw BadCall("row " + std::to_string(row) + " goes from state " + std::to_string(before) +
                      " to " + std::to_string(after) + " of " + std::to_string(call_.num_states));
      }
    }
  }

  const XLA_FFI_Buffer& argument(int64_t index, const char* name,
                                 std::initializer_list<int64_t> shape) const {
    return frame_.argument(index, name, XLA_FFI_DataType_F32, shape, kFloat);
  }
  float* result(std::initializer_list<int64_t> shape) const {
    return static_cast<float*>(
        frame_.result(0, "y", XLA_FFI_DataType_F32, shape, kFloat).data);
  }

  const CallFrame& frame_;
  RecurrentCall call_{};
};

}  // namespace penstock
