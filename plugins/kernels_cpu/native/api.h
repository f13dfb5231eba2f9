// What the translation units that know no instruction set share.
#pragma once
#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace tmk {

size_t panel_bytes(int type, int lanes, int64_t cols);
int super_columns(int type);  // columns under one float scale; 0 for an unknown type
int block_columns(int type);  // columns of one block in the file
int64_t pack_weight(int type, int lanes, int64_t rows, int64_t cols, const uint8_t* src,
                    uint8_t* dst, int threads);
const Isa& isa();

}  // namespace tmk
