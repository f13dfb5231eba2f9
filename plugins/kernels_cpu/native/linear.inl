// Quantized linear for one instruction set: kRows rows times the tokens of one tile.
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
  const uint8_t* p = nullptr;
  static constexpr int plane = 4 * V::L;
  static constexpr size_t bytes = Fmt::block(V::L);

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
    if constexpr (Fmt::is_signed && !V::takes_signed) v = V::raised_by_128(v);
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

// What is to be taken off the values that a format's columns come as.
template <class V, class Fmt>
constexpr int zero_point = Fmt::zero - (Fmt::is_signed && V::takes_signed ? 128 : 0);

// Asks for memory that will be read soon. Not in full tiles: there arithmetic takes longer.
template <class V, class Fmt, int T>
inline __attribute__((always_inline)) void fetch_ahead(const Block<V, Fmt>& w) {
  if constexpr (T < V::tile)
    for (size_t line = 0; line < Block<V, Fmt>::bytes; line += 64) V::prefetch(w.p + 2048 + line);
}

// Float operations come in the same order for a token whatever T is, so that its results do not
// depend on its neighbours.
template <class V, class Fmt, int T>
void tile(const uint8_t* const* panels, const Activations& a, int64_t first, float* out,
          int64_t stride) {
  constexpr int L = V::L, P = kRows / L;
  constexpr int zero = zero_point<V, Fmt>;
  constexpr size_t header = Fmt::header(L), d_bytes = Fmt::scale_bytes * L;
  using Columns = Block<V, Fmt>;
  const int64_t K = a.cols;
  const uint8_t* h[P];
  Columns w[P];
  typename V::F acc[P][T];
  for (int p = 0; p < P; p++) {
    h[p] = panels[p];
    w[p].p = panels[p] + Fmt::headers(L, K);
    for (int t = 0; t < T; t++) acc[p][t] = V::fzero();
  }
  const int8_t* x = a.q + first * K;
  const float* d = a.d + first * (K / Fmt::super);
  const auto next_block = [&]() __attribute__((always_inline)) {
    x += 32 * T;
    for (int p = 0; p < P; p++) w[p].p += Columns::bytes;
  };
  const auto ahead = [&]() __attribute__((always_inline)) {
    for (int p = 0; p < P; p++) fetch_ahead<V, Fmt, T>(w[p]);
  };
  if constexpr (Fmt::super == 32) {
    const int16_t* s = a.sum32 + first * (K / 32);
    for (int64_t b = 0; b < K / 32; b++, d += T, s += T) {
      ahead();
      typename V::I sum[P][T];
      for (int t = 0; t < T; t++) {
        const typename V::I start = zero ? V::times(s + t, -zero) : V::zero();
        for (int p = 0; p < P; p++) sum[p][t] = start;
      }
      V::template group<Fmt, 0, 8, P, T>(w, x, nullptr, 0, sum);
      typename V::F scale[P];
      for (int p = 0; p < P; p++) scale[p] = Fmt::f32 ? V::load_float(h[p]) : V::load_half(h[p]);
      for (int t = 0; t < T; t++) {
        const typename V::F xd = V::fset(d[t]);
        for (int p = 0; p < P; p++)
          acc[p][t] = V::fma(V::to_float(sum[p][t]), V::fmul(scale[p], xd), acc[p][t]);
      }
      if constexpr (Fmt::min) {
        for (int p = 0; p < P; p++) scale[p] = V::load_half(h[p] + d_bytes);
        for (int t = 0; t < T; t++) {
          const typename V::F low = V::fset(d[t] * s[t]);
          for (int p = 0; p < P; p++) acc[p][t] = V::fma(scale[p], low, acc[p][t]);
        }
      }
      next_block();
      for (int p = 0; p < P; p++) h[p] += header;
    }
  } else {
    constexpr size_t pair_bytes = 2 * L, pairs_at = d_bytes + (Fmt::min ? 2 * L : 0);
    const int16_t* s = Fmt::group == 16 ? a.sum16 + first * (K / 16) : a.sum32 + first * (K / 32);
    for (int64_t b = 0; b < K / 256; b++, d += T, s += 2 * Fmt::pairs * T) {
      typename V::I sum[P][T];
      for (int p = 0; p < P; p++)
        for (int t = 0; t < T; t++) sum[p][t] = V::zero();
      for (int j = 0; j < Fmt::pairs; j++) {
        typename V::Pair pair[P];
        for (int p = 0; p < P; p++) pair[p] = V::load_pairs(h[p] + pairs_at + j * pair_bytes);
        ahead();
        if constexpr (Fmt::group == 16) {
          V::template group<Fmt, 0, 4, P, T>(w, x, pair, 0, sum);
          V::template group<Fmt, 4, 4, P, T>(w, x, pair, 1, sum);
        } else {
          V::template group<Fmt, 0, 8, P, T>(w, x, pair, 0, sum);
          next_block();
          ahead();
          V::template group<Fmt, 0, 8, P, T>(w, x, pair, 1, sum);
        }
        next_block();
      }
      // Σ min·x, or zero · Σ scale·x: both are pairs times sums of the activations.
      constexpr size_t low_at = pairs_at + (Fmt::min ? Fmt::pairs * pair_bytes : 0);
      typename V::I low[P][T];
      for (int p = 0; p < P; p++)
        for (int t = 0; t < T; t++) low[p][t] = V::zero();
      if constexpr (Fmt::min || zero)
        for (int j = 0; j < Fmt::pairs; j++)
          for (int p = 0; p < P; p++) {
            const typename V::Pair pair = V::load_pairs(h[p] + low_at + j * pair_bytes);
            for (int t = 0; t < T; t++)
              low[p][t] = V::mul_pairs(low[p][t], pair, s + 2 * (j * T + t));
          }
      for (int p = 0; p < P; p++) {
        const typename V::F scale = V::load_half(h[p]);
        for (int t = 0; t < T; t++) {
          if constexpr (Fmt::min)
            acc[p][t] = V::fma(V::to_float(low[p][t]),
                               V::fmul(V::load_half(h[p] + d_bytes), V::fset(-d[t])), acc[p][t]);
          else if constexpr (zero)
            sum[p][t] = V::sub_times(sum[p][t], low[p][t], zero);
          acc[p][t] = V::fma(V::to_float(sum[p][t]), V::fmul(scale, V::fset(d[t])), acc[p][t]);
        }
        h[p] += header;
      }
    }
  }
  for (int p = 0; p < P; p++)
    for (int t = 0; t < T; t++) V::store(out + t * stride + p * L, acc[p][t]);
}

// To whole numbers in -127 … 127, to nearest, ties to even.
inline vi rounded(vf x) { return (vi)(x + 12582912.0f) - 0x4b400000; }

// NaN and infinity make a block's scale NaN, so that they reach the result and no other token.
void quantize_token(const float* x, const Activations& a, Tile tile, int64_t token, int super,
                    int64_t first, int64_t last) {
  typedef int8_t bytes __attribute__((vector_size(N), aligned(1), may_alias));
  const int64_t K = a.cols;
  const int n = tile.n, own = int(token - tile.first);
  int8_t* q = a.q + tile.first * K + 4 * own;
  int16_t* sum16 = a.sum16 + tile.first * (K / 16) + 2 * own;
  int16_t* sum32 = a.sum32 + tile.first * (K / 32);
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
    alignas(64) int8_t codes[256];
    if (some)
      for (int i = 0; i < super; i += N)
        *(bytes*)(codes + i) = __builtin_convertvector(rounded(load(v + i) * inverse), bytes);
    else
      std::memset(codes, 0, super);
    a.d[tile.first * (K / super) + b * n + own] =
        finite ? (some ? largest / 127.0f : 0.0f) : NAN;
    for (int i = 0; i < super; i += 4) std::memcpy(q + (b * super + i) * n, codes + i, 4);
    for (int i = 0; i < super; i += 32) {
      const int64_t g = (b * super + i) / 32;
      int sum[2] = {0, 0};
      for (int j = 0; j < 16; j++) sum[0] += codes[i + j], sum[1] += codes[i + 16 + j];
      sum16[2 * g * n] = int16_t(sum[0]);
      sum16[2 * g * n + 1] = int16_t(sum[1]);
      int16_t* both = sum32 + (super == 32 ? g * n + own : g / 2 * 2 * n + 2 * own + g % 2);
      *both = int16_t(sum[0] + sum[1]);
    }
  }
}

}  // namespace
}  // namespace tmk
