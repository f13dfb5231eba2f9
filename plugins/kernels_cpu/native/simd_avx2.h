// AVX2 with FMA and F16C: eight rows to a vector.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace tmk {
namespace {  // see formats.h

struct Avx2 {
  static constexpr int L = 8, tile = 8;
  static constexpr bool wide = true;
  using B = __m256i;
  using I = __m256i;
  using F = __m256;
  using P = __m256i;

  static B load(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  template <int Shift> static B bits(B a, uint8_t mask) {
    return _mm256_and_si256(Shift ? _mm256_srli_epi16(a, Shift) : a, _mm256_set1_epi8(char(mask)));
  }
  // The bits that would leave a byte must be zero.
  template <int Shift> static B raise(B a) { return _mm256_slli_epi16(a, Shift); }
  static B either(B a, B b) { return _mm256_or_si256(a, b); }
  static B look_up(const uint8_t* book, B a) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)book)), a);
  }

  static I zero() { return _mm256_setzero_si256(); }
  static I set(int32_t n) { return _mm256_set1_epi32(n); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_times(I a, I b, int n) {
    return _mm256_sub_epi32(a, _mm256_mullo_epi32(b, _mm256_set1_epi32(n)));
  }
  static F fzero() { return _mm256_setzero_ps(); }
  static F fset(float n) { return _mm256_set1_ps(n); }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static F times(F a, float n) { return _mm256_mul_ps(a, _mm256_set1_ps(n)); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F load_half(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static F load_brain(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static F load_float(const uint8_t* p) { return _mm256_loadu_ps((const float*)p); }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static P load_pairs(const uint8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
  }
  static I four(const void* p) {
    int32_t n;
    std::memcpy(&n, p, 4);
    return _mm256_set1_epi32(n);
  }
  static I mul_pairs(I acc, P a, const int16_t* x) { return add(acc, _mm256_madd_epi16(a, four(x))); }
  static void prefetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

  // Keeps the compiler from putting off additions until every product waits in memory.
  static inline __attribute__((always_inline)) void in_order(I& a) { asm volatile("" : "+x"(a)); }

  template <class Fmt, int First, int Count, int T, class Fetch>
  static inline __attribute__((always_inline)) void group(Fetch fetch, const int8_t* const* x,
                                                          const int16_t* const* wide, const P* pair,
                                                          int which, I (&sum)[T]) {
    if constexpr (Fmt::max <= 63) {
      // Products are summed in 16 bits as long as they cannot overflow (two of max · 127 in each
      // step), then widened by the multiplication with the sub-scale.
      constexpr int fit = 32767 / (Fmt::max * 127 * 2);
      constexpr int chunk = fit >= 8 ? 8 : fit >= 4 ? 4 : 2;
      constexpr int step = chunk < Count ? chunk : Count;
      I scale = _mm256_set1_epi16(1);
      if (pair) {
        const I first = _mm256_set1_epi32(0x01000100), second = _mm256_set1_epi32(0x03020302);
        const I rows = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                         0x08080808, 0x0c0c0c0c);
        scale = _mm256_shuffle_epi8(*pair, _mm256_add_epi8(rows, which ? second : first));
      }
#pragma GCC unroll 8
      for (int c = First; c < First + Count; c += step) {
        I acc[T];
#pragma GCC unroll 8
        for (int i = c; i < c + step; i++) {
          const B w = fetch(i);
#pragma GCC unroll 8
          for (int t = 0; t < T; t++) {
            const I p = _mm256_maddubs_epi16(w, four(x[t] + 4 * i));
            acc[t] = i == c ? p : _mm256_add_epi16(acc[t], p);
            in_order(acc[t]);
          }
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) sum[t] = add(sum[t], _mm256_madd_epi16(acc[t], scale));
      }
    } else {
      I acc[T];
#pragma GCC unroll 8
      for (int i = First; i < First + Count; i++) {
        const B w = fetch(i);
        const I even = _mm256_and_si256(w, _mm256_set1_epi16(0xff)), odd = _mm256_srli_epi16(w, 8);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const I p = add(_mm256_madd_epi16(even, four(wide[t] + 4 * i)),
                          _mm256_madd_epi16(odd, four(wide[t] + 4 * i + 2)));
          acc[t] = i == First ? p : add(acc[t], p);
          in_order(acc[t]);
        }
      }
      if (pair) {
        const I s = which ? _mm256_srai_epi32(*pair, 16)
                          : _mm256_srai_epi32(_mm256_slli_epi32(*pair, 16), 16);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) acc[t] = _mm256_mullo_epi32(acc[t], s);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) sum[t] = add(sum[t], acc[t]);
    }
  }
};

}  // namespace
}  // namespace tmk
