// What the translation units that know no instruction set share.
#pragma once
#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace tmk {

size_t panel_bytes(int type, int lanes, int64_t cols);
int super_columns(int type);  // columns under one float scale; 0 for an unknown type
int block_columns(int type);  // columns of one block in the file
int block_bytes(int type);
// Row i of the panels is row order[i] of `src`, or row i where `order` is null.
int64_t pack_weight(const Isa& isa, int type, int64_t rows, int64_t cols, const uint8_t* src,
                    const int64_t* order, uint8_t* dst, int threads);
const Isa& isa();

}  // namespace tmk
