// BF16 weights on processors with AVX512_BF16, which sums products of BF16 pairs in float32:
// activations are rounded to BF16 as well. Needs linear.inl before it.
#include "stored.inl"

#if defined(TMK_EMULATED_AVX512)
#define TMK_BRAIN
#else
#define TMK_BRAIN __attribute__((target("avx512bf16")))
#endif

namespace tmk {
namespace {

#if defined(TMK_EMULATED_AVX512)
struct Brains { uint16_t v[32]; };
inline Brains load_brains(const uint16_t* p) {
  Brains o;
  std::memcpy(o.v, p, sizeof o.v);
  return o;
}
inline void round_32(const float* x, uint16_t* out) {
  for (int i = 0; i < 32; i++) out[i] = to_bfloat(x[i]);
}
inline void add_products(vf& sum, const Brains& a, const Brains& b) {
  for (int i = 0; i < N; i++) {
    sum[i] += Stored<1>::one(a.v[2 * i + 1]) * Stored<1>::one(b.v[2 * i + 1]);
    sum[i] += Stored<1>::one(a.v[2 * i]) * Stored<1>::one(b.v[2 * i]);
  }
}
inline v4 totals(const vf (&v)[4]) {
  v4 sums;
  for (int n = 0; n < 4; n++) sums[n] = total(v[n]);
  return sums;
}
#else
using Brains = __m512bh;
TMK_BRAIN inline Brains load_brains(const uint16_t* p) { return (Brains)_mm512_loadu_si512(p); }
TMK_BRAIN inline void round_32(const float* x, uint16_t* out) {
  const Brains both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
  _mm512_storeu_si512(out, (__m512i)both);
}
TMK_BRAIN inline void add_products(vf& sum, Brains a, Brains b) {
  sum = (vf)_mm512_dpbf16_ps((__m512)sum, a, b);
}
// The sums of four vectors' lanes.
inline v4 totals(const vf (&v)[4]) {
  const auto halves = [](const vf& a, const vf& b) {  // of lanes two apart, a's beside b's
    return _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b),
                                          _mm512_unpackhi_ps((__m512)a, (__m512)b)));
  };
  const __m512d a = halves(v[0], v[1]), b = halves(v[2], v[3]);
  return fold((vf)_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(a, b))));
}
#endif

// Four rows, or R of them, `apart` numbers from each other, times T tokens; see `dots`.
template <int R, int T>
TMK_BRAIN inline void brain_dots(const uint16_t* w, int64_t apart, int64_t cols, const uint16_t* x,
                                 float* out, int64_t stride) {
  const int64_t x_stride = brain_stride(cols);
  vf acc[T][4] = {};
  int64_t i = 0;
  for (; i + 32 <= cols; i += 32) {
    Brains rows[R];
    for (int r = 0; r < R; r++) rows[r] = load_brains(w + r * apart + i);
    for (int t = 0; t < T; t++) {
      const Brains v = load_brains(x + t * x_stride + i);
      for (int r = 0; r < R; r++) add_products(acc[t][r], rows[r], v);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    const v4 sums = totals(acc[t]);
    for (int r = 0; r < R; r++) {
      float sum = sums[r];
      for (int64_t j = i; j < cols; j++)
        sum += Stored<1>::one(w[r * apart + j]) * Stored<1>::one(x[t * x_stride + j]);
      out[t * stride + r] = sum;
    }
  }
}

template <int R>
TMK_BRAIN inline void brain_tokens(const uint16_t* w, int64_t apart, int64_t cols, const uint16_t* x, int T,
                                   float* out, int64_t stride) {
  const int64_t x_stride = brain_stride(cols);
  int t = 0;
  for (; t + 4 <= T; t += 4)
    brain_dots<R, 4>(w, apart, cols, x + t * x_stride, out + t * stride, stride);
  for (; t < T; t++) brain_dots<R, 1>(w, apart, cols, x + t * x_stride, out + t * stride, stride);
}

TMK_BRAIN void rounded_rows(const Linear& weight, int64_t row, int rows, int64_t apart,
                            const uint16_t* x, int T, float* out, int64_t stride) {
  const int64_t K = weight.cols;
  const auto* w = (const uint16_t*)weight.data + row * K;
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    brain_tokens<4>(w + r * apart * K, apart * K, K, x, T, out + r, stride);
  for (; r < rows; r++) brain_tokens<1>(w + r * apart * K, apart * K, K, x, T, out + r, stride);
}

// `quantize` of such a processor.
TMK_BRAIN void quantize_or_round(const float* x, const Activations& a, Tile tile, int64_t token,
                                 int super, int64_t first, int64_t last) {
  if (super != kToBrain) return quantize_token(x, a, tile, token, super, first, last);
  const int64_t end = last * -kToBrain < a.cols ? last * -kToBrain : a.cols;
  uint16_t* out = a.brains + token * brain_stride(a.cols);
  int64_t i = first * -kToBrain;
  for (; i + 32 <= end; i += 32) round_32(x + i, out + i);
  for (; i < end; i++) out[i] = to_bfloat(x[i]);
}

}  // namespace
}  // namespace tmk
