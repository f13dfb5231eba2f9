// What the translation units that know no instruction set share.
#pragma once
#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace tmk {

size_t panel_bytes(int type, int lanes, int64_t cols);
size_t panel_bytes(const Linear& w, int lanes);
int super_columns(int type);  // columns under one float scale; 0 for none; or kToBrain
int block_columns(int type);  // columns of one block in the file
int block_bytes(int type);
// Row i of the panels is row order[i] of `src`, or row i where `order` is null.
int64_t pack_weight(const Isa& isa, int type, int64_t rows, int64_t cols, const uint8_t* src,
                    const int64_t* order, uint8_t* dst, int threads);
// The same from codes as streams of bits, least significant first, [rows, cols · bits / 8], and
// scales and minima [rows, cols / w.group]. All but `w.data` and `w.bias` is set.
int64_t pack_affine(const Isa& isa, const Linear& w, const uint8_t* codes, const uint8_t* scales,
                    const uint8_t* minima, uint8_t* dst, int threads);
const Isa& isa();

}  // namespace tmk
