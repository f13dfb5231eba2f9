// Quantized linear for one instruction set: one panel of rows times one or a few tokens.
//
// Written once over the vector types of simd_*.h. Integer sums are kept as long as the format
// allows: 32 columns, or 256 for K-quants, whose sub-scales multiply the integers.

#include <cmath>
#include <cstring>

#include "formats.h"
#include "isa.h"

namespace tmk {
namespace {

template <class V, class Fmt>
struct Block {
  const uint8_t* p;
  static constexpr int plane = 4 * V::L;

  inline __attribute__((always_inline)) typename V::B operator()(int i) const {
    typename V::B v;
    if constexpr (Fmt::base == 8) {
      v = V::load(p + plane * i);
    } else if constexpr (Fmt::base == 4) {
      v = V::load(p + plane * (i / 2));
      v = i % 2 ? V::template bits<4>(v, 15) : V::template bits<0>(v, 15);
    } else {
      v = two(p, i);
    }
    if constexpr (Fmt::high == 2) {
      const typename V::B h = V::load(p + plane * (Fmt::base + i / 4));
      typename V::B up;
      switch (i % 4) {
        case 0: up = V::template raise<4>(V::template bits<0>(h, 3)); break;
        case 1: up = V::template raise<2>(V::template bits<0>(h, 12)); break;
        case 2: up = V::template bits<0>(h, 48); break;
        default: up = V::template bits<2>(h, 48); break;
      }
      v = V::either(v, up);
    } else if constexpr (Fmt::high == 1) {
      const typename V::B h = V::load(p + plane * Fmt::base);
      v = V::either(v, V::template raise<Fmt::base>(one(h, i)));
    }
    if constexpr (Fmt::book == kBookIQ4) v = V::look_up(kIQ4, v);
    if constexpr (Fmt::book == kBookFP4) v = V::look_up(kFP4, v);
    return v;
  }

  static inline typename V::B two(const uint8_t* p, int i) {
    const typename V::B b = V::load(p + plane * (i / 4));
    switch (i % 4) {
      case 0: return V::template bits<0>(b, 3);
      case 1: return V::template bits<2>(b, 3);
      case 2: return V::template bits<4>(b, 3);
      default: return V::template bits<6>(b, 3);
    }
  }

  static inline typename V::B one(typename V::B h, int i) {
    switch (i) {
      case 0: return V::template bits<0>(h, 1);
      case 1: return V::template bits<1>(h, 1);
      case 2: return V::template bits<2>(h, 1);
      case 3: return V::template bits<3>(h, 1);
      case 4: return V::template bits<4>(h, 1);
      case 5: return V::template bits<5>(h, 1);
      case 6: return V::template bits<6>(h, 1);
      default: return V::template bits<7>(h, 1);
    }
  }
};

template <class V, class Fmt, int T>
void tile(const uint8_t* panel, const Activations& a, int64_t first, float* out, int64_t stride) {
  constexpr int L = V::L;
  constexpr size_t block = Fmt::block(L), header = Fmt::header(L);
  constexpr size_t d_bytes = Fmt::scale_bytes * L;
  const int64_t K = a.cols;
  const uint8_t* h = panel;
  const uint8_t* p = panel + Fmt::headers(L, K);
  const int8_t* x[T];
  const int16_t* wide[T];
  typename V::F acc[T];
  for (int t = 0; t < T; t++) {
    x[t] = a.q + (first + t) * K;
    wide[t] = V::wide ? a.wide + (first + t) * K : nullptr;
    acc[t] = V::fzero();
  }
  if constexpr (Fmt::super == 32) {
    const int64_t blocks = K / 32;
    const float* d = a.d32 + first * blocks;
    const int16_t* s = a.sum32 + first * blocks;
    for (int64_t b = 0; b < blocks; b++, p += block, h += header) {
      if constexpr (T == 1)
        for (size_t line = 0; line < block; line += 64) V::prefetch(p + 2048 + line);
      typename V::I sum[T];
      for (int t = 0; t < T; t++)
        sum[t] = Fmt::zero ? V::set(-Fmt::zero * s[t * blocks + b]) : V::zero();
      V::template group<Fmt, 0, 8, T>(Block<V, Fmt>{p}, x, wide, nullptr, 0, sum);
      const typename V::F scale = Fmt::f32 ? V::load_float(h) : V::load_half(h);
      for (int t = 0; t < T; t++) {
        const float xd = d[t * blocks + b];
        acc[t] = V::fma(V::to_float(sum[t]), V::times(scale, xd), acc[t]);
        if constexpr (Fmt::min)
          acc[t] = V::fma(V::load_half(h + d_bytes), V::fset(xd * s[t * blocks + b]), acc[t]);
        x[t] += 32;
        if constexpr (V::wide) wide[t] += 32;
      }
    }
  } else {
    constexpr size_t pair_bytes = 2 * L, pairs_at = d_bytes + (Fmt::min ? 2 * L : 0);
    const int64_t supers = K / 256;
    const float* d = a.d256 + first * supers;
    const int64_t sums = K / Fmt::group;
    const int16_t* s = (Fmt::group == 16 ? a.sum16 : a.sum32) + first * sums;
    for (int64_t b = 0; b < supers; b++, h += header) {
      typename V::I sum[T], low[T];
      for (int t = 0; t < T; t++) sum[t] = low[t] = V::zero();
      if constexpr (Fmt::group == 32) {
        for (int j = 0; j < 4; j++) {
          const typename V::P pair = V::load_pairs(h + pairs_at + j * pair_bytes);
          for (int which = 0; which < 2; which++, p += block) {
            if constexpr (T == 1)
              for (size_t line = 0; line < block; line += 64) V::prefetch(p + 2048 + line);
            V::template group<Fmt, 0, 8, T>(Block<V, Fmt>{p}, x, wide, &pair, which, sum);
            for (int t = 0; t < T; t++) {
              x[t] += 32;
              if constexpr (V::wide) wide[t] += 32;
            }
          }
        }
      } else {
        for (int j = 0; j < 8; j++, p += block) {
          if constexpr (T == 1)
            for (size_t line = 0; line < block; line += 64) V::prefetch(p + 2048 + line);
          const typename V::P pair = V::load_pairs(h + pairs_at + j * pair_bytes);
          V::template group<Fmt, 0, 4, T>(Block<V, Fmt>{p}, x, wide, &pair, 0, sum);
          V::template group<Fmt, 4, 4, T>(Block<V, Fmt>{p}, x, wide, &pair, 1, sum);
          for (int t = 0; t < T; t++) {
            x[t] += 32;
            if constexpr (V::wide) wide[t] += 32;
          }
        }
      }
      // Σ min·x, or zero · Σ scale·x: both are pairs times sums of the activations.
      constexpr size_t low_at = pairs_at + (Fmt::min ? Fmt::pairs * pair_bytes : 0);
      for (int j = 0; j < Fmt::pairs; j++) {
        const typename V::P pair = V::load_pairs(h + low_at + j * pair_bytes);
        for (int t = 0; t < T; t++)
          low[t] = V::mul_pairs(low[t], pair, s + t * sums + b * (256 / Fmt::group) + 2 * j);
      }
      const typename V::F scale = V::load_half(h);
      for (int t = 0; t < T; t++) {
        const float xd = d[t * supers + b];
        if constexpr (Fmt::min)
          acc[t] = V::fma(V::to_float(low[t]), V::times(V::load_half(h + d_bytes), -xd), acc[t]);
        else
          sum[t] = V::sub_times(sum[t], low[t], Fmt::zero);
        acc[t] = V::fma(V::to_float(sum[t]), V::times(scale, xd), acc[t]);
      }
    }
  }
  for (int t = 0; t < T; t++) V::store(out + t * stride, acc[t]);
}

// To whole numbers in -127 … 127, to nearest, ties to even.
inline vi rounded(vf x) { return (vi)(x + 12582912.0f) - 0x4b400000; }

// NaN and infinity make a block's scale NaN, so that they reach the result and no other token.
void quantize_token(const float* x, const Activations& a, int64_t token, int super, int64_t first,
                    int64_t last) {
  typedef int8_t bytes __attribute__((vector_size(N), aligned(1), may_alias));
  const int64_t K = a.cols;
  int8_t* q = a.q + token * K;
  for (int64_t b = first; b < last; b++) {
    const float* v = x + b * super;
    vf most = {}, bad = {};
    for (int i = 0; i < super; i += N) {
      const vf one = load(v + i), size = (vf)((vi)one & 0x7fffffff);
      most = pick(size > most, size, most);
      bad += one * 0.0f;
    }
    float largest = 0;
    for (int i = 0; i < N; i++) largest = most[i] > largest ? most[i] : largest;
    const bool finite = total(bad) == 0.0f, some = finite && largest > 1e-30f;
    const vf inverse = splat(some ? 127.0f / largest : 0.0f);
    int8_t* o = q + b * super;
    if (some)
      for (int i = 0; i < super; i += N)
        *(bytes*)(o + i) = __builtin_convertvector(rounded(load(v + i) * inverse), bytes);
    else
      std::memset(o, 0, super);
    const float scale = finite ? (some ? largest / 127.0f : 0.0f) : NAN;
    if (super == 256)
      a.d256[token * (K / 256) + b] = scale;
    else
      a.d32[token * (K / 32) + b] = scale;
  }
  int16_t* s16 = a.sum16 + token * (K / 16);
  int16_t* s32 = a.sum32 + token * (K / 32);
  for (int64_t g = first * super / 32; g < last * super / 32; g++) {
    int sum[2] = {0, 0};
    for (int i = 0; i < 16; i++) sum[0] += q[g * 32 + i], sum[1] += q[g * 32 + 16 + i];
    s16[2 * g] = int16_t(sum[0]);
    s16[2 * g + 1] = int16_t(sum[1]);
    s32[g] = int16_t(sum[0] + sum[1]);
  }
  if (!a.wide) return;
  int16_t* wide = a.wide + token * K;
  for (int64_t i = first * super; i < last * super; i += 4) {
    wide[i] = q[i];
    wide[i + 1] = q[i + 2];
    wide[i + 2] = q[i + 1];
    wide[i + 3] = q[i + 3];
  }
}

}  // namespace
}  // namespace tmk
