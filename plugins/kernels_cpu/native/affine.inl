// Weights of few bits with a scale and a minimum a group of columns: w = d · q + m.
//
// Panels hold the codes in the planes of formats.h, in front of each group's d [L] and m [L], as wide
// as they were stored. How many columns a group has, and how wide its floats are, is read from the
// weight: both are looked at once a group only. Needs linear.inl, opened.inl and pack.inl before it.
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

template <class Fmt>
inline size_t scales_bytes(const Linear& w, int lanes) {
  const size_t bytes = affine_header(w, lanes);
  return Fmt::split ? to_lines(bytes) : bytes;
}

// What lies behind each block of opened panels: the start of its sums.
template <class V, class Fmt>
constexpr size_t start_bytes = Fmt::split ? to_lines(4 * V::L) : 0;

template <class V, class Fmt, int Side, int T, int P>
void some_affine_panels(const uint8_t* const* panels, const Linear& w, const Activations& a,
                        int64_t first, int which, float* out, int64_t stride) {
  constexpr int L = V::L;
  constexpr int zero = zero_point<V, Fmt>;
  using Columns = Block<V, Fmt>;
  const size_t width = L * float_bytes(w.floats), header = scales_bytes<Fmt>(w, L);
  const int64_t K = w.cols, groups = K / w.group, blocks = w.group / 32;
  const uint8_t* h[P];
  Columns c[P];
  typename V::F acc[P][T];
  for (int p = 0; p < P; p++) {
    c[p].p = panels[p];
    for (int t = 0; t < T; t++) acc[p][t] = V::fzero();
  }
  const int8_t* x = a.q + first * K + 4 * which;
  const float* d = a.d + first * (K / 32) + which;
  const int16_t* s = a.sum32 + first * (K / 32) + which;
  for (int64_t g = 0; g < groups; g++) {
    typename V::F scale[P];
    for (int p = 0; p < P; p++) {
      fetch_ahead<V, Fmt, Side>(c[p], header);
      h[p] = c[p].p;
      c[p].p += header;
      scale[p] = load_floats<V>(h[p], w.floats);
    }
    float low[T] = {};
    for (int64_t b = 0; b < blocks; b++, x += 32 * Side, d += Side, s += Side) {
      typename V::I sum[P][T];
      for (int t = 0; t < T; t++) {
        typename V::I start = V::zero();
        if constexpr (zero) start = V::template minus<zero>(s + t);
        for (int p = 0; p < P; p++) sum[p][t] = start_of<V, Fmt>(c[p].p + Fmt::block(L), start);
      }
      for (int p = 0; p < P; p++) fetch_ahead<V, Fmt, Side>(c[p], Columns::bytes);
      V::template group<Fmt, 0, 8, Side>(c, x, nullptr, 0, nullptr, sum);
      for (int t = 0; t < T; t++) {
        const typename V::F xd = V::fset(d[t]);
        for (int p = 0; p < P; p++)
          acc[p][t] = V::fma(V::to_float(sum[p][t]), V::fmul(scale[p], xd), acc[p][t]);
        low[t] += d[t] * s[t];
      }
      for (int p = 0; p < P; p++) c[p].p += Columns::bytes + start_bytes<V, Fmt>;
    }
    for (int p = 0; p < P; p++) {
      const typename V::F minimum = load_floats<V>(h[p] + width, w.floats);
      for (int t = 0; t < T; t++) acc[p][t] = V::fma(minimum, V::fset(low[t]), acc[p][t]);
    }
  }
  for (int p = 0; p < P; p++)
    for (int t = 0; t < T; t++) V::store(out + t * stride + p * L, acc[p][t]);
}

template <class V, class Fmt, int Side>
void affine_tile(const uint8_t* const* panels, int count, const Linear& w, const Activations& a,
                 int64_t first, float* out, int64_t stride) {
  constexpr int T = Taken<V, Fmt, Side>::tokens, P = Taken<V, Fmt, Side>::panels;
  for (int p = 0; p < count; p += P)
    for (int t = 0; t < Side; t += T)
      some_affine_panels<V, Fmt, Side, T, P>(panels + p, w, a, first, t,
                                             out + t * stride + p * V::L, stride);
}

template <class V, class Fmt>
size_t opened_affine_bytes(const Linear& w) {
  using To = InBytes<V, Fmt>;
  return scales_bytes<To>(w, V::L) * (w.cols / w.group) +
         (To::block(V::L) + start_bytes<V, To>) * (w.cols / 32);
}

template <class V, class Fmt>
void open_affine_panel(const Linear& w, const uint8_t* panel, uint8_t* opened) {
  using To = InBytes<V, Fmt>;
  const size_t header = affine_header(w, V::L);
  for (int64_t g = 0; g < w.cols / w.group; g++) {
    std::memcpy(opened, panel, header);
    panel += header;
    opened += scales_bytes<To>(w, V::L);
    for (int64_t b = 0; b < w.group / 32; b++) {
      typename V::I sum[1][1] = {{V::zero()}};
      open_block<V, Fmt>(panel, opened, nullptr, 0, sum);
      panel += Fmt::block(V::L);
      opened += To::block(V::L);
      if constexpr (To::split) put_start<V>(opened, sum);
      opened += start_bytes<V, To>;
    }
  }
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
  const size_t size = float_bytes(w.floats), groups = w.cols / w.group, header = affine_header(w, L);
  if (rows < L) std::memset(panel, 0, header * groups + F::block(L) * (w.cols / 32));
  bool fine = true;
  for (int r = 0; r < rows; r++) {
    const uint8_t* from = codes + (first + r) * (w.cols / 8) * Bits;
    uint8_t* p = panel;
    for (size_t g = 0; g < groups; g++) {
      const uint8_t* d = scales + ((first + r) * groups + g) * size;
      const uint8_t* m = minima + ((first + r) * groups + g) * size;
      fine &= finite_as(d, w.floats) && finite_as(m, w.floats);
      std::memcpy(p + size * r, d, size);
      std::memcpy(p + size * (L + r), m, size);
      p += header;
      for (int64_t b = 0; b < w.group / 32; b++, from += 4 * Bits, p += F::block(L)) {
        uint8_t q[32];
        uint32_t words[8];
        from_stream<Bits>(from, q);
        if (F::is_signed)
          for (uint8_t& code : q) code ^= 128;
        planes<F>(q, words);
        for (int n = 0; n < F::planes; n++)
          std::memcpy(p + size_t(n) * 4 * L + 4 * r, &words[n], 4);
      }
    }
  }
  return fine;
}

}  // namespace
}  // namespace tmk
