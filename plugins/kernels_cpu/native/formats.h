// What the kernels need to know of each weight type, and how packed panels are laid out.
//
// A panel holds L rows (L: int32 lanes of the ISA). Its columns go in blocks of 32; a block is a
// number of planes of 4·L bytes, byte 4·r + j of a plane belonging to row r, so that one load feeds
// all rows and four activations are broadcast against it. Vector i (0 to 7) of a block means columns
// 4·i to 4·i + 3:
//
//   low 4 bits   plane i/2, low nibble for even i, high for odd
//   low 2 bits   plane i/4, bits 2·(i%4) and up
//   high 1 bit   one plane, bit i
//   high 2 bits  plane i/4, bits 2·(i%4) and up
//   8 bits       plane i
//
// In front of the blocks of 32 or 256 columns lie their scales: d [L], then (types with a minimum)
// m [L]; for K-quants then pairs of integer sub-scales [pairs][L][2] and (those with minima) of
// sub-minima. Widths are no larger than in the file, and a panel is read from end to end.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tmk.h"

// Internal linkage throughout: each instruction set compiles its own copy, and the linker must not
// choose one of them for all.
namespace tmk {
namespace {

constexpr size_t to_lines(size_t bytes) { return (bytes + 63) & ~size_t(63); }

// Base bits, high bits, columns under one float scale, columns under one integer sub-scale (0:
// none), affine minimum, zero point, largest value, code book, scale stored as float32. Values are
// unsigned with the zero point taken off afterwards, but for those above 63: these are stored with
// 128 taken off, and an instruction set that wants unsigned ones adds it.
template <int Base, int High, int Super, int Group, bool Min, int Zero, int Max, int Book, bool F32>
struct Format {
  static constexpr int base = Base, high = High, super = Super, group = Group, zero = Zero;
  static constexpr int max = Max, book = Book;
  static constexpr bool min = Min, f32 = F32;
  static constexpr bool is_signed = Max > 63;
  static constexpr bool near = false, split = false;  // see opened.inl
  static constexpr int planes = Base + High;  // of a block of 32 columns
  static constexpr int pairs = Group ? Super / Group / 2 : 0;
  static constexpr size_t scale_bytes = F32 ? 4 : 2;
  static constexpr size_t header(int lanes) {
    return lanes * (scale_bytes + (Min ? 2 : 0) + 2 * pairs * (Min && Group ? 2 : 1));
  }
  static constexpr size_t block(int lanes) { return size_t(4) * lanes * planes; }
  static size_t panel(int lanes, int64_t cols) {
    return to_lines((header(lanes) + block(lanes) * (Super / 32)) * (cols / Super));
  }
};

constexpr int kBookIQ4 = 1, kBookFP4 = 2;

constexpr int8_t kIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kFP4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

using Q4_0 = Format<4, 0, 32, 0, false, 8, 15, 0, false>;
using Q4_1 = Format<4, 0, 32, 0, true, 0, 15, 0, false>;
using Q5_0 = Format<4, 1, 32, 0, false, 16, 31, 0, false>;
using Q5_1 = Format<4, 1, 32, 0, true, 0, 31, 0, false>;
using Q8_0 = Format<8, 0, 32, 0, false, 128, 255, 0, false>;
using Q8_K = Format<8, 0, 32, 0, false, 128, 255, 0, true>;  // its 256-block scale, repeated
using IQ4_NL = Format<4, 0, 32, 0, false, 128, 255, kBookIQ4, false>;
using MXFP4 = Format<4, 0, 32, 0, false, 12, 24, kBookFP4, true>;
using Q2_K = Format<2, 0, 256, 16, true, 0, 3, 0, false>;
using Q3_K = Format<2, 1, 256, 16, false, 4, 7, 0, false>;
using Q4_K = Format<4, 0, 256, 32, true, 0, 15, 0, false>;
using Q5_K = Format<4, 1, 256, 32, true, 0, 31, 0, false>;
using Q6_K = Format<4, 2, 256, 16, false, 32, 63, 0, false>;
using IQ4_XS = Format<4, 0, 256, 32, false, 128, 255, kBookIQ4, false>;

// Affine types, by bits of a code. d [L] and m [L] lie in front of each group's blocks, which are as
// many as the weight says, and are as wide as it says; blocks are those of the format.
using Affine2 = Format<2, 0, 32, 0, true, 0, 3, 0, false>;
using Affine3 = Format<2, 1, 32, 0, true, 0, 7, 0, false>;
using Affine4 = Format<4, 0, 32, 0, true, 0, 15, 0, false>;
using Affine5 = Format<4, 1, 32, 0, true, 0, 31, 0, false>;
using Affine6 = Format<4, 2, 32, 0, true, 0, 63, 0, false>;
using Affine8 = Format<8, 0, 32, 0, true, 0, 255, 0, false>;

inline size_t float_bytes(int floats) { return floats == kFloat ? 4 : 2; }
inline size_t affine_header(const Linear& w, int lanes) { return 2 * lanes * float_bytes(w.floats); }

#define TMK_AFFINE(X) X(2) X(3) X(4) X(5) X(6) X(8)

#define TMK_FORMATS(X) \
  X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q8_K) X(IQ4_NL) X(MXFP4) \
  X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_XS)

}  // namespace
}  // namespace tmk
