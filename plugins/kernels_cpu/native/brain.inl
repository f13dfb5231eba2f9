// BF16 weights on processors with AVX512_BF16, which sums products of BF16 pairs in float32:
// activations are rounded to BF16 as well.
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
inline Brains round_to_brains(const float* x) {
  Brains o;
  for (int i = 0; i < 32; i++) o.v[i] = to_bfloat(x[i]);
  return o;
}
inline void add_products(vf& sum, const Brains& a, const Brains& b) {
  for (int i = 0; i < N; i++) {
    sum[i] += Stored<1>::one(a.v[2 * i + 1]) * Stored<1>::one(b.v[2 * i + 1]);
    sum[i] += Stored<1>::one(a.v[2 * i]) * Stored<1>::one(b.v[2 * i]);
  }
}
#else
using Brains = __m512bh;
TMK_BRAIN inline Brains load_brains(const uint16_t* p) { return (Brains)_mm512_loadu_si512(p); }
TMK_BRAIN inline Brains round_to_brains(const float* x) {
  return _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
}
TMK_BRAIN inline void add_products(vf& sum, Brains a, Brains b) {
  sum = (vf)_mm512_dpbf16_ps((__m512)sum, a, b);
}
#endif

// R rows, `apart` numbers from each other, times T tokens; see `dots`.
template <int R, int T>
TMK_BRAIN inline void brain_dots(const uint16_t* w, int64_t apart, int64_t cols, const float* x,
                                 int64_t x_stride, float* out, int64_t stride) {
  vf acc[R][T] = {};
  int64_t i = 0;
  for (; i + 32 <= cols; i += 32) {
    Brains rows[R];
    for (int r = 0; r < R; r++) rows[r] = load_brains(w + r * apart + i);
    for (int t = 0; t < T; t++) {
      const Brains v = round_to_brains(x + t * x_stride + i);
      for (int r = 0; r < R; r++) add_products(acc[r][t], rows[r], v);
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) {
      float sum = total(acc[r][t]);
      for (int64_t j = i; j < cols; j++)
        sum += Stored<1>::one(w[r * apart + j]) * Stored<1>::one(to_bfloat(x[t * x_stride + j]));
      out[t * stride + r] = sum;
    }
}

template <int T>
TMK_BRAIN inline void brain_rows(const uint16_t* w, int rows, int64_t apart, int64_t cols,
                                 const float* x, int64_t x_stride, float* out, int64_t stride) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    brain_dots<4, T>(w + r * apart, apart, cols, x, x_stride, out + r, stride);
  for (; r < rows; r++) brain_dots<1, T>(w + r * apart, apart, cols, x, x_stride, out + r, stride);
}

// `plain` of such a processor.
TMK_BRAIN void plain_or_brain(const Linear& weight, int64_t row, int rows, int64_t apart,
                              const float* x, int64_t x_stride, int T, float* out, int64_t stride) {
  if (weight.type != kBF16) return plain(weight, row, rows, apart, x, x_stride, T, out, stride);
  const int64_t K = weight.cols;
  const auto* w = (const uint16_t*)weight.data + row * K;
  int t = 0;
  for (; t + 4 <= T; t += 4)
    brain_rows<4>(w, rows, apart * K, K, x + t * x_stride, x_stride, out + t * stride, stride);
  for (; t < T; t++)
    brain_rows<1>(w, rows, apart * K, K, x + t * x_stride, x_stride, out + t * stride, stride);
}

}  // namespace
}  // namespace tmk
