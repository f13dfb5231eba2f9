// Eight numbers side by side. A lane is a group of weights with a scale of its own, so that no
// fit ever needs a sum across lanes.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 8;
typedef float V __attribute__((vector_size(32)));
typedef int32_t M __attribute__((vector_size(32)));

inline V all(float f) { return V{f, f, f, f, f, f, f, f}; }
inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }
inline V pick(M mask, V yes, V no) { return (V)(((M)yes & mask) | ((M)no & ~mask)); }

#ifdef __AVX2__
inline V vmax(V a, V b) { return (V)_mm256_max_ps((__m256)a, (__m256)b); }
inline V vmin(V a, V b) { return (V)_mm256_min_ps((__m256)a, (__m256)b); }
inline V mad(V a, V b, V c) { return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline V nearest(V x) { return (V)_mm256_round_ps((__m256)x, 8); }
inline uint16_t to_half(float f) { return _cvtss_sh(f, 0); }
inline float from_half(uint16_t h) { return _cvtsh_ss(h); }
#else
inline V vmax(V a, V b) { return pick(a > b, a, b); }
inline V vmin(V a, V b) { return pick(a < b, a, b); }
inline V mad(V a, V b, V c) { return a * b + c; }
// Right for |x| < 2^22; codes are far smaller.
inline V nearest(V x) { return (x + all(12582912.f)) - all(12582912.f); }

inline uint16_t to_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint16_t sign = uint16_t(bits >> 16) & 0x8000;
  const float a = std::fabs(f);
  if (!(a < 65520.f)) return sign | (a == a ? 0x7C00 : 0x7E00);
  if (a < 6.103515625e-05f) return sign | uint16_t(std::nearbyint(a * 16777216.f));
  int exponent;
  const float m = std::frexp(a, &exponent);  // [0.5, 1)
  const uint16_t part = uint16_t(std::nearbyint(m * 2048.f));  // 1024 … 2048
  return sign | uint16_t((exponent + 13) * 1024 + part);
}

inline float from_half(uint16_t h) {
  const int exponent = (h >> 10) & 31, m = h & 1023;
  float a = exponent ? std::ldexp(float(m + 1024), exponent - 25) : std::ldexp(float(m), -24);
  if (exponent == 31) a = m ? NAN : INFINITY;
  return h & 0x8000 ? -a : a;
}
#endif

inline V clamp(V x, float low, float high) { return vmin(vmax(x, all(low)), all(high)); }
inline V vabs(V x) { return (V)((M)x & 0x7FFFFFFF); }
inline V safe_inverse(V x) {
  return pick(x == all(0.f), all(0.f), all(1.f) / x);
}
inline V square_root(V x) {
#ifdef __AVX2__
  return (V)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes; i++) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// A number as the file will have it.
inline float halved(float f) { return from_half(to_half(f)); }
inline void store_half(uint8_t* p, float f) {
  const uint16_t h = to_half(f);
  std::memcpy(p, &h, 2);
}

}  // namespace
