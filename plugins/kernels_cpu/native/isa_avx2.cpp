#define TMK_FLOATS 8
#include "simd_avx2.h"

#include "isa_table.inl"

namespace tmk {
const Isa* avx2() {
  static const Isa table = make_table<Avx2>("avx2");
  return &table;
}
}  // namespace tmk
