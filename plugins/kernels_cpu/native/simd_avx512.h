// AVX-512 with VNNI: sixteen rows to a vector.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace tmk {
namespace {  // see formats.h

struct Avx512 {
  static constexpr int L = 16, tile = 8, in_line = 8;
  static constexpr bool takes_signed = false;
  // Whether panels are opened for many tokens: where a code is put together from several places. Others
  // are quicker made again for every eight tokens than read from twice as many bytes.
  template <class Fmt> static constexpr bool opens = Fmt::high > 0;
  // Whether zero points come off before sub-scales, by shifts in place of multiplications, of which codes
  // that are put together leave none to spare.
  template <class Fmt> static constexpr bool zero_first = Fmt::near && Fmt::group == 16;
  // Sums at once: all that registers have room for, if those that are multiplied with sub-scales and the
  // floats are kept in memory. Eight tokens are better off with panel after panel, unless these lie near.
  template <class Fmt, int Side>
  static constexpr int sums = Side == 8 && (Fmt::pairs || !Fmt::near) ? 8 : 16;
  // Tokens from which arithmetic takes longer than reading.
  static constexpr int slow_from = 8;
  using B = __m512i;
  using I = __m512i;
  using F = __m512;
  using Pair = __m512i;

  static B load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int Shift> static B bits(B a, uint8_t mask) {
    return _mm512_and_si512(Shift ? _mm512_srli_epi16(a, Shift) : a, _mm512_set1_epi8(char(mask)));
  }
  template <int Shift> static B raise(B a) { return _mm512_slli_epi16(a, Shift); }
  static B either(B a, B b) { return _mm512_or_si512(a, b); }
  static B look_up(const int8_t* book, B a) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)book)), a);
  }

  static B raised_by_128(B a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }

  static void store(uint8_t* p, B a) { _mm512_storeu_si512(p, a); }

  static I zero() { return _mm512_setzero_si512(); }
  static I sub_times(I a, I b, int n) {
    return _mm512_sub_epi32(a, _mm512_mullo_epi32(b, _mm512_set1_epi32(n)));
  }
  // -n times the lower or upper one of two numbers. Shifts leave multiplications to the products.
  template <int n, bool Upper = false> static I minus(const int16_t* a) {
    if constexpr ((n & (n - 1)) == 0) {
      constexpr int bits = __builtin_ctz(n);
      const I both = four(a);
      if constexpr (Upper) return sub(zero(), _mm512_slli_epi32(_mm512_srai_epi32(both, 16), bits));
      return sub(zero(), _mm512_srai_epi32(_mm512_slli_epi32(both, 16), 16 - bits));
    }
    return _mm512_madd_epi16(four(a), _mm512_set1_epi32(Upper ? -n * 65536 : -n & 0xffff));
  }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static F fzero() { return _mm512_setzero_ps(); }
  static F fset(float n) { return _mm512_set1_ps(n); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static F fmul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static F load_half(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  }
  static F load_brain(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F load_float(const uint8_t* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static Pair load_pairs(const uint8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
  }
  static I four(const void* p) {
    int32_t n;
    std::memcpy(&n, p, 4);
    return _mm512_set1_epi32(n);
  }
  static I mul_pairs(I acc, Pair a, const int16_t* x) { return _mm512_dpwssd_epi32(acc, a, four(x)); }

  // Adds a group's products for P panels and T tokens out of Side, each times the row's sub-scale; s are
  // sums of the tokens' activations in both groups of the pair.
  template <class Fmt, int First, int Count, int Side, int P, int T, class Fetch>
  static inline __attribute__((always_inline)) void group(const Fetch (&fetch)[P], const int8_t* x,
                                                          const Pair* pair, int which,
                                                          const int16_t* s, I (&sum)[P][T]) {
    I acc[P][T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      I start = zero();
      if constexpr (zero_first<Fmt> && Fmt::zero)
        start = which ? minus<Fmt::zero, true>(s + 2 * t) : minus<Fmt::zero>(s + 2 * t);
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) acc[p][t] = pair ? start : sum[p][t];
    }
#pragma GCC unroll 8
    for (int i = First; i < First + Count; i++) {
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const B w = fetch[p](i);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
          acc[p][t] = _mm512_dpbusd_epi32(acc[p][t], w, four(x + 4 * (i * Side + t)));
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      I scale = zero();
      if (pair)
        scale = which ? _mm512_srai_epi32(pair[p], 16)
                      : _mm512_srai_epi32(_mm512_slli_epi32(pair[p], 16), 16);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++)
        sum[p][t] = pair ? add(sum[p][t], _mm512_mullo_epi32(acc[p][t], scale)) : acc[p][t];
    }
  }
};

}  // namespace
}  // namespace tmk
