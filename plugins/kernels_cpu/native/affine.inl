// Weights of few bits with a scale and a minimum a group of columns: w = d · q + m.
//
// Panels hold the codes in the planes of formats.h, in front of them d [L] and m [L] for each group,
// as wide as they were stored. How many columns a group has, and how wide its floats are, is read
// from the weight: both are looked at once a group only. Needs linear.inl and pack.inl before it.
#include <cmath>
#include <cstring>

#include "formats.h"
#include "isa.h"

namespace tmk {
namespace {

template <class V>
inline typename V::F load_floats(const uint8_t* p, int floats) {
  return floats == kHalf ? V::load_half(p) : floats == kBrain ? V::load_brain(p) : V::load_float(p);
}

template <class V, class Fmt, int T>
void affine_tile(const uint8_t* panel, const Linear& w, const Activations& a, int64_t first,
                 float* out, int64_t stride) {
  constexpr int L = V::L;
  constexpr size_t block = Fmt::block(L);
  const size_t width = L * float_bytes(w.floats);
  const int64_t K = w.cols, groups = K / w.group, blocks = w.group / 32;
  const uint8_t* h = panel;
  const uint8_t* p = panel + affine_headers(w, L);
  const float* d = a.d32 + first * (K / 32);
  const int16_t* s = a.sum32 + first * (K / 32);
  const int8_t* x[T];
  const int16_t* wide[T];
  typename V::F acc[T];
  for (int t = 0; t < T; t++) {
    x[t] = a.q + (first + t) * K;
    wide[t] = V::wide ? a.wide + (first + t) * K : nullptr;
    acc[t] = V::fzero();
  }
  for (int64_t g = 0; g < groups; g++, h += 2 * width) {
    const typename V::F scale = load_floats<V>(h, w.floats);
    float low[T] = {};
    for (int64_t b = 0; b < blocks; b++, p += block, d++, s++) {
      if constexpr (T == 1)
        for (size_t line = 0; line < block; line += 64) V::prefetch(p + 2048 + line);
      typename V::I sum[T];
      for (int t = 0; t < T; t++) sum[t] = V::zero();
      V::template group<Fmt, 0, 8, T>(Block<V, Fmt>{p}, x, wide, nullptr, 0, sum);
      for (int t = 0; t < T; t++) {
        const float xd = d[t * (K / 32)];
        acc[t] = V::fma(V::to_float(sum[t]), V::times(scale, xd), acc[t]);
        low[t] += xd * s[t * (K / 32)];
        x[t] += 32;
        if constexpr (V::wide) wide[t] += 32;
      }
    }
    const typename V::F minimum = load_floats<V>(h + width, w.floats);
    for (int t = 0; t < T; t++) acc[t] = V::fma(minimum, V::fset(low[t]), acc[t]);
  }
  for (int t = 0; t < T; t++) V::store(out + t * stride, acc[t]);
}

// 32 codes out of their stream.
template <int Bits>
inline void from_stream(const uint8_t* p, uint8_t* q) {
  for (int i = 0; i < 4; i++, p += Bits) {
    uint64_t eight = 0;
    for (int j = 0; j < Bits; j++) eight |= uint64_t(p[j]) << (8 * j);
    for (int j = 0; j < 8; j++) q[8 * i + j] = eight >> (Bits * j) & ((1 << Bits) - 1);
  }
}

inline bool finite_as(const uint8_t* p, int floats) {
  uint32_t word = 0;
  std::memcpy(&word, p, float_bytes(floats));
  const uint32_t mask = floats == kHalf ? 0x7c00 : floats == kBrain ? 0x7f80 : 0x7f800000;
  return (word & mask) != mask;
}

template <int Bits, class F, int L>
bool pack_affine_panel(const Linear& w, int64_t first, int rows, const uint8_t* codes,
                       const uint8_t* scales, const uint8_t* minima, uint8_t* panel) {
  const size_t size = float_bytes(w.floats), groups = w.cols / w.group;
  const size_t headers = affine_headers(w, L);
  if (rows < L) std::memset(panel, 0, headers + F::block(L) * (w.cols / 32));
  bool fine = true;
  for (int r = 0; r < rows; r++) {
    uint8_t* h = panel + size * r;
    for (size_t g = 0; g < groups; g++, h += 2 * size * L) {
      const uint8_t* d = scales + ((first + r) * groups + g) * size;
      const uint8_t* m = minima + ((first + r) * groups + g) * size;
      fine &= finite_as(d, w.floats) && finite_as(m, w.floats);
      std::memcpy(h, d, size);
      std::memcpy(h + size * L, m, size);
    }
    const uint8_t* from = codes + (first + r) * (w.cols / 8) * Bits;
    uint8_t* p = panel + headers + 4 * r;
    for (int64_t b = 0; b < w.cols / 32; b++, from += 4 * Bits, p += F::block(L)) {
      uint8_t q[32];
      uint32_t words[8];
      from_stream<Bits>(from, q);
      planes<F>(q, words);
      for (int n = 0; n < F::planes; n++) std::memcpy(p + size_t(n) * 4 * L, &words[n], 4);
    }
  }
  return fine;
}

}  // namespace
}  // namespace tmk
