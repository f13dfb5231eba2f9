#define TMK_FLOATS 16
#include "simd_avx512.h"

#include "isa_table.inl"

namespace tmk {
const Isa* avx512() {
  static const Isa table = make_table<Avx512>("avx512");
  return &table;
}
}  // namespace tmk
