// Fills the function table of one instruction set. TMK_VECTOR is its vector struct.
#include "attend.inl"
#include "draw.inl"
#include "gate.inl"
#include "linear.inl"
#include "pack.inl"

#include "opened.inl"

#include "affine.inl"
#include "widened.inl"

namespace tmk {
namespace {

template <class V, class Fmt>
Tiles tiles_of() {
  Tiles t{{tile<V, Fmt, 1>, tile<V, Fmt, 2>, tile<V, Fmt, 4>}};
  if constexpr (V::tile == 8) t.stored[3] = tile<V, Fmt, 8>;
  if constexpr (V::template opens<Fmt>) {
    t.opened_bytes = opened_bytes<V, Fmt>;
    t.open = open_panel<V, Fmt>;
    t.near = tile<V, InBytes<V, Fmt>, V::tile>;
  } else if constexpr (V::tile == 8) {
    t.near = tile<V, Near<Fmt>, V::tile>;
  }
  return t;
}

template <class V, class Fmt>
Tiles affine_tiles_of() {
  Tiles t{{affine_tile<V, Fmt, 1>, affine_tile<V, Fmt, 2>, affine_tile<V, Fmt, 4>}};
  if constexpr (V::tile == 8) t.stored[3] = affine_tile<V, Fmt, 8>;
  if constexpr (V::template opens<Fmt>) {
    t.opened_bytes = opened_affine_bytes<V, Fmt>;
    t.open = open_affine_panel<V, Fmt>;
    t.near = affine_tile<V, InBytes<V, Fmt>, V::tile>;
  } else if constexpr (V::tile == 8) {
    t.near = affine_tile<V, Near<Fmt>, V::tile>;
  }
  return t;
}

template <class V>
Isa make_table(const char* name) {
  Isa isa{};
  isa.name = name;
  isa.lanes = V::L;
  isa.tile = V::tile;
  isa.in_line = V::in_line;
#define X(F)                           \
  isa.linear[k##F] = tiles_of<V, F>(); \
  isa.pack[k##F] = pack_panel<F, V::L>;
  TMK_FORMATS(X)
#undef X
#define X(Bits)                                          \
  isa.affine[Bits] = affine_tiles_of<V, Affine##Bits>(); \
  isa.pack_affine[Bits] = pack_affine_panel<Bits, Affine##Bits, V::L>;
  TMK_AFFINE(X)
#undef X
  isa.quantize = quantize_token;
  isa.attend = attend;
  isa.merge = merge;
  isa.plain = plain;
  isa.widened = widened;
  isa.floats = floats;
  isa.norm = norm;
  isa.rotate = rotate;
  isa.store = store_as;
  isa.gate = gate;
  isa.bounded_gate = bounded_gate;
  isa.highest = highest;
  isa.exponentials = exponentials;
  isa.heavier = heavier;
  return isa;
}

}  // namespace
}  // namespace tmk
