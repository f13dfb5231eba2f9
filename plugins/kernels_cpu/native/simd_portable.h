// Vectors as arrays: any compiler, any processor. With 16 lanes it walks the AVX-512 layout, so
// that layout is tested on machines without it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace tmk {
namespace {  // see formats.h

inline float half_to_float(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff, bits;
  if (rest >= 0x7c00) {
    bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    bits = sign | ((rest << 13) + 0x38000000);
  } else {
    float f = float(rest) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

template <int Lanes>
struct Portable {
  static constexpr int L = Lanes, tile = 4, in_line = 1 << 30;
  static constexpr bool takes_signed = false;
  template <class Fmt> static constexpr bool zero_first = false;
  template <class Fmt> static constexpr bool opens = false;
  template <class Fmt, int Side> static constexpr int sums = 8;
  static constexpr int slow_from = 4;
  struct B { uint8_t v[4 * L]; };
  struct I { int32_t v[L]; };
  struct F { float v[L]; };
  struct Pair { int16_t v[2 * L]; };

  static B load(const uint8_t* p) { B o; std::memcpy(o.v, p, sizeof o.v); return o; }
  template <int Shift> static B bits(B a, uint8_t mask) {
    for (auto& b : a.v) b = uint8_t(b >> Shift) & mask;
    return a;
  }
  template <int Shift> static B raise(B a) { for (auto& b : a.v) b = uint8_t(b << Shift); return a; }
  static B either(B a, B b) { for (int i = 0; i < 4 * L; i++) a.v[i] |= b.v[i]; return a; }
  static B look_up(const int8_t* book, B a) { for (auto& b : a.v) b = uint8_t(book[b]); return a; }
  static B raised_by_128(B a) { for (auto& b : a.v) b ^= 128; return a; }

  static I zero() { return I{}; }
  template <int n> static I minus(const int16_t* a) { I o; for (auto& i : o.v) i = *a * -n; return o; }
  static I add(I a, I b) { for (int i = 0; i < L; i++) a.v[i] += b.v[i]; return a; }
  static I sub_times(I a, I b, int n) { for (int i = 0; i < L; i++) a.v[i] -= b.v[i] * n; return a; }
  static F fzero() { return F{}; }
  static F fset(float n) { F o; for (auto& f : o.v) f = n; return o; }
  static F to_float(I a) { F o; for (int i = 0; i < L; i++) o.v[i] = float(a.v[i]); return o; }
  static F fmul(F a, F b) { for (int i = 0; i < L; i++) a.v[i] *= b.v[i]; return a; }
  static F fma(F a, F b, F c) { for (int i = 0; i < L; i++) c.v[i] += a.v[i] * b.v[i]; return c; }
  static F fnma(F a, F b, F c) { for (int i = 0; i < L; i++) c.v[i] -= a.v[i] * b.v[i]; return c; }
  static F load_half(const uint8_t* p) {
    F o;
    for (int i = 0; i < L; i++) { uint16_t h; std::memcpy(&h, p + 2 * i, 2); o.v[i] = half_to_float(h); }
    return o;
  }
  static F load_brain(const uint8_t* p) {
    F o;
    for (int i = 0; i < L; i++) {
      uint16_t h;
      std::memcpy(&h, p + 2 * i, 2);
      const uint32_t bits = uint32_t(h) << 16;
      std::memcpy(&o.v[i], &bits, 4);
    }
    return o;
  }
  static F load_float(const uint8_t* p) { F o; std::memcpy(o.v, p, sizeof o.v); return o; }
  static void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
  static Pair load_pairs(const uint8_t* p) {
    Pair o;
    for (int i = 0; i < 2 * L; i++) o.v[i] = int8_t(p[i]);
    return o;
  }
  static I mul_pairs(I acc, Pair a, const int16_t* x) {
    for (int i = 0; i < L; i++) acc.v[i] += a.v[2 * i] * x[0] + a.v[2 * i + 1] * x[1];
    return acc;
  }

  // Adds a group's products for P panels and T tokens out of Side, each times the row's sub-scale.
  template <class Fmt, int First, int Count, int Side, int P, int T, class Fetch>
  static void group(const Fetch (&fetch)[P], const int8_t* x, const Pair* pair, int which,
                    const int16_t*, I (&sum)[P][T]) {
    for (int p = 0; p < P; p++) {
      I acc[T] = {};
      for (int i = First; i < First + Count; i++) {
        const B w = fetch[p](i);
        for (int t = 0; t < T; t++) {
          const int8_t* q = x + 4 * (i * Side + t);
          for (int r = 0; r < L; r++)
            acc[t].v[r] += w.v[4 * r] * q[0] + w.v[4 * r + 1] * q[1] + w.v[4 * r + 2] * q[2] +
                           w.v[4 * r + 3] * q[3];
        }
      }
      for (int t = 0; t < T; t++)
        for (int r = 0; r < L; r++)
          sum[p][t].v[r] += pair ? acc[t].v[r] * pair[p].v[2 * r + which] : acc[t].v[r];
    }
  }
};

}  // namespace
}  // namespace tmk
