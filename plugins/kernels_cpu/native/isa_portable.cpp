#define TMK_FLOATS 4
#include "simd_portable.h"

#include "isa_table.inl"

namespace tmk {
const Isa* portable() {
  static const Isa table = make_table<Portable<8>>("portable");
  return &table;
}
const Isa* portable16() {
  static const Isa table = make_table<Portable<16>>("portable16");
  return &table;
}
}  // namespace tmk
