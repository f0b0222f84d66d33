// Vectors of float32 as wide as the level's registers, and what is computed with them.
//
// Written with the vector types of GCC and Clang: one source for AVX-512, AVX2, SSE2 and NEON. Only
// dot_products.h names instructions. Include this inside the level's namespace.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVector __attribute__((vector_size(4 * kLanes)));
typedef uint32_t BitVector __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVector __attribute__((vector_size(2 * kLanes)));
typedef int8_t ByteVector __attribute__((vector_size(kLanes)));

template <class T>
inline T load_as(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline Vector splat(float x) { return x - Vector{}; }
inline Vector load(const float* from) { return load_as<Vector>(from); }
inline void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

// Past the caches: for much that nobody reads soon, to an address that is a multiple of the vector's
// size. Before another thread reads it, `end_streaming`.
inline void stream(float* to, Vector x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, bits_as<__m512>(x));
#elif defined(__AVX2__)
  _mm256_stream_ps(to, bits_as<__m256>(x));
#else
  store(to, x);
#endif
}
inline void end_streaming() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// The first `count` lanes; zeros behind them.
inline Vector load_part(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector x{};
  std::memcpy(&x, from, 4 * static_cast<size_t>(count));
  return x;
}
inline void store_part(float* to, Vector x, int64_t count) {
  if (count >= kLanes) return store(to, x);
  std::memcpy(to, &x, 4 * static_cast<size_t>(count));
}

inline Vector absolute(Vector x) { return bits_as<Vector>(bits_as<BitVector>(x) & 0x7fffffffu); }
// The second one where either is NaN. GCC 12 compares and blends for the conditions below.
inline Vector maximum(Vector a, Vector b) {
#if defined(__AVX512F__)
  return bits_as<Vector>(_mm512_maskz_max_ps(0xffff, bits_as<__m512>(a), bits_as<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}
inline Vector minimum(Vector a, Vector b) {
#if defined(__AVX512F__)
  return bits_as<Vector>(_mm512_maskz_min_ps(0xffff, bits_as<__m512>(a), bits_as<__m512>(b)));
#else
  return a < b ? a : b;
#endif
}

// One number of all lanes, halving the vector in registers.
template <class V, class Combine>
inline auto reduced(V x, const Combine& combine) {
  using Lane = std::decay_t<decltype(x[0])>;
  if constexpr (sizeof(V) == 2 * sizeof(Lane)) {
    return combine(x[0], x[1]);
  } else {
    typedef Lane Half __attribute__((vector_size(sizeof(V) / 2)));
    Half halves[2];
    std::memcpy(halves, &x, sizeof x);
    return reduced(static_cast<Half>(combine(halves[0], halves[1])), combine);
  }
}

inline float sum_of(Vector x) {
  return reduced(x, [](auto a, auto b) { return a + b; });
}

inline int32_t sum_of(IntVector x) {
  int32_t sum = 0;
  for (int i = 0; i < kLanes; i++) sum += x[i];
  return sum;
}

inline float maximum_of(Vector x) {
  return reduced(x, [](auto a, auto b) { return a > b ? a : b; });
}

// ---- bfloat16 -------------------------------------------------------------------------------------

// Each with 16 bits of zeros above it.
inline BitVector widened(HalfVector bits) {
#if defined(__AVX512F__)
  // GCC 12 takes five instructions for the conversion below. (Masked, as its plain intrinsic warns.)
  return bits_as<BitVector>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(bits)));
#else
  return __builtin_convertvector(bits, BitVector);
#endif
}

inline Vector from_bfloat16(HalfVector bits) { return bits_as<Vector>(widened(bits) << 16); }
inline Vector load_bfloat16(const uint16_t* from) {
  return from_bfloat16(load_as<HalfVector>(from));
}

// To the nearest, ties to even; NaN stays NaN.
inline HalfVector to_bfloat16(Vector x) {
#if defined(__AVX512BF16__)
  return bits_as<HalfVector>(_mm512_cvtneps_pbh(bits_as<__m512>(x)));  // tiny numbers become 0
#else
  BitVector bits = bits_as<BitVector>(x);
  BitVector rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  BitVector quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector(x == x ? rounded : quiet, HalfVector);
#endif
}

// ---- exponentials -----------------------------------------------------------------------------------

// Relative error below 2e-7 (the polynomial of Cephes' expf) between -87 and 88, and as at these
// beyond them. NaN stays NaN.
inline Vector exponential(Vector x) {
  x = minimum(splat(88.0f), maximum(splat(-87.0f), x));
  const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers
  const Vector shifted = x * 1.44269504f + magic;
  const Vector n = shifted - magic;
  Vector r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (r * r) * p + (r + 1.0f);
  return bits_as<Vector>(bits_as<BitVector>(p) + (bits_as<BitVector>(shifted) << 23));
}

// 2^x, relative error below 2e-7; x at most 126, and as at -126 below. NaN stays NaN.
inline Vector exponential_of_two(Vector x) {
  x = maximum(splat(-126.0f), x);
  const Vector magic = splat(12582912.0f);  // as above
  const Vector shifted = x + magic;
  const Vector r = x - (shifted - magic);
  // The least maximal error of 1 + r * polynomial, found by Lawson's algorithm.
  Vector p = splat(1.326472712e-3f);
  p = p * r + 9.671512645e-3f;
  p = p * r + 5.550733743e-2f;
  p = p * r + 2.402224209e-1f;
  p = p * r + 6.931469776e-1f;
  p = p * r + 1.0f;
  return bits_as<Vector>(bits_as<BitVector>(p) + (bits_as<BitVector>(shifted) << 23));
}

inline Vector tanh_of(Vector x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

inline Vector erf_of(Vector x) {
  // Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7.
  Vector a = x < 0.0f ? -x : x;
  Vector t = 1.0f / (a * 0.3275911f + 1.0f);
  Vector p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  Vector y = 1.0f - p * t * exponential(-a * a);
  return x < 0.0f ? -y : y;
}

inline Vector activate(Activation activation, Vector x) {
  switch (activation) {
    case Activation::kSilu: return x / (exponential(-x) + 1.0f);
    case Activation::kGeluTanh:
      return x * 0.5f * (tanh_of((x * x * x * 0.044715f + x) * 0.7978845608f) + 1.0f);
    case Activation::kGelu: return x * 0.5f * (erf_of(x * 0.7071067812f) + 1.0f);
    case Activation::kRelu: return maximum(Vector{}, x);  // NaN stays NaN
    case Activation::kQuickGelu: return x / (exponential(x * -1.702f) + 1.0f);
    case Activation::kReluSquared: x = maximum(Vector{}, x); return x * x;
  }
  return x;
}
