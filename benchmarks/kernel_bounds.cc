// What bounds the native kernels on this machine: reading memory and multiplying in registers, on as
// many threads as they use. Compiled by benchmarks/kernels.py with -march=native.
#include <immintrin.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

// Runs f(thread) on some threads at once; seconds from the first start to the last end.
template <class F>
double seconds(int num_threads, F f) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int i = 1; i < num_threads; i++) threads.emplace_back(f, i);
  f(0);
  for (std::thread& thread : threads) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr int kSums = 12;

}  // namespace

// Bytes a second; `data` is larger than every cache and was written before.
extern "C" double read_rate(const char* data, int64_t num_bytes, int num_threads) {
  const int64_t part = num_bytes / num_threads / 64 * 64;
  double total = seconds(num_threads, [&](int thread) {
    const char* from = data + thread * part;
    __m512i sums[4] = {};
    for (int64_t i = 0; i + 256 <= part; i += 256) {
      for (int k = 0; k < 4; k++) {
        _mm_prefetch(from + i + k * 64 + 2048, _MM_HINT_T0);
        sums[k] = _mm512_add_epi64(sums[k], _mm512_loadu_si512(from + i + k * 64));
      }
    }
    volatile int64_t kept = _mm512_reduce_add_epi64(_mm512_add_epi64(
        _mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3])));
    (void)kept;
  });
  return static_cast<double>(part * num_threads) / total;
}

// Multiplications and additions a second of the tile registers, which the process may use already;
// 0 without them.
extern "C" double multiply_rate_of_amx(int is_bytes, int num_threads) {
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
  const int64_t turns = 1'000'000;
  double total = seconds(num_threads, [&](int) {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
    for (int64_t turn = 0; turn < turns; turn++) {
      if (is_bytes) {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
      } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_release();
  });
  const int64_t by_turn = 4 * 16 * 16 * (is_bytes ? 128 : 64);
  return static_cast<double>(by_turn * turns * num_threads) / total;
#else
  return 0.0;
#endif
}

// The same of vectors; bfloat16 (0) or bytes (1).
extern "C" double multiply_rate(int is_bytes, int num_threads) {
  const int64_t turns = 20'000'000;
  int64_t by_turn = 0;
  double total = seconds(num_threads, [&](int) {
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
    __m512 floats[kSums] = {};
    __m512i integers[kSums] = {};
    const __m512i x = _mm512_set1_epi8(1);
    for (int64_t turn = 0; turn < turns; turn++) {
      if (is_bytes) {
        for (auto& sum : integers) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum) : "v"(x));
      } else {
        for (auto& sum : floats) asm volatile("vdpbf16ps %1, %1, %0" : "+v"(sum) : "v"(x));
      }
    }
    volatile float kept = floats[0][0] + static_cast<float>(integers[0][0]);
    (void)kept;
#endif
  });
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
  by_turn = kSums * 16 * (is_bytes ? 8 : 4);
#endif
  return static_cast<double>(by_turn * turns * num_threads) / total;
}
