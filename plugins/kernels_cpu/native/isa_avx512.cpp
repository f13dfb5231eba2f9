#if defined(TMK_EMULATED_AVX512)
// For processors without AVX-512, in tests: SIMDe computes what each instruction does. The
// compiler's own header comes first, so that its vector types are used and only calls replaced.
#include <immintrin.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What SIMDe 0.7.4 lacks, by halves.
namespace tmk {
namespace {

template <class Whole, class Half>
inline Whole joined(Half low, Half high) {
  const Half parts[2] = {low, high};
  Whole both;
  static_assert(sizeof both == sizeof parts);
  __builtin_memcpy(&both, parts, sizeof both);
  return both;
}

inline __m256i half(const __m512i& a, int which) {
  __m256i part;
  __builtin_memcpy(&part, (const char*)&a + 32 * which, sizeof part);
  return part;
}

inline __m512 emulated_cvtepi32_ps(const __m512i& a) {
  return joined<__m512>(_mm256_cvtepi32_ps(half(a, 0)), _mm256_cvtepi32_ps(half(a, 1)));
}

inline __m512i emulated_cvtepi8_epi32(__m128i a) {
  return joined<__m512i>(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)));
}

inline __m512 emulated_cvtph_ps(__m256i a) {
  return joined<__m512>(_mm256_cvtph_ps(_mm256_extracti128_si256(a, 0)),
                        _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}

inline __m512i emulated_cvtepu16_epi32(__m256i a) {
  return joined<__m512i>(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 0)),
                         _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
}

inline __m512i emulated_srai_epi32(const __m512i& a, int bits) {
  return joined<__m512i>(_mm256_srai_epi32(half(a, 0), bits), _mm256_srai_epi32(half(a, 1), bits));
}

}  // namespace
}  // namespace tmk
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_srai_epi32 emulated_srai_epi32
// Its alias of this one has the arguments of the masked form.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 simde_mm512_madd_epi16
#endif

#define TMK_FLOATS 16
#include "simd_avx512.h"

#include "isa_table.inl"

#if TMK_COMPILES_BRAIN
#include "brain.inl"
#endif

namespace tmk {
const Isa* avx512() {
  static const Isa table = make_table<Avx512>("avx512");
  return &table;
}

#if TMK_COMPILES_BRAIN
const Isa* avx512_bf16() {
  static const Isa table = [] {
    Isa isa = *avx512();
    isa.name = "avx512bf16";
    isa.quantize = quantize_or_round;
    isa.rounded = rounded_rows;
    return isa;
  }();
  return &table;
}
#endif
}  // namespace tmk
