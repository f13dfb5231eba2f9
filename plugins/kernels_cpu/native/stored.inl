// Numbers as they are stored, by kind: 0 float32, 1 bfloat16, 2 float16, and in the KV cache also
// 3 float8 (e4m3) and 4 int8, where each vector has a scale of its own.
#pragma once
#include "floats.inl"

namespace tmk {
namespace {

// What is read times `unit` is the number, where it has a scale the number before scaling.
template <int KV> struct Stored;
template <> struct Stored<0> {
  using T = float;
  static constexpr float unit = 1.0f;
  static constexpr bool scaled = false;
  static inline vf vec(const float* p) { return load(p); }
  static inline float one(float x) { return x; }
};
template <> struct Stored<1> {
  using T = uint16_t;
  static constexpr float unit = 1.0f;
  static constexpr bool scaled = false;
  static inline float one(uint16_t h) {
    const uint32_t u = uint32_t(h) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  static inline vf vec(const uint16_t* p) {
#if TMK_FLOATS == 16 && defined(__AVX512F__)
    const __m256i h = _mm256_loadu_si256((const __m256i*)p);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#elif TMK_FLOATS == 8 && defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
    typedef uint16_t half __attribute__((vector_size(N * 2), aligned(2), may_alias));
    return (vf)(__builtin_convertvector(*(const half*)p, vi) << 16);
#endif
  }
};
template <> struct Stored<2> {
  using T = uint16_t;
  static constexpr float unit = 1.0f;
  static constexpr bool scaled = false;
#ifdef __F16C__
  static inline float one(uint16_t h) { return _cvtsh_ss(h); }
  static inline vf vec(const uint16_t* p) {
#if TMK_FLOATS == 16
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#else
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#endif
  }
#else
  static inline float one(uint16_t h) { return half_to_float(h); }
  static inline vf vec(const uint16_t* p) {
    vf o;
    for (int i = 0; i < N; i++) o[i] = half_to_float(p[i]);
    return o;
  }
#endif
};
template <> struct Stored<3> {
  // As the upper bits of a float16, whose exponents are larger by 8; codes that mean NaN are never
  // written.
  using T = uint8_t;
  static constexpr float unit = 256.0f;
  static constexpr bool scaled = true;
  static inline uint16_t half(uint8_t x) { return uint16_t((x & 0x80) << 8 | (x & 0x7f) << 7); }
  static inline float one(uint8_t x) { return Stored<2>::one(half(x)); }
  static inline vf vec(const uint8_t* p) {
#if TMK_FLOATS == 16 && defined(__AVX512F__)
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
    const __m256i bits = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(~0x4000));
    return (vf)_mm512_cvtph_ps(bits);
#elif TMK_FLOATS == 8 && defined(__F16C__)
    const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p));
    const __m128i bits = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(~0x4000));
    return (vf)_mm256_cvtph_ps(bits);
#else
    vf o;
    for (int i = 0; i < N; i++) o[i] = one(p[i]);
    return o;
#endif
  }
};
template <> struct Stored<4> {
  using T = int8_t;
  static constexpr float unit = 1.0f;
  static constexpr bool scaled = true;
  static inline float one(int8_t x) { return x; }
  static inline vf vec(const int8_t* p) {
#if TMK_FLOATS == 16 && defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif TMK_FLOATS == 8 && defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    vf o;
    for (int i = 0; i < N; i++) o[i] = p[i];
    return o;
#endif
  }
};

inline uint16_t to_bfloat(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(u >> 16 | 64);
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline uint16_t to_half(float x) {
#ifdef __F16C__
  return _cvtss_sh(x, 0);
#else
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint16_t sign = uint16_t(u >> 16 & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) return sign | 0x7e00;
  if (u >= 0x47800000) return sign | 0x7c00;  // 65536 and up
  if (u < 0x38800000) {  // subnormal: adding 0.5 leaves the value in the low bits, rounded
    float f;
    std::memcpy(&f, &u, 4);
    f += 0.5f;
    std::memcpy(&u, &f, 4);
    return uint16_t(sign | (u - 0x3f000000));
  }
  u += 0xfff + (u >> 13 & 1);
  return uint16_t(sign | (u - 0x38000000) >> 13);
#endif
}

// A number of at most 448 in size.
inline uint8_t to_float8(float x) {
  uint32_t u, sum;
  std::memcpy(&u, &x, 4);
  const uint8_t sign = uint8_t(u >> 24 & 0x80);
  u &= 0x7fffffff;
  float f;
  std::memcpy(&f, &u, 4);
  f += 16384.0f;  // whose last bit is worth as much as the smallest float8
  std::memcpy(&sum, &f, 4);
  const uint32_t small = sum - 0x46800000, normal = ((u + 0x7ffff + (u >> 20 & 1)) >> 20) - 960;
  return uint8_t(sign | (u < 0x3c800000 ? small : normal));
}

// A number of at most 127 in size.
inline uint8_t to_int8(float x) {
  const float shifted = x + 12582912.0f;  // rounds to an integer in the low bits
  uint32_t u;
  std::memcpy(&u, &shifted, 4);
  return uint8_t(u - 0x4b400000);
}

// One vector in 8 bits; see tramontane.kernels.eight_bit, which rounds alike.
template <uint8_t (*Round)(float)>
void store_scaled(float limit, const float* x, uint8_t* out, float* scale, int64_t n) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t u;
    std::memcpy(&u, x + i, 4);
    u &= 0x7fffffff;
    bits = u > bits ? u : bits;
  }
  float largest;
  std::memcpy(&largest, &bits, 4);
  const bool finite = bits < 0x7f800000;
  if (!finite || largest < 0x1p-100f) {
    std::memset(out, 0, n);
    *scale = finite ? 0.0f : NAN;
    return;
  }
  const float factor = limit / largest;
  for (int64_t i = 0; i < n; i++) {
    float y = x[i] * factor;
    y = y > limit ? limit : y;
    y = y < -limit ? -limit : y;
    out[i] = Round(y);
  }
  *scale = largest / limit;
}

void store_as(int kind, const float* x, uint8_t* out, float* scale, int64_t n) {
  uint16_t* o = (uint16_t*)out;
  switch (kind) {
    case 0: std::memcpy(out, x, sizeof(float) * n); return;
    case 1:
      for (int64_t i = 0; i < n; i++) o[i] = to_bfloat(x[i]);
      return;
    case 2:
      for (int64_t i = 0; i < n; i++) o[i] = to_half(x[i]);
      return;
    case 3: return store_scaled<to_float8>(448.0f, x, out, scale, n);
    default: return store_scaled<to_int8>(127.0f, x, out, scale, n);
  }
}

}  // namespace
}  // namespace tmk
