// The product of packed activations and numbers in blocks (BlockLayout). Include in linear.h.

// Exact: GCC's own conversion of half floats asks for instructions that some levels lack.
inline Vector from_float16(HalfVector bits) {
#if defined(__AVX512F__)
  return bits_as<Vector>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(bits)));
#else
  const BitVector wide = __builtin_convertvector(bits, BitVector);
  const BitVector magnitude = (wide & 0x7fffu) << 13, sign = (wide & 0x8000u) << 16;
  // Halves without an exponent are taken as 2^-14 and more, of which 2^-14 is taken off.
  const Vector small = bits_as<Vector>(magnitude + (113u << 23)) - 6.103515625e-5f;
  const Vector normal = bits_as<Vector>(magnitude + (112u << 23));
  const Vector found = (wide & 0x7c00u) == 0 ? small : normal;
  return bits_as<Vector>(bits_as<BitVector>(found) | sign);
#endif
}

// Bytes as int8.
inline IntVector load_bytes(const char* from) {
  const ByteVector bytes = load_as<ByteVector>(from);
  // GCC 12 converts them through memory, one by one.
#if defined(__AVX512F__)
  return bits_as<IntVector>(_mm512_maskz_cvtepi8_epi32(0xffff, bits_as<__m128i>(bytes)));
#elif defined(__AVX2__)
  return bits_as<IntVector>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bits_as<int64_t>(bytes))));
#else
  return __builtin_convertvector(bytes, IntVector);
#endif
}

// Of bytes 0 to 254. 2^-127 is too small for an exponent of float32.
inline Vector from_e8m0(IntVector bytes) {
  const BitVector exponents = bits_as<BitVector>(bytes) & 0xffu;
  return bits_as<Vector>(exponents == 0 ? exponents + 0x00400000u : exponents << 23);
}

#if defined(__AVX2__)
// Of four codes in each lane, bytes 0 to 15, what the table has.
inline IntVector look_up(__m128i table, IntVector codes) {
#if defined(__AVX512BW__)
  return bits_as<IntVector>(
      _mm512_shuffle_epi8(_mm512_maskz_broadcast_i32x4(0xffff, table), bits_as<__m512i>(codes)));
#else
  return bits_as<IntVector>(
      _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), bits_as<__m256i>(codes)));
#endif
}
#endif

// Of four codes of E2M1 in each lane: kDoubledFp4 plus 12, which is never negative.
inline IntVector from_fp4(IntVector codes) {
#if defined(__AVX2__)
  return look_up(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0), codes);
#else
  // Four bytes at once: no step takes one byte above 255 or below 0.
  const BitVector bits = bits_as<BitVector>(codes), magnitude = bits & 0x07070707u;
  const BitVector is_large = (magnitude >> 2) & 0x01010101u;  // 4, 5, 6, 7 are 4, 6, 8, 12
  BitVector number = magnitude + (magnitude & (is_large * 3u));
  number += (is_large & (magnitude >> 1) & magnitude) << 1;
  const BitVector is_negative = ((bits >> 3) & 0x01010101u) * 0xffu;
  return bits_as<IntVector>(number + 0x0c0c0c0cu - ((number & is_negative) << 1));
#endif
}

// Of four codes of kIq4 in each lane: the numbers plus 128, as bytes.
inline IntVector from_iq4(IntVector codes) {
#if defined(__AVX2__)
  return look_up(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59,
                               -39, -15),
                 codes);
#else
  uint8_t bytes[sizeof codes];
  std::memcpy(bytes, &codes, sizeof codes);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(kIq4[byte] + 128);
  return load_as<IntVector>(bytes);
#endif
}

// Of four numbers of 4 bits in each lane: what is multiplied for them.
template <WeightType kType>
inline IntVector from_four_bits(IntVector numbers) {
  if (kType == WeightType::kBlocksFp4) return from_fp4(numbers);
  if (kType == WeightType::kBlocksIq4) return from_iq4(numbers);
  return numbers;
}

inline Vector load_scales(const char* from, ScaleType type, int64_t first) {
  switch (type) {
    case ScaleType::kE8m0: return from_e8m0(load_bytes(from + first));
    case ScaleType::kFloat16: return from_float16(load_as<HalfVector>(from + first * 2));
    case ScaleType::kBfloat16: return from_bfloat16(load_as<HalfVector>(from + first * 2));
    case ScaleType::kFloat32: break;
  }
  return load_as<Vector>(from + first * 4);
}

// All sums of a block are whole numbers: it is scaled once, at its end.
template <int kRows, WeightType kType, bool kHasScales>
void block_tile(const TileInput& in, float* out) {
  constexpr bool kIsFp4 = kType == WeightType::kBlocksFp4;
  constexpr bool kIsEight = kType == WeightType::kBlocks8, kIsSix = kType == WeightType::kBlocks6;
  using Product = IntegerProduct<!kIsEight && kType != WeightType::kBlocksIq4>;
  constexpr bool kIsCoded = kIsFp4 || kType == WeightType::kBlocksIq4;
  constexpr int kStep = 2 * kLanes;
  const BlockLayout& layout = in.blocks;
  const int32_t zero = layout.zero(kType);
  const bool has_minima = !kIsCoded && layout.has_minima;
  const int64_t num_groups = layout.block_size / in.group_size;
  const int64_t num_words = in.group_size / (kIsEight ? 4 : 8);
  const int64_t num_blocks = in.inputs / layout.block_size, row_groups = num_blocks * num_groups;
  const int64_t block_bytes = layout.num_bytes(kType, in.group_size);
  const int64_t scales_at = layout.words_bytes(kType);
  const int64_t minima_at = scales_at + kHasScales * num_groups * kPanelOutputs;
  const int64_t floats_at = minima_at + has_minima * num_groups * kPanelOutputs;
  for (int64_t first = 0; first < kPanelOutputs; first += kStep) {
    const auto* x = static_cast<const uint32_t*>(in.x);
    Vector totals[kRows][2] = {};
    for (int64_t block = 0; block < num_blocks; block++) {
      const char* start = in.panel + block * block_bytes;
      const char* words = start + first * kLaneBytes;
      const int32_t* row_sums = in.sums + block * num_groups;
      IntVector whole[kRows][2] = {};
      for (int64_t group = 0; group < num_groups; group++) {
        // What the stored zeros would add is taken off at the start.
        IntVector sums[kRows][2];
#pragma GCC unroll 16
        for (int row = 0; row < kRows; row++) {
          sums[row][0] = sums[row][1] = IntVector{} - row_sums[row * row_groups + group] * zero;
        }
        if (!kIsEight) {
          for (int64_t word = 0; word < num_words; word++, words += kRowBytes) {
            typename Product::Weight low[2], high[2];
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) {
              IntVector nibbles = load_as<IntVector>(words + v * (kLaneBytes * kLanes));
              if (kRows <= kRowsThatWait) {
                __builtin_prefetch(words + v * (kLaneBytes * kLanes) + kPrefetchBytes);
              }
              IntVector first_four = nibbles & 0x0f0f0f0f, last = (nibbles >> 4) & 0x0f0f0f0f;
              if (kIsSix) {
                const int64_t is_second = word % 2;
                const char* others = words + (2 - is_second) * kRowBytes;
                IntVector top = load_as<IntVector>(others + v * (kLaneBytes * kLanes));
                if (is_second) {
                  top >>= 4;
                } else if (kRows <= kRowsThatWait) {
                  __builtin_prefetch(others + v * (kLaneBytes * kLanes) + kPrefetchBytes);
                }
                first_four |= (top << 4) & 0x30303030;
                last |= (top << 2) & 0x30303030;
              }
              low[v] = Product::prepare(from_four_bits<kType>(first_four));
              high[v] = Product::prepare(from_four_bits<kType>(last));
            }
#pragma GCC unroll 16
            for (int row = 0; row < kRows; row++) {
              auto b = Product::broadcast(x + row);
              Product::multiply_add(sums[row][0], low[0], b);
              Product::multiply_add(sums[row][1], low[1], b);
            }
#pragma GCC unroll 16
            for (int row = 0; row < kRows; row++) {
              auto b = Product::broadcast(x + kRows + row);
              Product::multiply_add(sums[row][0], high[0], b);
              Product::multiply_add(sums[row][1], high[1], b);
            }
            x += 2 * kRows;
            if (kIsSix && word % 2 == 1) words += kRowBytes;
          }
        } else {
          multiply_groups<Product, kRows, 2>(x, 1, kRows, words, kRowBytes, num_words, nullptr,
                                             words + kPrefetchBytes, sums);
          x += num_words * kRows;
          words += num_words * kRowBytes;
        }
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
          IntVector scale{};
          if (kHasScales) {
            scale = load_bytes(start + scales_at + group * kPanelOutputs + first + v * kLanes);
          }
#pragma GCC unroll 16
          for (int row = 0; row < kRows; row++) {
            if (kHasScales) {
              whole[row][v] += sums[row][v] * scale;
            } else {
              whole[row][v] = sums[row][v];  // A block is one group.
            }
          }
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) {
        const int64_t at = first + v * kLanes;
        Vector scale = load_scales(start + floats_at, layout.scale_type, at);
        if (kIsFp4) scale *= 0.5f;
#pragma GCC unroll 16
        for (int row = 0; row < kRows; row++) {
          totals[row][v] += __builtin_convertvector(whole[row][v], Vector) * scale;
        }
        if (!has_minima) continue;
        IntVector low[kRows] = {};
        for (int64_t group = 0; group < num_groups; group++) {
          const IntVector minimum = load_bytes(start + minima_at + group * kPanelOutputs + at);
#pragma GCC unroll 16
          for (int row = 0; row < kRows; row++) {
            low[row] += minimum * row_sums[row * row_groups + group];
          }
        }
        const Vector of_minima = load_scales(
            start + floats_at + kPanelOutputs * layout.scale_bytes(), layout.scale_type, at);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; row++) {
          totals[row][v] -= __builtin_convertvector(low[row], Vector) * of_minima;
        }
      }
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; row++) {
      for (int v = 0; v < 2; v++) {
        store(out + row * kPanelOutputs + first + v * kLanes, totals[row][v] * in.scales[row]);
      }
    }
  }
}

// One weight of a panel.
inline float block_weight_at(const Matrix& matrix, const char* panel, int64_t lane, int64_t input) {
  const BlockLayout& layout = matrix.blocks;
  const bool is_eight = matrix.type == WeightType::kBlocks8;
  const bool is_six = matrix.type == WeightType::kBlocks6;
  const bool is_fp4 = matrix.type == WeightType::kBlocksFp4;
  const int64_t num_groups = layout.block_size / matrix.group_size;
  const int64_t within = input % layout.block_size, group = within / matrix.group_size;
  const char* block =
      panel + input / layout.block_size * layout.num_bytes(matrix.type, matrix.group_size);
  const char* bytes_of_lane = block + lane * kLaneBytes + within % 4;
  const int64_t row = is_eight ? within / 4 : is_six ? within / 16 * 3 + within / 8 % 2 : within / 8;
  const auto byte = load_as<uint8_t>(bytes_of_lane + row * kRowBytes);
  int whole = is_eight ? byte : within % 8 < 4 ? byte & 15 : byte >> 4;
  if (is_six) {
    const auto top = load_as<uint8_t>(bytes_of_lane + (within / 16 * 3 + 2) * kRowBytes);
    whole |= ((top >> (within % 16 / 4 * 2)) & 3) << 4;
  }
  if (is_fp4) {
    whole = kDoubledFp4[whole];
  } else if (matrix.type == WeightType::kBlocksIq4) {
    whole = kIq4[whole];
  } else {
    whole -= layout.zero(matrix.type);
  }
  const char* bytes = block + layout.words_bytes(matrix.type) + group * kPanelOutputs + lane;
  if (layout.has_scales) whole *= load_as<int8_t>(bytes);
  const char* floats = block + layout.words_bytes(matrix.type) +
                       num_groups * kPanelOutputs * (layout.has_scales + layout.has_minima);
  const int64_t at = lane / kLanes * kLanes;
  float weight = static_cast<float>(whole) * load_scales(floats, layout.scale_type, at)[lane - at];
  if (is_fp4) weight *= 0.5f;
  if (layout.has_minima) {
    const auto minimum =
        load_as<int8_t>(bytes + layout.has_scales * num_groups * kPanelOutputs);
    weight -= static_cast<float>(minimum) * load_scales(floats + kPanelOutputs * layout.scale_bytes(),
                                                        layout.scale_type, at)[lane - at];
  }
  return weight;
}
