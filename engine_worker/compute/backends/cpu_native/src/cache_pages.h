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
