// The compiler's vectors of TMK_FLOATS lanes, and what all float32 operations are written with.
#pragma once
#include <cmath>
#include <cstring>

#include "isa.h"
#include "simd_portable.h"

namespace tmk {
namespace {

constexpr int N = TMK_FLOATS;
typedef float vf __attribute__((vector_size(N * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(N * 4), aligned(4), may_alias));

inline vf splat(float x) { return x - vf{}; }  // subtracting zero costs no instruction
inline vf load(const float* p) { return *(const vf*)p; }
inline void store(float* p, vf v) { *(vf*)p = v; }
// The four numbers at p, in every four lanes.
inline vf fours(const float* p) {
#if TMK_FLOATS == 16
  return (vf)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif TMK_FLOATS == 8
  return (vf)_mm256_broadcast_ps((const __m128*)p);
#else
  return load(p);
#endif
}
inline vf pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
// The larger of both, b where one is NaN.
inline vf larger(vf a, vf b) {
#if TMK_FLOATS == 16
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif TMK_FLOATS == 8
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return pick(a > b, a, b);
#endif
}

typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));

inline v4 fold(vf v) {
  v4 part[N / 4];
  std::memcpy(part, &v, sizeof v);
  for (int n = N / 8; n; n /= 2)
    for (int i = 0; i < n; i++) part[i] += part[i + n];
  return part[0];
}

inline float total(vf v) {
  const v4 p = fold(v);
  return (p[0] + p[2]) + (p[1] + p[3]);
}

// e^x for x <= 88, relative error below 1e-7; 0 for x < -87.3 and NaN for NaN.
inline vf exponential(vf x) {
  const vf low = splat(-87.3f);
  const vf z = larger(low, x);
  const vf shifted = z * 1.44269504f + 12582912.0f;  // rounds to an integer in the low bits
  const vf n = shifted - 12582912.0f;
  vf r = z - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.381459879e-3f);  // minimax in relative error, 3e-9
  p = p * r + 8.368716575e-3f;
  p = p * r + 4.166838899e-2f;
  p = p * r + 1.666652113e-1f;
  p = p * r + 4.999999404e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const vf power = (vf)(((vi)shifted << 23) + 0x3f800000);
  return (vf)((vi)(p * power) & ~(x < low));
}

// tanh, absolute error below 2e-7; NaN for NaN.
inline vf hyperbolic_tangent(vf x) {
  const vf top = splat(40.0f);
  const vf z = pick(x > top, top, x);
  return 1.0f - 2.0f / (exponential(z + z) + 1.0f);
}

}  // namespace
}  // namespace tmk
