// Fills the function table of one instruction set. TMK_VECTOR is its vector struct.
#include "attend.inl"
#include "gate.inl"
#include "linear.inl"
#include "pack.inl"

#include "affine.inl"
#include "widened.inl"

namespace tmk {
namespace {

template <class V>
Isa make_table(const char* name) {
  Isa isa{};
  isa.name = name;
  isa.lanes = V::L;
  isa.tile = V::tile;
#define X(F)                                                         \
  isa.linear[k##F][0] = tile<V, F, 1>;                               \
  isa.linear[k##F][1] = tile<V, F, 2>;                               \
  isa.linear[k##F][2] = tile<V, F, 4>;                               \
  if constexpr (V::tile == 8) isa.linear[k##F][3] = tile<V, F, 8>;   \
  isa.pack[k##F] = pack_panel<F, V::L>;
  TMK_FORMATS(X)
#undef X
#define X(Bits)                                                                      \
  isa.affine[Bits][0] = affine_tile<V, Affine##Bits, 1>;                             \
  isa.affine[Bits][1] = affine_tile<V, Affine##Bits, 2>;                             \
  isa.affine[Bits][2] = affine_tile<V, Affine##Bits, 4>;                             \
  if constexpr (V::tile == 8) isa.affine[Bits][3] = affine_tile<V, Affine##Bits, 8>; \
  isa.pack_affine[Bits] = pack_affine_panel<Bits, Affine##Bits, V::L>;
  TMK_AFFINE(X)
#undef X
  isa.quantize = quantize_token;
  isa.attend = attend;
  isa.plain = plain;
  isa.widened = widened;
  isa.floats = floats;
  isa.norm = norm;
  isa.rotate = rotate;
  isa.store = store_as;
  isa.gate = gate;
  isa.bounded_gate = bounded_gate;
  return isa;
}

}  // namespace
}  // namespace tmk
