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
inline vf pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

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

// e^x for x <= 88, relative error below 2e-7; 0 for x < -87.3 and NaN for NaN.
inline vf exponential(vf x) {
  const vf low = splat(-87.3f);
  const vi tiny = x < low;
  vf z = pick(tiny, low, x);
  const vf shifted = z * 1.44269504f + 12582912.0f;  // rounds to an integer in the low bits
  const vf n = shifted - 12582912.0f;
  const vi power = ((vi)shifted - 0x4b400000) << 23;
  vf r = z - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const vf out = (vf)((vi)p + power);
  const vi fine = x == x;
  return pick(fine, (vf)((vi)out & ~tiny), x);
}

// tanh, absolute error below 2e-7; NaN for NaN.
inline vf hyperbolic_tangent(vf x) {
  const vf top = splat(40.0f);
  const vf z = pick(x > top, top, x);
  return 1.0f - 2.0f / (exponential(z + z) + 1.0f);
}

}  // namespace
}  // namespace tmk
