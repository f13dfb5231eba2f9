// Float32 operations for one instruction set: attention over cached keys and values, norm, rotation,
// and weights that are plain floats. Written with the compiler's vectors of TMK_FLOATS lanes.

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

typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t i4 __attribute__((vector_size(16), aligned(4), may_alias));

inline v4 fold(vf v) {
  v4 part[N / 4];
  std::memcpy(part, &v, sizeof v);
  for (int n = N / 8; n; n /= 2)
    for (int i = 0; i < n; i++) part[i] += part[i + n];
  return part[0];
}

// Sums of the lanes of four vectors, added in the order of `total`.
inline v4 totals(vf a, vf b, vf c, vf d) {
  const v4 p = fold(a), q = fold(b), r = fold(c), s = fold(d);
  const v4 pq = __builtin_shuffle(p, q, i4{0, 4, 1, 5}) + __builtin_shuffle(p, q, i4{2, 6, 3, 7});
  const v4 rs = __builtin_shuffle(r, s, i4{0, 4, 1, 5}) + __builtin_shuffle(r, s, i4{2, 6, 3, 7});
  return __builtin_shuffle(pq, rs, i4{0, 1, 4, 5}) + __builtin_shuffle(pq, rs, i4{2, 3, 6, 7});
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
    typedef uint16_t half __attribute__((vector_size(N * 2), aligned(2), may_alias));
    return (vf)(__builtin_convertvector(*(const half*)p, vi) << 16);
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

// Scores of G queries (rows g0 …) with J keys of one block.
template <int KV, int G, int J>
inline void score(const AttentionSpan& s, int g0, const typename Stored<KV>::T* k, int j) {
  using S = Stored<KV>;
  const int D = s.head_dim;
  const typename S::T* row = k + int64_t(j) * D;
  const float* q = s.q + g0 * s.q_stride;
  vf acc[J * G] = {};
  int i = 0;
  for (; i + N <= D; i += N) {
    vf keys[J];
    for (int m = 0; m < J; m++) keys[m] = S::vec(row + m * D + i);
    for (int g = 0; g < G; g++) {
      const vf x = load(q + g * s.q_stride + i);
      for (int m = 0; m < J; m++) acc[m * G + g] += keys[m] * x;
    }
  }
  float sum[J * G];
  if constexpr (J * G % 4 == 0) {
    for (int n = 0; n < J * G; n += 4) {
      const v4 four = totals(acc[n], acc[n + 1], acc[n + 2], acc[n + 3]);
      std::memcpy(sum + n, &four, sizeof four);
    }
  } else {
    for (int n = 0; n < J * G; n++) sum[n] = total(acc[n]);
  }
  for (int m = 0; m < J; m++)
    for (int g = 0; g < G; g++) {
      float rest = 0;
      for (int d = i; d < D; d++) rest += S::one(row[m * D + d]) * q[g * s.q_stride + d];
      s.scores[(g0 + g) * s.block_size + j + m] = (sum[m * G + g] + rest) * s.scale;
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
  constexpr int J = 8 / G;
  int key = from;
  for (; key + J <= to; key += J) score<KV, G, J>(s, g0, (const typename S::T*)kb, key);
  for (; key < to; key++) score<KV, G, 1>(s, g0, (const typename S::T*)kb, key);
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
  if constexpr (G < 4)
    for (; i + 4 * N <= D; i += 4 * N) weigh<KV, G, 4>(s, g0, v, from, to, i);
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

// Norm, rotation ---------------------------------------------------------------------------------

void norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  vf acc[4] = {};
  int64_t i = 0;
  for (; i + 4 * N <= n; i += 4 * N)
    for (int m = 0; m < 4; m++) acc[m] += load(x + i + m * N) * load(x + i + m * N);
  float sum = total((acc[0] + acc[1]) + (acc[2] + acc[3]));
  for (; i < n; i++) sum += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(sum / float(n) + eps);
  for (i = 0; i + N <= n; i += N) store(out + i, load(x + i) * factor * load(weight + i));
  for (; i < n; i++) out[i] = x[i] * factor * weight[i];
}

// `sin` has its first half negated. Rotated pairs come out as halves.
void rotate(float* x, const float* cos, const float* sin, int n, bool adjacent) {
  float copy[512];
  const int half = n / 2;
  for (int i = 0; i < half; i++) {
    copy[i] = adjacent ? x[2 * i] : x[i];
    copy[half + i] = adjacent ? x[2 * i + 1] : x[half + i];
  }
  for (int i = 0; i < half; i++) {
    x[i] = copy[i] * cos[i] + copy[half + i] * sin[i];
    x[half + i] = copy[half + i] * cos[half + i] + copy[i] * sin[half + i];
  }
}

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

void store_as(int kv_dtype, const float* x, uint8_t* out, int64_t n) {
  uint16_t* o = (uint16_t*)out;
  if (kv_dtype == 0) {
    std::memcpy(out, x, sizeof(float) * n);
  } else if (kv_dtype == 1) {
    for (int64_t i = 0; i < n; i++) o[i] = to_bfloat(x[i]);
  } else {
    for (int64_t i = 0; i < n; i++) o[i] = to_half(x[i]);
  }
}

// Weights that are plain floats ------------------------------------------------------------------

// R rows times T tokens. One accumulator a product whatever R and T are, so that a token's result
// does not depend on its neighbours.
template <int KV, int R, int T>
inline void dots(const typename Stored<KV>::T* w, int64_t cols, const float* x, int64_t x_stride,
                 float* out, int64_t stride) {
  using S = Stored<KV>;
  vf acc[R][T] = {};
  int64_t i = 0;
  const auto step = [&]() __attribute__((always_inline)) {
    vf rows[R];
    for (int r = 0; r < R; r++) rows[r] = S::vec(w + r * cols + i);
    for (int t = 0; t < T; t++) {
      const vf v = load(x + t * x_stride + i);
      for (int r = 0; r < R; r++) acc[r][t] += rows[r] * v;
    }
    i += N;
  };
  constexpr int line = 64 / sizeof(typename S::T);
  while (i + line <= cols) {
    if constexpr (T == 1)  // a row is no longer than a page or two, so the processor sees no stream
      for (int r = 0; r < R; r++) __builtin_prefetch(w + (R + r) * cols + i);
    for (int n = 0; n < line / N; n++) step();
  }
  while (i + N <= cols) step();
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) {
      float sum = total(acc[r][t]);
      for (int64_t j = i; j < cols; j++) sum += S::one(w[r * cols + j]) * x[t * x_stride + j];
      out[t * stride + r] = sum;
    }
}

template <int KV>
void plain_as(const uint8_t* data, int rows, int64_t cols, const float* x, int64_t x_stride, int T,
              float* out, int64_t stride) {
  const auto* w = (const typename Stored<KV>::T*)data;
  int t = 0;
  for (; t + 4 <= T; t += 4) {
    const float* xt = x + t * x_stride;
    int r = 0;
    for (; r + 2 <= rows; r += 2) dots<KV, 2, 4>(w + r * cols, cols, xt, x_stride, out + t * stride + r, stride);
    for (; r < rows; r++) dots<KV, 1, 4>(w + r * cols, cols, xt, x_stride, out + t * stride + r, stride);
  }
  for (; t < T; t++) {
    const float* xt = x + t * x_stride;
    int r = 0;
    for (; r + 4 <= rows; r += 4) dots<KV, 4, 1>(w + r * cols, cols, xt, x_stride, out + t * stride + r, stride);
    for (; r < rows; r++) dots<KV, 1, 1>(w + r * cols, cols, xt, x_stride, out + t * stride + r, stride);
  }
}

void plain(int type, const uint8_t* w, int rows, int64_t cols, const float* x, int64_t x_stride,
           int tokens, float* out, int64_t stride) {
  switch (type) {
    case kF32: return plain_as<0>(w, rows, cols, x, x_stride, tokens, out, stride);
    case kBF16: return plain_as<1>(w, rows, cols, x, x_stride, tokens, out, stride);
    default: return plain_as<2>(w, rows, cols, x, x_stride, tokens, out, stride);
  }
}

}  // namespace
}  // namespace tmk
