// Float32 operations for one instruction set: norm, rotation, and weights that are plain floats.
#include "stored.inl"

namespace tmk {
namespace {

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

// Weights that are plain floats ------------------------------------------------------------------

// R rows, `apart` numbers from each other, times T tokens. One accumulator a product whatever R and
// T are, so that a token's result does not depend on its neighbours.
template <int KV, int R, int T>
inline void dots(const typename Stored<KV>::T* w, int64_t apart, int64_t cols, const float* x,
                 int64_t x_stride, float* out, int64_t stride) {
  using S = Stored<KV>;
  vf acc[R][T] = {};
  int64_t i = 0;
  const auto step = [&]() __attribute__((always_inline)) {
    vf rows[R];
    for (int r = 0; r < R; r++) rows[r] = S::vec(w + r * apart + i);
    for (int t = 0; t < T; t++) {
      const vf v = load(x + t * x_stride + i);
      for (int r = 0; r < R; r++) acc[r][t] += rows[r] * v;
    }
    i += N;
  };
  constexpr int line = 64 / sizeof(typename S::T);
  while (i + line <= cols) {
    if (N == 8 && T > 1)  // see `fetch_ahead`
      for (int r = 0; r < R; r++) __builtin_prefetch(w + r * apart + i + 4096 / sizeof(typename S::T));
    for (int n = 0; n < line / N; n++) step();
  }
  while (i + N <= cols) step();
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) {
      float sum = total(acc[r][t]);
      for (int64_t j = i; j < cols; j++) sum += S::one(w[r * apart + j]) * x[t * x_stride + j];
      out[t * stride + r] = sum;
    }
}

template <int KV>
void plain_as(const Linear& weight, int64_t row, int rows, int64_t apart, const float* x,
              int64_t x_stride, int T, float* out, int64_t stride) {
  const int64_t K = weight.cols;
  const auto* w = (const typename Stored<KV>::T*)weight.data + row * K;
  apart *= K;
  int t = 0;
  for (; t + 4 <= T; t += 4) {
    const float* xt = x + t * x_stride;
    float* o = out + t * stride;
    int r = 0;
    for (; r + 2 <= rows; r += 2) dots<KV, 2, 4>(w + r * apart, apart, K, xt, x_stride, o + r, stride);
    for (; r < rows; r++) dots<KV, 1, 4>(w + r * apart, apart, K, xt, x_stride, o + r, stride);
  }
  for (; t < T; t++) {
    const float* xt = x + t * x_stride;
    float* o = out + t * stride;
    int r = 0;
    for (; r + 4 <= rows; r += 4) dots<KV, 4, 1>(w + r * apart, apart, K, xt, x_stride, o + r, stride);
    for (; r < rows; r++) dots<KV, 1, 1>(w + r * apart, apart, K, xt, x_stride, o + r, stride);
  }
}

void plain(const Linear& w, int64_t row, int rows, int64_t apart, const float* x, int64_t x_stride,
           int tokens, float* out, int64_t stride) {
  const auto fn = w.type == kF32 ? plain_as<0> : w.type == kBF16 ? plain_as<1> : plain_as<2>;
  fn(w, row, rows, apart, x, x_stride, tokens, out, stride);
}

}  // namespace
}  // namespace tmk
