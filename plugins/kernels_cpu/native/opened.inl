// Panels that lie near a core, for all but the first of many tokens. Needs linear.inl before it.
//
// Some are opened for that: every code becomes a byte once, instead of being put together, looked up or
// signed once for every tile of tokens.
//
// A signed code w comes as two planes, |w| and m, whose bits all say whether w is negative:
//
//   w · x = |w| · (x ^ m)          where w is not negative
//   w · x = |w| · (x ^ m) + |w|    where it is, since x ^ m is -x - 1
//
// and ^ is done by more of a processor's pipes than a change of sign. What the |w| of a row's negative
// codes come to does not depend on the tokens: sums start from it, which is what makes zeros zero.
#include <cstring>

#include "formats.h"
#include "isa.h"

namespace tmk {
namespace {

// Panels as they are stored.
template <class Fmt>
struct Near : Fmt {
  static constexpr bool near = true;
};

// Starts [L] lie at the end of the scales, or, in affine types, behind each block.
template <class V, class Fmt>
struct InBytes : Fmt {
  static constexpr int base = 8, high = 0, book = 0;
  static constexpr bool is_signed = Fmt::is_signed && V::takes_signed;
  static constexpr bool near = true, split = is_signed;
  static constexpr int planes = split ? 16 : 8;
  static constexpr size_t header(int lanes) {
    return to_lines(Fmt::header(lanes) + (split ? 4 * lanes : 0));
  }
  static constexpr size_t block(int lanes) { return size_t(4) * lanes * planes; }
};

// 32 columns; adds to `sum` what zeros come to, times the sub-scales `pair` if there are any.
template <class V, class Fmt>
inline void open_block(const uint8_t* from, uint8_t* opened, const typename V::Pair* pair, int which,
                       typename V::I (&sum)[1][1]) {
  using To = InBytes<V, Fmt>;
  constexpr size_t plane = 4 * V::L;
  const Block<V, Fmt> codes{from};
  if constexpr (To::split) {
    for (int i = 0; i < 8; i++) {
      typename V::B size, negative;
      V::split(codes(i), size, negative);
      V::store(opened + plane * 2 * i, size);
      V::store(opened + plane * (2 * i + 1), negative);
    }
    constexpr int8_t zeros[32] = {};
    const Block<V, To> to[1] = {{opened}};
    V::template group<To, 0, 8, 1>(to, zeros, pair, which, nullptr, sum);
  } else {
    for (int i = 0; i < 8; i++) V::store(opened + plane * i, codes(i));
  }
}

template <class V>
inline void put_start(uint8_t* p, const typename V::I (&sum)[1][1]) {
  V::store(p, V::sub(V::zero(), sum[0][0]));
}

template <class V, class Fmt>
size_t opened_bytes(const Linear& w) {
  using To = InBytes<V, Fmt>;
  return (To::header(V::L) + To::block(V::L) * (Fmt::super / 32)) * (w.cols / Fmt::super);
}

template <class V, class Fmt>
void open_panel(const Linear& w, const uint8_t* panel, uint8_t* opened) {
  using To = InBytes<V, Fmt>;
  static_assert(!To::split || Fmt::group != 16, "32 columns are opened under one sub-scale");
  constexpr int L = V::L;
  constexpr size_t header = Fmt::header(L);
  constexpr size_t pairs_at = (Fmt::scale_bytes + (Fmt::min ? 2 : 0)) * L;
  for (int64_t b = 0; b < w.cols / Fmt::super; b++) {
    const uint8_t* scales = panel;
    std::memcpy(opened, scales, header);
    panel += header;
    opened += To::header(L);
    uint8_t* start = opened - 4 * L;
    typename V::I sum[1][1] = {{V::zero()}};
    for (int n = 0; n < Fmt::super / 32; n++) {
      typename V::Pair pair[1];
      const bool paired = To::split && Fmt::pairs;
      if (paired) pair[0] = V::load_pairs(scales + pairs_at + n / 2 * 2 * L);
      open_block<V, Fmt>(panel, opened, paired ? pair : nullptr, n % 2, sum);
      panel += Fmt::block(L);
      opened += To::block(L);
    }
    if constexpr (To::split) put_start<V>(start, sum);
  }
}

}  // namespace
}  // namespace tmk
