// Float32 operations for one instruction set: attention over cached keys and values, norm and
// gate. Written with the compiler's vectors of TMK_FLOATS lanes.

#include <cmath>
#include <cstring>

#include "isa.h"
#include "simd_portable.h"

namespace tmk {
namespace {

constexpr int N = TMK_FLOATS;
typedef float vf __attribute__((vector_size(N * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(N * 4), aligned(4), may_alias));

inline vf splat(float x) { return vf{} + x; }
inline vf load(const float* p) { return *(const vf*)p; }
inline void store(float* p, vf v) { *(vf*)p = v; }
inline vf pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

inline float total(vf v) {
  float sum = 0;
  for (int i = 0; i < N; i++) sum += v[i];
  return sum;
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

template <int KV> struct Stored;
template <> struct Stored<0> {
  using T = float;
  static inline vf vec(const float* p) { return load(p); }
  static inline float one(float x) { return x; }
};
template <> struct Stored<1> {
  using T = uint16_t;
  static inline float one(uint16_t h) {
    const uint32_t u = uint32_t(h) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  static inline vf vec(const uint16_t* p) {
    vi o;
    for (int i = 0; i < N; i++) o[i] = int32_t(uint32_t(p[i]) << 16);
    return (vf)o;
  }
};
template <> struct Stored<2> {
  using T = uint16_t;
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

// Scores of G queries (rows g0 …) with the keys of one block.
template <int KV, int G>
inline void score(const AttentionSpan& s, int g0, const typename Stored<KV>::T* k, int from, int to) {
  using S = Stored<KV>;
  const int D = s.head_dim;
  for (int j = from; j < to; j++) {
    const typename S::T* row = k + int64_t(j) * D;
    vf acc[G] = {};
    int i = 0;
    for (; i + N <= D; i += N) {
      const vf kv = S::vec(row + i);
      for (int g = 0; g < G; g++) acc[g] += kv * load(s.q + (g0 + g) * s.q_stride + i);
    }
    float rest[G] = {};
    for (; i < D; i++)
      for (int g = 0; g < G; g++) rest[g] += S::one(row[i]) * s.q[(g0 + g) * s.q_stride + i];
    for (int g = 0; g < G; g++)
      s.scores[(g0 + g) * s.block_size + j] = (total(acc[g]) + rest[g]) * s.scale;
  }
}

// out[g] += Σ p[g][j] · v[j] for columns i … i + M·N - 1.
template <int KV, int G, int M>
inline void weigh(const AttentionSpan& s, int g0, const typename Stored<KV>::T* v, int from, int to,
                  int i) {
  using S = Stored<KV>;
  const int D = s.v_head_dim;
  vf acc[G][M];
  for (int g = 0; g < G; g++)
    for (int m = 0; m < M; m++) acc[g][m] = load(s.out + (g0 + g) * D + i + m * N);
  for (int j = from; j < to; j++) {
    vf row[M];
    for (int m = 0; m < M; m++) row[m] = S::vec(v + int64_t(j) * D + i + m * N);
    for (int g = 0; g < G; g++) {
      const vf p = splat(s.scores[(g0 + g) * s.block_size + j]);
      for (int m = 0; m < M; m++) acc[g][m] += p * row[m];
    }
  }
  for (int g = 0; g < G; g++)
    for (int m = 0; m < M; m++) store(s.out + (g0 + g) * D + i + m * N, acc[g][m]);
}

template <int KV, int G>
inline void attend_block(const AttentionSpan& s, int g0, const uint8_t* kb, const uint8_t* vb,
                         int from, int to) {
  using S = Stored<KV>;
  const int D = s.v_head_dim;
  score<KV, G>(s, g0, (const typename S::T*)kb, from, to);
  for (int g = g0; g < g0 + G; g++) {
    float* p = s.scores + g * s.block_size;
    float largest = s.maxima[g];
    for (int j = from; j < to; j++) {
      if (s.softcap > 0) p[j] = s.softcap * std::tanh(p[j] / s.softcap);
      largest = p[j] > largest ? p[j] : largest;
    }
    if (largest > s.maxima[g]) {
      const float shrink = std::exp(s.maxima[g] - largest);
      s.maxima[g] = largest;
      s.sums[g] *= shrink;
      for (int i = 0; i < D; i++) s.out[g * D + i] *= shrink;
    }
    // Nothing but -inf so far: there is no finite reference point, and every weight is zero.
    const float base = largest == -INFINITY ? 0.0f : largest;
    int j = from;
    vf sum = {};
    for (; j + N <= to; j += N) {
      const vf e = exponential(load(p + j) - base);
      store(p + j, e);
      sum += e;
    }
    float rest = total(sum);
    for (; j < to; j++) rest += p[j] = std::exp(p[j] - base);
    s.sums[g] += rest;
  }
  const typename S::T* v = (const typename S::T*)vb;
  int i = 0;
  for (; i + 2 * N <= D; i += 2 * N) weigh<KV, G, 2>(s, g0, v, from, to, i);
  for (; i + N <= D; i += N) weigh<KV, G, 1>(s, g0, v, from, to, i);
  for (; i < D; i++)
    for (int g = g0; g < g0 + G; g++)
      for (int j = from; j < to; j++)
        s.out[g * D + i] += s.scores[g * s.block_size + j] * S::one(v[int64_t(j) * D + i]);
}

template <int KV>
void attend_as(const AttentionSpan& s) {
  const int bs = s.block_size;
  for (int g = 0; g < s.group; g++) {
    s.maxima[g] = -INFINITY;
    s.sums[g] = 0;
    std::memset(s.out + g * s.v_head_dim, 0, sizeof(float) * s.v_head_dim);
  }
  for (int64_t b = s.begin / bs; b * bs < s.end; b++) {
    const int from = s.begin > b * bs ? int(s.begin - b * bs) : 0;
    const int to = s.end - b * bs < bs ? int(s.end - b * bs) : bs;
    const uint8_t* k = s.k + s.table[b] * s.k_block;
    const uint8_t* v = s.v + s.table[b] * s.v_block;
    int g = 0;
    for (; g + 4 <= s.group; g += 4) attend_block<KV, 4>(s, g, k, v, from, to);
    for (; g + 2 <= s.group; g += 2) attend_block<KV, 2>(s, g, k, v, from, to);
    for (; g < s.group; g++) attend_block<KV, 1>(s, g, k, v, from, to);
  }
}

void attend(const AttentionSpan& s) {
  switch (s.kv_dtype) {
    case 0: return attend_as<0>(s);
    case 1: return attend_as<1>(s);
    default: return attend_as<2>(s);
  }
}

}  // namespace
}  // namespace tmk
