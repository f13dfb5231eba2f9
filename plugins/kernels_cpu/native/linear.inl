// Quantized linear for one instruction set: a strip of panels times the tokens of one tile.
//
// Written once over the vector types of simd_*.h. Integer sums are kept as long as the format
// allows: 32 columns, or 256 for K-quants, whose sub-scales multiply the integers.

#include <cmath>
#include <cstring>

#include "crossing.inl"
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

// What a row's sums start from: where codes are split, also from what lies at p.
template <class V, class Fmt>
inline __attribute__((always_inline)) typename V::I start_of(const uint8_t* p, typename V::I start) {
  if constexpr (Fmt::split) return V::add(V::load_ints(p), start);
  return start;
}

// What is taken at once of a tile of Side tokens: as many panels as there are registers for sums, since
// each is a stream of its own. AVX2 takes half of eight tokens, unless a code is put together from
// several places, or signed and looked up, which is then done for all of them.
template <class V, class Fmt, int Side>
struct Taken {
  static constexpr bool composed = Fmt::high || (Fmt::is_signed && Fmt::book);
  static constexpr int tokens = Side == 8 && V::L == 8 && !composed ? 4 : Side;
  static constexpr int room = V::template sums<Fmt, Side> / tokens;
  static constexpr int panels = room < kStreams ? room : kStreams;
};

// Asks for what lies 4 KB behind the next `bytes`, where arithmetic takes longer than reading, which
// processors then leave off; elsewhere that would slow reading by a third. Inlined by force: to the
// compiler a function that does nothing else has no effect.
template <class V, class Fmt, int Side>
inline __attribute__((always_inline)) void fetch_ahead(const Block<V, Fmt>& w, size_t bytes) {
  if constexpr (!Fmt::near && Side >= V::slow_from)
    for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(w.p + 4096 + line);
}

// Float operations come in the same order for a token whatever T is, so that its results do not
// depend on its neighbours. `which` is the first of T tokens in a tile of Side.
template <class V, class Fmt, int Side, int T, int P>
void some_panels(const uint8_t* const* panels, const Activations& a, int64_t first, int which,
                 float* out, int64_t stride) {
  constexpr int L = V::L;
  constexpr int zero = zero_point<V, Fmt>;
  constexpr size_t header = Fmt::header(L), d_bytes = Fmt::scale_bytes * L;
  using Columns = Block<V, Fmt>;
  const int64_t K = a.cols;
  const uint8_t* h[P];
  Columns w[P];
  typename V::F acc[P][T];
  for (int p = 0; p < P; p++) {
    w[p].p = panels[p];
    for (int t = 0; t < T; t++) acc[p][t] = V::fzero();
  }
  const auto next_header = [&]() __attribute__((always_inline)) {
    for (int p = 0; p < P; p++) {
      fetch_ahead<V, Fmt, Side>(w[p], header);
      h[p] = w[p].p, w[p].p += header;
    }
  };
  const int8_t* x = a.q + first * K + 4 * which;
  const float* d = a.d + first * (K / Fmt::super) + which;
  const auto next_block = [&]() __attribute__((always_inline)) {
    x += 32 * Side;
    for (int p = 0; p < P; p++) w[p].p += Columns::bytes;
  };
  const auto ahead = [&]() __attribute__((always_inline)) {
    for (int p = 0; p < P; p++) fetch_ahead<V, Fmt, Side>(w[p], Columns::bytes);
  };
  if constexpr (Fmt::super == 32) {
    const int16_t* s = a.sum32 + first * (K / 32) + which;
    for (int64_t b = 0; b < K / 32; b++, d += Side, s += Side) {
      next_header();
      typename V::I sum[P][T];
      for (int t = 0; t < T; t++) {
        typename V::I start = V::zero();
        if constexpr (zero) start = V::template minus<zero>(s + t);
        for (int p = 0; p < P; p++) sum[p][t] = start_of<V, Fmt>(h[p] + header - 4 * L, start);
      }
      ahead();
      V::template group<Fmt, 0, 8, Side>(w, x, nullptr, 0, nullptr, sum);
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
    }
  } else {
    constexpr size_t pair_bytes = 2 * L, pairs_at = d_bytes + (Fmt::min ? 2 * L : 0);
    const int16_t* s =
        2 * which + (Fmt::group == 16 ? a.sum16 + first * (K / 16) : a.sum32 + first * (K / 32));
    for (int64_t b = 0; b < K / 256; b++, d += Side, s += 2 * Fmt::pairs * Side) {
      next_header();
      typename V::I sum[P][T];
      for (int p = 0; p < P; p++)
        for (int t = 0; t < T; t++) sum[p][t] = start_of<V, Fmt>(h[p] + header - 4 * L, V::zero());
      for (int j = 0; j < Fmt::pairs; j++) {
        typename V::Pair pair[P];
        for (int p = 0; p < P; p++) pair[p] = V::load_pairs(h[p] + pairs_at + j * pair_bytes);
        const int16_t* both = s + 2 * j * Side;
        ahead();
        if constexpr (Fmt::group == 16) {
          V::template group<Fmt, 0, 4, Side>(w, x, pair, 0, both, sum);
          V::template group<Fmt, 4, 4, Side>(w, x, pair, 1, both, sum);
        } else {
          V::template group<Fmt, 0, 8, Side>(w, x, pair, 0, both, sum);
          next_block();
          ahead();
          V::template group<Fmt, 0, 8, Side>(w, x, pair, 1, both, sum);
        }
        next_block();
      }
      // Σ min·x, or zero · Σ scale·x if not done before: both are pairs times sums of the activations.
      constexpr bool lower = zero && !V::template zero_first<Fmt>;
      constexpr size_t low_at = pairs_at + (Fmt::min ? Fmt::pairs * pair_bytes : 0);
      typename V::I low[P][T];
      for (int p = 0; p < P; p++)
        for (int t = 0; t < T; t++) low[p][t] = V::zero();
      if constexpr (Fmt::min || lower)
        for (int j = 0; j < Fmt::pairs; j++)
          for (int p = 0; p < P; p++) {
            const typename V::Pair pair = V::load_pairs(h[p] + low_at + j * pair_bytes);
            for (int t = 0; t < T; t++)
              low[p][t] = V::mul_pairs(low[p][t], pair, s + 2 * (j * Side + t));
          }
      for (int p = 0; p < P; p++) {
        const typename V::F scale = V::load_half(h[p]);
        for (int t = 0; t < T; t++) {
          if constexpr (lower) sum[p][t] = V::sub_times(sum[p][t], low[p][t], zero);
          typename V::F value = V::fmul(V::to_float(sum[p][t]), scale);
          if constexpr (Fmt::min)
            value = V::fnma(V::to_float(low[p][t]), V::load_half(h[p] + d_bytes), value);
          acc[p][t] = V::fma(value, V::fset(d[t]), acc[p][t]);
        }
      }
    }
  }
  for (int p = 0; p < P; p++)
    for (int t = 0; t < T; t++) V::store(out + t * stride + p * L, acc[p][t]);
}

template <class V, class Fmt, int Side>
void tile(const uint8_t* const* panels, int count, const Linear&, const Activations& a,
          int64_t first, float* out, int64_t stride) {
  constexpr int T = Taken<V, Fmt, Side>::tokens, P = Taken<V, Fmt, Side>::panels;
  for (int p = 0; p < count; p += P)
    for (int t = 0; t < Side; t += T)
      some_panels<V, Fmt, Side, T, P>(panels + p, a, first, t, out + t * stride + p * V::L, stride);
}

// To whole numbers in -127 … 127, to nearest, ties to even.
inline vi rounded(vf x) { return (vi)(x + 12582912.0f) - 0x4b400000; }

// 32 numbers of at most a byte.
inline void narrow(const int32_t* from, int8_t* to) {
#if defined(__AVX2__)
  const auto part = [&](int i) { return _mm256_loadu_si256((const __m256i*)(from + 8 * i)); };
  // Packing keeps to halves of the registers: of each part first one half, then the other.
  const __m256i halves = _mm256_packs_epi16(_mm256_packs_epi32(part(0), part(1)),
                                            _mm256_packs_epi32(part(2), part(3)));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32(halves, order));
#else
  for (int i = 0; i < 32; i++) to[i] = int8_t(from[i]);
#endif
}

// Sums of the first 16 codes and of the others.
inline void add_up(const int8_t* codes, int (&sum)[2]) {
#if defined(__AVX2__)
  const __m256i ones = _mm256_set1_epi8(1), all = _mm256_loadu_si256((const __m256i*)codes);
  const __m256i fours = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, all), _mm256_set1_epi16(1));
  const __m256i eights = _mm256_hadd_epi32(fours, fours), halves = _mm256_hadd_epi32(eights, eights);
  sum[0] = _mm256_extract_epi32(halves, 0);
  sum[1] = _mm256_extract_epi32(halves, 4);
#else
  for (int i = 0; i < 32; i++) sum[i / 16] += codes[i];
#endif
}

// NaN and infinity make a block's scale NaN, so that they reach the result and no other token.
void quantize_token(const float* x, const Activations& a, Tile tile, int64_t token, int super,
                    int64_t first, int64_t last) {
  const int64_t K = a.cols;
  const int n = tile.n, own = int(token - tile.first);
  int8_t* q = a.q + tile.first * K + 4 * own;
  int16_t* sum16 = a.sum16 + tile.first * (K / 16) + 2 * own;
  int16_t* sum32 = a.sum32 + tile.first * (K / 32);
  for (int64_t b = first; b < last; b++) {
    const float* v = x + b * super;
    vi most = {};  // bits of sizes, which are ordered as the numbers; NaN and infinity above all
    for (int i = 0; i < super; i += N) {
      const vi size = (vi)load(v + i) & 0x7fffffff;
      most = size > most ? size : most;
    }
    const auto greater = [](vf a, vf b) { return (vf)((vi)a > (vi)b ? (vi)a : (vi)b); };
    const float largest = across<1>((vf)most, greater)[0];
    int32_t bits;
    std::memcpy(&bits, &largest, 4);
    const bool finite = bits < 0x7f800000, some = finite && largest > 1e-30f;
    const vf inverse = splat(some ? 127.0f / largest : 0.0f);
    a.d[tile.first * (K / super) + b * n + own] =
        finite ? (some ? largest / 127.0f : 0.0f) : NAN;
    for (int i = 0; i < super; i += 32) {
      int8_t codes[32] = {};
      int sum[2] = {0, 0};
      if (some) {
        vi wide[32 / N];
        for (int j = 0; j < 32 / N; j++) wide[j] = rounded(load(v + i + j * N) * inverse);
        narrow((const int32_t*)wide, codes);
        add_up(codes, sum);
      }
      for (int j = 0; j < 32; j += 4) std::memcpy(q + (b * super + i + j) * n, codes + j, 4);
      const int64_t g = (b * super + i) / 32;
      sum16[2 * g * n] = int16_t(sum[0]);
      sum16[2 * g * n + 1] = int16_t(sum[1]);
      int16_t* both = sum32 + (super == 32 ? g * n + own : g / 2 * 2 * n + 2 * own + g % 2);
      *both = int16_t(sum[0] + sum[1]);
    }
  }
}

}  // namespace
}  // namespace tmk
