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
inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }

inline float sum_of(Vector x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

inline int32_t sum_of(IntVector x) {
  int32_t sum = 0;
  for (int i = 0; i < kLanes; i++) sum += x[i];
  return sum;
}

inline float maximum_of(Vector x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int i = 1; i < kLanes; i++) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

// ---- bfloat16 -------------------------------------------------------------------------------------

inline Vector from_bfloat16(HalfVector bits) {
#if defined(__AVX512F__)
  // GCC 12 takes five instructions for the conversion below. (Masked, as its plain intrinsic warns.)
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(bits));
  return bits_as<Vector>(bits_as<BitVector>(wide) << 16);
#else
  return bits_as<Vector>(__builtin_convertvector(bits, BitVector) << 16);
#endif
}
inline Vector load_bfloat16(const uint16_t* from) {
  return from_bfloat16(load_as<HalfVector>(from));
}
inline Vector load_bfloat16_part(const uint16_t* from, int64_t count) {
  if (count >= kLanes) return load_bfloat16(from);
  HalfVector bits{};
  std::memcpy(&bits, from, 2 * static_cast<size_t>(count));
  return from_bfloat16(bits);
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
  x = x < -87.0f ? splat(-87.0f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers
  Vector n = (x * 1.44269504f + magic) - magic;
  Vector r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (r * r) * p + (r + 1.0f);
  IntVector power = (__builtin_convertvector(n, IntVector) + 127) << 23;
  return p * bits_as<Vector>(power);
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
    case Activation::kRelu: return maximum(x, Vector{});
  }
  return x;
}
