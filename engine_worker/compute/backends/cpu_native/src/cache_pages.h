// How keys and values of a head are stored in its pages, and int8 read. Include inside the namespace.
//
// A page of a head is a panel (calls.h) of float32 or bfloat16: its tokens are outputs of the keys and
// inputs of the values. int8 has the order of bfloat16's pairs, and behind them float32 scales, one a
// token. bfloat16 holds every int8, so a product with numbers that were widened is that with the
// integers: scores are multiplied by the keys' scales, and weights of the softmax by the values'.

// Puts a token's numbers into the pages of one head, in pairs; `round` gives kLanes at a time.
template <class Number, class RoundKeys, class RoundValues>
inline void store_pairs(Number* keys, Number* values, int64_t size, int64_t slot, int64_t dim,
                        const RoundKeys& round_keys, const RoundValues& round_values) {
  keys += slot * 2;
  values += slot / 2 * dim * 2 + slot % 2;
  for (int64_t i = 0; i < dim; i += kLanes) {
    const auto k = round_keys(i);
    for (int64_t lane = 0; lane < kLanes && i + lane < dim; lane += 2) {
      keys[(i + lane) * size] = static_cast<Number>(k[lane]);
      keys[(i + lane) * size + 1] = static_cast<Number>(k[lane + 1]);
    }
    const auto v = round_values(i);
    for (int64_t lane = 0; lane < kLanes && i + lane < dim; lane++) {
      values[(i + lane) * 2] = static_cast<Number>(v[lane]);
    }
  }
}

// Stores a token in the pages of one head, of `size` tokens each.
inline void store_token(CacheType type, int64_t size, int64_t dim, char* keys, char* values,
                        int64_t slot, const float* k, const float* v) {
  if (type == CacheType::kFloat32) {
    float* to = reinterpret_cast<float*>(keys) + slot;
    for (int64_t i = 0; i < dim; i++) to[i * size] = k[i];
    std::memcpy(reinterpret_cast<float*>(values) + slot * dim, v, static_cast<size_t>(dim) * 4);
    return;
  }
  if (type == CacheType::kBfloat16) {
    store_pairs(
        reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values), size, slot, dim,
        [&](int64_t i) { return to_bfloat16(load_part(k + i, dim - i)); },
        [&](int64_t i) { return to_bfloat16(load_part(v + i, dim - i)); });
    return;
  }
  const IntegerScale of_key(k, dim), of_value(v, dim);
  store_pairs(
      reinterpret_cast<int8_t*>(keys), reinterpret_cast<int8_t*>(values), size, slot, dim,
      [&](int64_t i) { return of_key.integers(load_part(k + i, dim - i)); },
      [&](int64_t i) { return of_value.integers(load_part(v + i, dim - i)); });
  const int64_t behind = size * dim + slot * kScaleBytes;
  std::memcpy(keys + behind, &of_key.scale, kScaleBytes);
  std::memcpy(values + behind, &of_value.scale, kScaleBytes);
}

// Four numbers of 16 bits of which the second and the third change places.
inline uint64_t swapped(uint64_t x) {
  return (x & 0xffff00000000ffffu) | ((x >> 16) & 0xffff0000u) | ((x & 0xffff0000u) << 16);
}

#if defined(__AVX512BW__)
// Eight such numbers of eight rows that stand so far apart: rows become columns. (Masked, as GCC 12
// warns of the plain intrinsics.)
inline void turn_eight(const uint64_t* from, int64_t from_stride, uint64_t* to, int64_t to_stride) {
  __m512i rows[8], pairs[8], fours[8];
  for (int i = 0; i < 8; i++) {
    const __m512i row = _mm512_loadu_si512(from + i * from_stride);
    rows[i] = _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(row, 0xd8), 0xd8);
  }
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_maskz_unpacklo_epi64(0xff, rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_maskz_unpackhi_epi64(0xff, rows[i], rows[i + 1]);
  }
  // fours[n + 4 h]: of rows 4 h to 4 h + 3, lanes 128 bits wide of columns n % 2 + {0, 2} or {4, 6}.
  for (int i = 0; i < 2; i++) {
    for (int h = 0; h < 2; h++) {
      const __m512i a = pairs[4 * h + i], b = pairs[4 * h + 2 + i];
      fours[i + 4 * h] = _mm512_maskz_shuffle_i64x2(0xff, a, b, 0x44);
      fours[i + 2 + 4 * h] = _mm512_maskz_shuffle_i64x2(0xff, a, b, 0xee);
    }
  }
  for (int n = 0; n < 4; n++) {
    const int64_t column = n % 2 + n / 2 * 4;
    const __m512i low = _mm512_maskz_shuffle_i64x2(0xff, fours[n], fours[n + 4], 0x88);
    const __m512i high = _mm512_maskz_shuffle_i64x2(0xff, fours[n], fours[n + 4], 0xdd);
    _mm512_storeu_si512(to + column * to_stride, low);
    _mm512_storeu_si512(to + (column + 2) * to_stride, high);
  }
}
#endif

// Puts some numbers of a token where keys of pages of `size` tokens lie.
inline void store_key(CacheType type, int64_t size, int64_t dim, char* keys, int64_t slot,
                      const float* k) {
  if (type == CacheType::kFloat32) {
    for (int64_t i = 0; i < dim; i++) reinterpret_cast<float*>(keys)[i * size + slot] = k[i];
    return;
  }
  auto* to = reinterpret_cast<uint16_t*>(keys);
  for (int64_t i = 0; i < dim; i += kLanes) {
    const HalfVector bits = to_bfloat16(load_part(k + i, dim - i));
    for (int64_t lane = 0; lane < kLanes && i + lane < dim; lane++) {
      to[((i + lane) / 2 * size + slot) * 2 + lane % 2] = bits[lane];
    }
  }
}

// Positions `begin` to `end`, even, of a page of latents that lie as keys do, as values lie.
template <CacheType kType>
inline void turn_latents(const char* page, int64_t size, int64_t dim, int64_t begin, int64_t end,
                         char* values) {
  if constexpr (kType == CacheType::kFloat32) {
    const auto* from = reinterpret_cast<const float*>(page);
    auto* to = reinterpret_cast<float*>(values);
    for (int64_t at = begin; at < end; at++) {
      for (int64_t i = 0; i < dim; i++) to[at * dim + i] = from[i * size + at];
    }
    return;
  }
  // Four numbers of a pair of numbers and a pair of tokens: the two in the middle change places.
  const auto* from = reinterpret_cast<const uint64_t*>(page);
  auto* to = reinterpret_cast<uint64_t*>(values);
  const int64_t num_pairs = dim / 2, row = size / 2;
  int64_t pair = begin / 2;
#if defined(__AVX512BW__)
  for (; pair + 8 <= end / 2; pair += 8) {
    int64_t group = 0;
    for (; group + 8 <= num_pairs; group += 8) {
      turn_eight(from + group * row + pair, row, to + pair * num_pairs + group, num_pairs);
    }
    for (int64_t at = pair; at < pair + 8; at++) {
      for (int64_t i = group; i < num_pairs; i++) to[at * num_pairs + i] = swapped(from[i * row + at]);
    }
  }
#endif
  for (; pair < end / 2; pair++) {
    for (int64_t i = 0; i < num_pairs; i++) to[pair * num_pairs + i] = swapped(from[i * row + pair]);
  }
}

// Pairs of int8 as pairs of bfloat16.
inline void widen_pairs(const char* from, int64_t count, char* to) {
  int64_t i = 0;
#if defined(__AVX512BF16__)
  for (; i + kLanes <= count; i += kLanes) {
    const Vector low = __builtin_convertvector(load_bytes(from + i * 2), Vector);
    const Vector high = __builtin_convertvector(load_bytes(from + i * 2 + kLanes), Vector);
    const auto both = _mm512_cvtne2ps_pbh(bits_as<__m512>(high), bits_as<__m512>(low));
    std::memcpy(to + i * kLaneBytes, &both, sizeof both);
  }
#endif
  for (; i < count; i += kLanes) {
    HalfVector pairs{};
    const auto left = static_cast<size_t>(std::min<int64_t>(kLanes, count - i));
    std::memcpy(&pairs, from + i * 2, count - i >= kLanes ? sizeof pairs : left * 2);
    const IntVector bytes = bits_as<IntVector>(widened(pairs));
    const Vector first = __builtin_convertvector((bytes << 24) >> 24, Vector);
    const Vector second = __builtin_convertvector((bytes << 16) >> 24, Vector);
    const BitVector lanes =
        (bits_as<BitVector>(first) >> 16) | (bits_as<BitVector>(second) & 0xffff0000u);
    std::memcpy(to + i * kLaneBytes, &lanes, count - i >= kLanes ? sizeof lanes : left * kLaneBytes);
  }
}
