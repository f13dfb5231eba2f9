// Lanes of several vectors that change places, and what lanes have in common.
#pragma once
#include "floats.inl"

#include <utility>

namespace tmk {
namespace {

// Step `Step` of turning N vectors into their columns: half of the lanes of two vectors, as the
// processor's cheap instructions choose them. First numbers of each four, then fours.
template <int Step, bool Second, int... I>
inline vi crossing(std::integer_sequence<int, I...>) {
  if constexpr (Step == 0)
    return vi{(I / 4 * 4 + I % 4 / 2 + (Second ? 2 : 0) + (I & 1 ? N : 0))...};
  else if constexpr (Step == 1)
    return vi{(I / 4 * 4 + (I & 1) + (Second ? 2 : 0) + (I & 2 ? N : 0))...};
  else
    return vi{(4 * (I / 4 * 2 % (N / 4) + (Second ? 1 : 0)) + I % 4 + (I >= N / 2 ? N : 0))...};
}
template <int Step, bool Second>
inline vf crossed(vf a, vf b) {
  return __builtin_shuffle(a, b, crossing<Step, Second>(std::make_integer_sequence<int, N>()));
}

// N vectors become their columns; column c comes to lie in rows[column_at(c)].
template <int Step = 0>
inline void transpose(vf (&rows)[N]) {
  constexpr int H = 1 << Step;
  if constexpr (H < N) {
    for (int i = 0; i < N; i++)
      if (!(i & H)) {
        const vf a = rows[i], b = rows[i + H];
        rows[i] = crossed<Step, false>(a, b);
        rows[i + H] = crossed<Step, true>(a, b);
      }
    transpose<Step + 1>(rows);
  }
}
constexpr int column_at(int c) { return (c & ~3) + (c & 1) * 2 + (c >> 1 & 1); }

template <int H, int... I>
inline vf turned(vf x, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(x, vi{((I + H) % N)...});
}
// Each lane becomes what `op` makes of it and those G, 2G, … lanes away.
template <int G, int H = N / 2, class Op>
inline vf across(vf x, Op op) {
  if constexpr (H >= G)
    return across<G, H / 2>(op(x, turned<H>(x, std::make_integer_sequence<int, N>())), op);
  return x;
}

// p[l % G] in lane l.
template <int G> inline vf repeated(const float* p) {
  if constexpr (G == 4) return fours(p);
  if constexpr (G == 1) return splat(*p);
  vf o;
  for (int l = 0; l < N; l++) o[l] = p[l % G];
  return o;
}

constexpr int kLanes = N / 4;  // fours in a vector

// Dimensions 4c … 4c + 3 of every row come to lie in rows[c], each row's in four lanes of their own.
inline void cross_fours(vf (&rows)[kLanes]) {
  for (int h = 1; h < kLanes; h *= 2)
    for (int i = 0; i < kLanes; i++)
      if (!(i & h)) {
        const vf a = rows[i], b = rows[i + h];
        rows[i] = crossed<2, false>(a, b);
        rows[i + h] = crossed<2, true>(a, b);
      }
}

}  // namespace
}  // namespace tmk
