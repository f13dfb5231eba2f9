// AVX2 with FMA and F16C: eight rows to a vector.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace tmk {
namespace {  // see formats.h

struct Avx2 {
  static constexpr int L = 8, tile = 8, in_line = 1 << 30;
  static constexpr bool takes_signed = true;
  template <class Fmt> static constexpr bool zero_first = false;
  template <class Fmt> static constexpr bool opens = true;
  template <class Fmt, int Side> static constexpr int sums = 8;
  static constexpr int slow_from = 4;
  using B = __m256i;
  using I = __m256i;
  using F = __m256;
  using Pair = __m256i;

  static B load(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  template <int Shift> static B bits(B a, uint8_t mask) {
    return _mm256_and_si256(Shift ? _mm256_srli_epi16(a, Shift) : a, _mm256_set1_epi8(char(mask)));
  }
  // The bits that would leave a byte must be zero.
  template <int Shift> static B raise(B a) { return _mm256_slli_epi16(a, Shift); }
  static B either(B a, B b) { return _mm256_or_si256(a, b); }
  static B look_up(const int8_t* book, B a) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)book)), a);
  }

  static void store(uint8_t* p, B a) { _mm256_storeu_si256((__m256i*)p, a); }

  static I zero() { return _mm256_setzero_si256(); }
  template <int n> static I minus(const int16_t* a) {
    return _mm256_madd_epi16(_mm256_set1_epi16(*a), _mm256_set1_epi32(-n & 0xffff));
  }
  static I load_ints(const uint8_t* p) { return load(p); }
  static I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_times(I a, I b, int n) {
    return _mm256_sub_epi32(a, _mm256_mullo_epi32(b, _mm256_set1_epi32(n)));
  }
  static F fzero() { return _mm256_setzero_ps(); }
  static F fset(float n) { return _mm256_set1_ps(n); }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static F fmul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static F load_half(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static F load_brain(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static F load_float(const uint8_t* p) { return _mm256_loadu_ps((const float*)p); }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static Pair load_pairs(const uint8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
  }
  static I four(const void* p) {
    int32_t n;
    std::memcpy(&n, p, 4);
    return _mm256_set1_epi32(n);
  }
  static I mul_pairs(I acc, Pair a, const int16_t* x) { return add(acc, _mm256_madd_epi16(a, four(x))); }

  // Keeps the compiler from putting off additions until every product waits in memory.
  static inline __attribute__((always_inline)) void in_order(I& a) { asm volatile("" : "+x"(a)); }

  // |w| and, in every bit, whether w is negative.
  static void split(B w, B& size, B& negative) {
    size = _mm256_abs_epi8(w);
    negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), w);
  }

  // w · x with four columns to a lane, in pairs of 16 bits. `size` is w, or |w| where w is signed;
  // two of 128 · 127 still fit, as do two of 128 · -128. Where w is split, `w` is whether it is
  // negative, and x becomes -x - 1 then.
  template <class Fmt>
  static inline __attribute__((always_inline)) I products(B size, B w, I x) {
    if constexpr (Fmt::split) return _mm256_maddubs_epi16(size, _mm256_xor_si256(x, w));
    return _mm256_maddubs_epi16(size, Fmt::is_signed ? _mm256_sign_epi8(x, w) : x);
  }

  // Adds a group's products for P panels and T tokens out of Side, each times the row's sub-scale.
  template <class Fmt, int First, int Count, int Side, int P, int T, class Fetch>
  static inline __attribute__((always_inline)) void group(const Fetch (&fetch)[P], const int8_t* x,
                                                          const Pair* pair, int which,
                                                          const int16_t*, I (&sum)[P][T]) {
    // Products are summed in 16 bits as long as they cannot overflow (two of max · 127 in each
    // step), then widened by the multiplication with the sub-scale.
    constexpr int fit = Fmt::is_signed ? 1 : 32767 / (Fmt::max * 127 * 2);
    constexpr int chunk = fit >= 8 ? 8 : fit >= 4 ? 4 : fit;
    constexpr int step = chunk < Count ? chunk : Count;
    I scale[P];
    for (int p = 0; p < P; p++) {
      if (!pair) {
        scale[p] = _mm256_set1_epi16(1);
        continue;
      }
      const I first = _mm256_set1_epi32(0x01000100), second = _mm256_set1_epi32(0x03020302);
      const I rows = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                       0x08080808, 0x0c0c0c0c);
      scale[p] = _mm256_shuffle_epi8(pair[p], _mm256_add_epi8(rows, which ? second : first));
    }
#pragma GCC unroll 8
    for (int c = First; c < First + Count; c += step) {
      if constexpr (step <= 2) {
        // Token by token, so that the wide sums can stay in registers.
        B w[step][P], size[step][P];
#pragma GCC unroll 8
        for (int i = 0; i < step; i++)
#pragma GCC unroll 8
          for (int p = 0; p < P; p++) {
            if constexpr (Fmt::split) {
              size[i][p] = fetch[p](2 * (c + i));
              w[i][p] = fetch[p](2 * (c + i) + 1);
              continue;
            }
            w[i][p] = fetch[p](c + i);
            size[i][p] = Fmt::is_signed ? _mm256_abs_epi8(w[i][p]) : w[i][p];
          }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const I one = four(x + 4 * (c * Side + t));
          const I two = step == 2 ? four(x + 4 * ((c + 1) * Side + t)) : one;
#pragma GCC unroll 8
          for (int p = 0; p < P; p++) {
            I acc = products<Fmt>(size[0][p], w[0][p], one);
            if constexpr (step == 2)
              acc = _mm256_add_epi16(acc, products<Fmt>(size[1][p], w[1][p], two));
            sum[p][t] = add(sum[p][t], _mm256_madd_epi16(acc, scale[p]));
            in_order(sum[p][t]);
          }
        }
      } else {
        I acc[P][T];
#pragma GCC unroll 8
        for (int i = c; i < c + step; i++) {
          B w[P];
#pragma GCC unroll 8
          for (int p = 0; p < P; p++) w[p] = fetch[p](i);
#pragma GCC unroll 8
          for (int t = 0; t < T; t++) {
            const I one = four(x + 4 * (i * Side + t));
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
              const I both = products<Fmt>(w[p], w[p], one);
              acc[p][t] = i == c ? both : _mm256_add_epi16(acc[p][t], both);
              in_order(acc[p][t]);
            }
          }
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
#pragma GCC unroll 8
          for (int p = 0; p < P; p++)
            sum[p][t] = add(sum[p][t], _mm256_madd_epi16(acc[p][t], scale[p]));
      }
    }
  }
};

}  // namespace
}  // namespace tmk
