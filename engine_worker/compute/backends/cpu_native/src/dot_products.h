// How weights are multiplied: the one file that knows instructions. Include inside the namespace.
//
// A product multiplies one group of inputs at a time: `load` takes one lane of four bytes for each
// of kLanes outputs, `broadcast` one row's inputs of that group, and `multiply_add` adds their
// products. `Input` is how a row's group lies in packed activations; `put` writes two bfloat16's
// worth of them, and `put_side_by_side` kLanes inputs of one row without others between them.
// Sums go in the order of the inputs whatever the number of rows.

// So few rows, or fewer, are multiplied faster than memory brings what they are multiplied with.
constexpr int kRowsThatWait = 8;
constexpr int64_t kPrefetchBytes = 1024;

struct Float32Product {
  using Input = float;
  using Weight = Vector;
  using Broadcast = Vector;
  using Sum = Vector;
  static constexpr int kInputs = 1;  // of a group
  static constexpr int kMaxRows = kLanes == 16 ? 14 : 6;

  static Weight load(const char* from) { return load_as<Vector>(from); }
  static Broadcast broadcast(const Input* x) { return splat(*x); }
  static void multiply_add(Sum& sum, Weight w, Broadcast x) { sum += w * x; }
  static void put(Input* to, int64_t stride, const float* values, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i * stride] = values[i];
  }
  static void put_side_by_side(Input* to, Vector values) { store(to, values); }
};

#if defined(__AVX512BF16__)

struct Bfloat16Product {
  using Input = uint32_t;
  using Weight = __m512i;
  using Broadcast = __m512i;
  using Sum = __m512;
  static constexpr int kInputs = 2;
  static constexpr int kMaxRows = 14;

  static Weight load(const char* from) { return _mm512_loadu_si512(from); }
  static Broadcast broadcast(const Input* x) { return _mm512_set1_epi32(load_as<int32_t>(x)); }
  static void multiply_add(Sum& sum, Weight w, Broadcast x) {
    // Not the intrinsic: GCC 12 copies sums to and fro around it.
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  }
  static void put(Input* to, int64_t stride, const float* values, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) {
      alignas(32) uint32_t pairs[kLanes / 2];
      HalfVector bits = to_bfloat16(load_part(values + i, count - i));
      std::memcpy(pairs, &bits, sizeof bits);
      if (count - i >= kLanes) {
        for (int64_t k = 0; k < kLanes / 2; k++) to[(i / 2 + k) * stride] = pairs[k];
      } else {
        for (int64_t k = 0; k < (count - i + 1) / 2; k++) to[(i / 2 + k) * stride] = pairs[k];
      }
    }
  }
  static void put_side_by_side(Input* to, Vector values) {
    HalfVector bits = to_bfloat16(values);
    std::memcpy(to, &bits, sizeof bits);
  }
};

#else

struct Bfloat16Product {  // As float32, after the same rounding of the activations.
  struct Input {
    float first, second;
  };
  struct Weight {
    Vector first, second;
  };
  using Broadcast = Weight;
  using Sum = Vector;
  static constexpr int kInputs = 2;
  static constexpr int kMaxRows = kLanes == 16 ? 12 : 4;

  static Weight load(const char* from) {
    BitVector bits = load_as<BitVector>(from);
    return {bits_as<Vector>(bits << 16), bits_as<Vector>(bits & 0xffff0000u)};
  }
  static Broadcast broadcast(const Input* x) { return {splat(x->first), splat(x->second)}; }
  static void multiply_add(Sum& sum, const Weight& w, const Broadcast& x) {
    sum += w.first * x.first;
    sum += w.second * x.second;
  }
  static void put(Input* to, int64_t stride, const float* values, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) {
      float rounded[kLanes];
      store(rounded, from_bfloat16(to_bfloat16(load_part(values + i, count - i))));
      for (int64_t k = 0; k < kLanes && i + k < count; k += 2) {
        to[(i + k) / 2 * stride] = {rounded[k], rounded[k + 1]};
      }
    }
  }
  static void put_side_by_side(Input* to, Vector values) {
    store(&to->first, from_bfloat16(to_bfloat16(values)));
  }
};

#endif

// Four weights as bytes 0 to 255 times four inputs as int8, summed in 32 bits. kIsSmall: no weight
// is above 127, so that two products fit 16 bits, which AVX2 multiplies faster.
template <bool kIsSmall>
struct IntegerProduct {
  using Input = uint32_t;
  using Sum = IntVector;
  static constexpr int kInputs = 4;

#if defined(__AVX512VNNI__)
  using Weight = __m512i;
  using Broadcast = __m512i;
  static constexpr int kMaxRows = 14;
  static Weight prepare(IntVector bytes) { return bits_as<Weight>(bytes); }
  static Broadcast broadcast(const Input* x) {
    return _mm512_set1_epi32(static_cast<int32_t>(*x));
  }
  static void multiply_add(Sum& sum, Weight w, Broadcast x) {
    // Not the intrinsic, as above.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  }
#elif defined(__AVXVNNI__)
  using Weight = __m256i;
  using Broadcast = __m256i;
  static constexpr int kMaxRows = 6;
  static Weight prepare(IntVector bytes) { return bits_as<Weight>(bytes); }
  static Broadcast broadcast(const Input* x) {
    return _mm256_set1_epi32(static_cast<int32_t>(*x));
  }
  static void multiply_add(Sum& sum, Weight w, Broadcast x) {
    sum = bits_as<Sum>(_mm256_dpbusd_avx_epi32(bits_as<__m256i>(sum), w, x));
  }
#elif defined(__AVX2__)
  // Multiplies pairs of 16 bits: bytes 0 and 2 of each lane, then 1 and 3.
  typedef int16_t Shorts __attribute__((vector_size(4 * kLanes)));
  struct Weight {
    IntVector even, odd;
  };
  struct Broadcast {
    IntVector even, odd;
  };
  static constexpr int kMaxRows = kLanes == 16 ? 8 : 4;
  static Weight prepare(IntVector bytes) {
    if (kIsSmall) return {bytes, bytes};
    return {bytes & 0x00ff00ff, bits_as<IntVector>((bits_as<BitVector>(bytes) >> 8) & 0x00ff00ff)};
  }
  static Broadcast broadcast(const Input* x) {
    IntVector bytes = static_cast<int32_t>(*x) - IntVector{};
    if (kIsSmall) return {bytes, bytes};
    Shorts shorts = bits_as<Shorts>(bytes);
    return {bits_as<IntVector>((shorts << 8) >> 8), bits_as<IntVector>(shorts >> 8)};
  }
  static void multiply_add(Sum& sum, const Weight& w, const Broadcast& x) {
#if defined(__AVX512BW__)
    if (kIsSmall) {
      __m512i pairs = _mm512_maddubs_epi16(bits_as<__m512i>(w.even), bits_as<__m512i>(x.even));
      sum += bits_as<Sum>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
      return;
    }
    sum += bits_as<Sum>(_mm512_madd_epi16(bits_as<__m512i>(w.even), bits_as<__m512i>(x.even)));
    sum += bits_as<Sum>(_mm512_madd_epi16(bits_as<__m512i>(w.odd), bits_as<__m512i>(x.odd)));
#else
    if (kIsSmall) {
      __m256i pairs = _mm256_maddubs_epi16(bits_as<__m256i>(w.even), bits_as<__m256i>(x.even));
      sum += bits_as<Sum>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      return;
    }
    sum += bits_as<Sum>(_mm256_madd_epi16(bits_as<__m256i>(w.even), bits_as<__m256i>(x.even)));
    sum += bits_as<Sum>(_mm256_madd_epi16(bits_as<__m256i>(w.odd), bits_as<__m256i>(x.odd)));
#endif
  }
#else
  struct Weight {
    IntVector bytes[4];
  };
  struct Broadcast {
    int32_t bytes[4];
  };
  static constexpr int kMaxRows = 2;
  static Weight prepare(IntVector bytes) {
    return {{bytes & 0xff, (bytes >> 8) & 0xff, (bytes >> 16) & 0xff, (bytes >> 24) & 0xff}};
  }
  static Broadcast broadcast(const Input* x) {
    int8_t bytes[4];
    std::memcpy(bytes, x, 4);
    return {{bytes[0], bytes[1], bytes[2], bytes[3]}};
  }
  static void multiply_add(Sum& sum, const Weight& w, const Broadcast& x) {
    for (int i = 0; i < 4; i++) sum += w.bytes[i] * x.bytes[i];
  }
#endif

  static Weight load(const char* from) { return prepare(load_as<IntVector>(from)); }
};

// Adds `num_groups` groups of kRows rows times kVectors vectors of outputs to the sums. Rows and
// groups of `x` stand so many inputs apart. The last group's weights are at `last`, unless that is
// null.
//
// `ahead` is what is read next, laid out alike: it is asked for while this is computed, unless it
// is null. To ask beyond the end of anything is no access to it.
//
// kRunGroups: rows stand side by side with so many groups of each, instead of so far apart.
template <class Product, int kRows, int kVectors, bool kPrefetches = (kRows <= kRowsThatWait),
          uint64_t kRunGroups = 0>
inline void multiply_groups(const typename Product::Input* x, int64_t row_stride,
                            int64_t group_stride, const char* weights, int64_t stride,
                            int64_t num_groups, const char* last, const char* ahead,
                            typename Product::Sum (&sums)[kRows][kVectors]) {
  constexpr int64_t kVectorBytes = kLaneBytes * kLanes;
  for (int64_t group = 0; group < num_groups; group++) {
    const char* from = last && group + 1 == num_groups ? last : weights + group * stride;
    const auto* inputs = x + group * group_stride;
    if constexpr (kRunGroups > 0) {
      const auto run = static_cast<uint64_t>(group) / kRunGroups;
      inputs = x + group + run * ((kRows - 1) * kRunGroups);
      row_stride = kRunGroups;
    }
    typename Product::Weight w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      w[v] = Product::load(from + v * kVectorBytes);
      if (kPrefetches) __builtin_prefetch(ahead + group * stride + v * kVectorBytes, 0, 2);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; row++) {
      typename Product::Broadcast b = Product::broadcast(inputs + row * row_stride);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) Product::multiply_add(sums[row][v], w[v], b);
    }
  }
}
