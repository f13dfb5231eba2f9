// Weights whose codes stay as they are stored and are widened to floats in registers: 8-bit floats,
// codes into a table, and codes whose scales are shared across rows. Activations are not rounded.
// Needs float_ops.inl before it.
#include <cmath>
#include <cstring>

#include "isa.h"

namespace tmk {
namespace {

inline vi splat_int(int32_t x) { return vi{} + x; }

#if TMK_FLOATS == 8 && defined(__AVX2__)
inline vi widen_bytes(const uint8_t* p) {
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
inline vi widen_signed(const uint8_t* p) {
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
#elif TMK_FLOATS == 16 && defined(__AVX512F__)
inline vi widen_bytes(const uint8_t* p) {
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
inline vi widen_signed(const uint8_t* p) {
  return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
#else
template <class Byte>
inline vi widen_as(const uint8_t* p) {
  typedef Byte bytes __attribute__((vector_size(N), aligned(1), may_alias));
  return __builtin_convertvector(*(const bytes*)p, vi);
}
inline vi widen_bytes(const uint8_t* p) { return widen_as<uint8_t>(p); }
inline vi widen_signed(const uint8_t* p) { return widen_as<int8_t>(p); }
#endif

// E4M3 (arXiv:2209.05433) without its NaN, as the upper bits of a float32, whose exponent is larger
// by 120. Activations are raised half the way, so that neither they nor products leave the range.
struct E4M3 {
  static constexpr int per_byte = 1;
  static constexpr float factor = 0x1p120f, raised = 0x1p60f;
  explicit E4M3(const Linear&) {}
  inline float one(const uint8_t* p, int64_t i) const {
    const uint32_t bits = uint32_t(p[i] & 0x7f) << 20 | uint32_t(p[i] & 0x80) << 24;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  inline vf vec(const uint8_t* p, int64_t i) const {
    return (vf)(widen_signed(p + i) << 20 & splat_int(int32_t(0x87f00000)));  // the sign is above
  }
};

// Codes of four bits, the first of two in the upper half of a byte.
struct Book {
  static constexpr int per_byte = 2;
  static constexpr float factor = 1.0f, raised = 1.0f;
  const float* book;
  explicit Book(const Linear& w) : book(w.beside->book) {}
  inline float one(const uint8_t* p, int64_t i) const {
    return book[p[i / 2] >> (i % 2 ? 0 : 4) & 15];
  }
  inline vf vec(const uint8_t* p, int64_t i) const {
#if TMK_FLOATS == 8 && defined(__AVX2__)
    int32_t word;
    std::memcpy(&word, p + i / 2, 4);
    const vi code = splat_int(word) >> vi{4, 0, 12, 8, 20, 16, 28, 24};  // looked at: four bits
    const vf low = (vf)_mm256_permutevar8x32_ps((__m256)load(book), (__m256i)code);
    const vf high = (vf)_mm256_permutevar8x32_ps((__m256)load(book + 8), (__m256i)code);
    return (vf)_mm256_blendv_ps((__m256)low, (__m256)high, (__m256)(code << 28));
#elif TMK_FLOATS == 16 && defined(__AVX512F__)
    const __m128i pairs = _mm_loadl_epi64((const __m128i*)(p + i / 2));
    const __m128i upper = _mm_srli_epi16(pairs, 4);
    const __m512i code = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(upper, pairs));  // four bits count
    return (vf)_mm512_permutexvar_ps(code, (__m512)load(book));
#else
    vf o;
    for (int j = 0; j < N; j++) o[j] = one(p, i + j);
    return o;
#endif
  }
};

// R rows times T tokens, a run of columns under one scale after the other. One accumulator a product
// whatever R and T are, so that a token's result does not depend on its neighbours.
template <class C, int R, int T>
inline void scaled_dots(const Linear& w, int64_t row, int64_t apart, const float* x,
                        int64_t x_stride, float* out, int64_t stride) {
  const Beside& b = *w.beside;
  const C codes(w);
  const int64_t row_bytes = w.cols / C::per_byte;
  const uint8_t* p[R];
  const float* s[R];
  for (int r = 0; r < R; r++) {
    p[r] = w.data + (row + r * apart) * row_bytes;
    s[r] = b.scales + (b.first_row + row + r * apart) / b.height * b.across;
  }
  vf sum[R][T] = {};
  float rest[R][T] = {};
  for (int64_t begin = 0, tile = 0; begin < w.cols; begin += b.width, tile++) {
    const int64_t end = begin + b.width < w.cols ? begin + b.width : w.cols;
    vf acc[R][T] = {};
    int64_t i = begin;
    const auto step = [&]() __attribute__((always_inline)) {
      vf rows[R];
      for (int r = 0; r < R; r++) rows[r] = codes.vec(p[r], i);
      for (int t = 0; t < T; t++) {
        const vf v = load(x + t * x_stride + i) * C::raised;
        for (int r = 0; r < R; r++) acc[r][t] += rows[r] * v;
      }
      i += N;
    };
    constexpr int line = 64 * C::per_byte;
    while (i + line <= end)
      for (int n = 0; n < line / N; n++) step();
    while (i + N <= end) step();
    for (int r = 0; r < R; r++) {
      for (int t = 0; t < T; t++) {
        // Not by one number: a large scale would leave the range with the factor.
        sum[r][t] += acc[r][t] * (C::factor / C::raised) * s[r][tile];
        for (int64_t j = i; j < end; j++)
          rest[r][t] += codes.one(p[r], j) * C::factor * s[r][tile] * x[t * x_stride + j];
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) out[t * stride + r] = total(sum[r][t]) + rest[r][t];
}

template <class C>
void widened_as(const Linear& w, int64_t row, int rows, int64_t apart, const float* x,
                int64_t x_stride, int T, float* out, int64_t stride) {
  const auto at = [&](int r) { return row + r * apart; };
  int t = 0;
  for (; t + 4 <= T; t += 4) {
    const float* xt = x + t * x_stride;
    float* o = out + t * stride;
    int r = 0;
    for (; r + 2 <= rows; r += 2) scaled_dots<C, 2, 4>(w, at(r), apart, xt, x_stride, o + r, stride);
    for (; r < rows; r++) scaled_dots<C, 1, 4>(w, at(r), apart, xt, x_stride, o + r, stride);
  }
  for (; t < T; t++) {
    const float* xt = x + t * x_stride;
    float* o = out + t * stride;
    int r = 0;
    for (; r + 4 <= rows; r += 4) scaled_dots<C, 4, 1>(w, at(r), apart, xt, x_stride, o + r, stride);
    for (; r < rows; r++) scaled_dots<C, 1, 1>(w, at(r), apart, xt, x_stride, o + r, stride);
  }
}

// Codes of rows that share scales: a byte holds those of 8 / bits rows, the first part of a set of rows
// in its highest bits.
struct Crossed {
  int64_t apart;  // rows of a set
  int bits, parts;
  int64_t packed;  // places of a set whose bytes are different ones
  explicit Crossed(const Linear& w)
      : apart(rows_apart(w)), bits(w.type - kCrossed), parts(8 / bits),
        packed(w.beside->height / parts) {}
  const uint8_t* bytes(const Linear& w, int64_t row) const {
    return w.data + (row / apart % packed * apart + row % apart) * w.cols;
  }
  int shift(int64_t part) const { return int(parts - 1 - part) * bits; }
  vi mask(int64_t part) const { return splat_int(((1 << bits) - 1) << shift(part)); }
};

// Rows of the B lines of bytes `p` and of P parts of these, times T tokens that the scales, one a
// column, have multiplied before: `out` gets the codes' products where they lie in their bytes.
template <int P, int B, int T>
inline void crossed_dots(const uint8_t* const* p, const vi (&masks)[P], int64_t begin, int n,
                         const float* scaled, int64_t stride, float (&out)[P][B][T]) {
  vf acc[P][B][T] = {};
  for (int i = 0; i < n; i += N) {
    if (T == 1 && i % 64 == 0)
      for (int b = 0; b < B; b++) __builtin_prefetch(p[B + b] + begin + i);
    vf codes[P][B];
    for (int b = 0; b < B; b++) {
      const vi bytes = widen_bytes(p[b] + begin + i);
      for (int k = 0; k < P; k++) codes[k][b] = __builtin_convertvector(bytes & masks[k], vf);
    }
    for (int t = 0; t < T; t++) {
      const vf v = load(scaled + t * stride + i);
      for (int k = 0; k < P; k++)
        for (int b = 0; b < B; b++) acc[k][b][t] += codes[k][b] * v;
    }
  }
  for (int k = 0; k < P; k++)
    for (int b = 0; b < B; b++)
      for (int t = 0; t < T; t++) out[k][b][t] = total(acc[k][b][t]);
}

// Columns are a multiple of 32; rows are kCrossedRows of one set, `apart` from each other, such that
// those 16 / parts further on share bytes.
template <int P, int B, int T>
void crossed_tokens(const Linear& w, int64_t row, int64_t apart, const float* x, int64_t x_stride,
                    float* out, int64_t stride) {
  constexpr int chunk = 1024;
  const Crossed crossed(w);
  const int lines = kCrossedRows / crossed.parts;
  const int64_t K = w.cols, set = row % crossed.apart * K;
  const uint8_t* p[kCrossedRows + B];
  for (int b = 0; b < lines + B; b++)  // those at the end are for prefetching alone
    p[b] = crossed.bytes(w, row + (b < lines ? b : 0) * apart);
  alignas(64) float scaled[T][chunk];
  float low[T] = {};
  for (int t = 0; t < T; t++) std::memset(out + t * stride, 0, sizeof(float) * kCrossedRows);
  for (int64_t begin = 0; begin < K; begin += chunk) {
    const int n = int(K - begin < chunk ? K - begin : chunk);
    const float* s = w.beside->scales + set + begin;
    const float* z = w.beside->zeros + set + begin;
    for (int t = 0; t < T; t++) {
      vf sum = {};
      for (int i = 0; i < n; i += N) {
        const vf v = load(x + t * x_stride + begin + i) * load(s + i);
        store(scaled[t] + i, v);
        sum += v * load(z + i);
      }
      low[t] += total(sum);
    }
    for (int part = 0; part < crossed.parts; part += P) {
      vi masks[P];
      for (int k = 0; k < P; k++) masks[k] = crossed.mask(part + k);
      for (int b = 0; b < lines; b += B) {
        float sums[P][B][T];
        crossed_dots<P, B, T>(p + b, masks, begin, n, scaled[0], chunk, sums);
        for (int k = 0; k < P; k++) {
          const float factor = 1.0f / float(1 << crossed.shift(part + k));
          for (int j = 0; j < B; j++)
            for (int t = 0; t < T; t++)
              out[t * stride + (part + k) * lines + b + j] += sums[k][j][t] * factor;
        }
      }
    }
  }
  for (int t = 0; t < T; t++)
    for (int r = 0; r < kCrossedRows; r++) out[t * stride + r] -= low[t];
}

void crossed(const Linear& w, int64_t row, int64_t apart, int tokens, const float* x,
             int64_t x_stride, float* out, int64_t stride) {
  const int bits = w.type - kCrossed;
  const auto one = bits == 8   ? crossed_tokens<1, 4, 1>
                   : bits == 1 ? crossed_tokens<2, 2, 1>
                               : crossed_tokens<2, 4, 1>;
  const auto four = bits == 8 ? crossed_tokens<1, 2, 4> : crossed_tokens<2, 1, 4>;
  int t = 0;
  for (; t + 4 <= tokens; t += 4)
    four(w, row, apart, x + t * x_stride, x_stride, out + t * stride, stride);
  for (; t < tokens; t++)
    one(w, row, apart, x + t * x_stride, x_stride, out + t * stride, stride);
}

void widened(const Linear& w, int64_t row, int rows, int64_t apart, const float* x, int64_t x_stride,
             int tokens, float* out, int64_t stride) {
  if (w.type > kCrossed) return crossed(w, row, apart, tokens, x, x_stride, out, stride);
  const auto fn = w.type == kE4M3 ? widened_as<E4M3> : widened_as<Book>;
  fn(w, row, rows, apart, x, x_stride, tokens, out, stride);
}

template <class C>
void floats_as(const Linear& w, int64_t row, float* out) {
  const Beside& b = *w.beside;
  const C codes(w);
  const uint8_t* p = w.data + row * (w.cols / C::per_byte);
  const float* s = b.scales + (b.first_row + row) / b.height * b.across;
  for (int64_t begin = 0, tile = 0; begin < w.cols; begin += b.width, tile++) {
    const int64_t end = begin + b.width < w.cols ? begin + b.width : w.cols;
    // Exactly the value times its scale, which alone may leave float32's range with the factor.
    int64_t i = begin;
    for (; i + N <= end; i += N) store(out + i, codes.vec(p, i) * C::factor * s[tile]);
    for (; i < end; i++) out[i] = codes.one(p, i) * C::factor * s[tile];
  }
}

// One row as floats.
void floats(const Linear& w, int64_t row, float* out) {
  if (w.type == kE4M3) return floats_as<E4M3>(w, row, out);
  if (w.type == kBook) return floats_as<Book>(w, row, out);
  const Crossed crossed(w);
  const uint8_t* p = crossed.bytes(w, row);
  const int64_t part = row / crossed.apart / crossed.packed, set = row % crossed.apart * w.cols;
  const float* s = w.beside->scales + set;
  const float* z = w.beside->zeros + set;
  const vi mask = splat_int((1 << crossed.bits) - 1);
  for (int64_t i = 0; i < w.cols; i += N) {
    const vi code = widen_bytes(p + i) >> crossed.shift(part) & mask;
    store(out + i, (__builtin_convertvector(code, vf) - load(z + i)) * load(s + i));
  }
}

}  // namespace
}  // namespace tmk
