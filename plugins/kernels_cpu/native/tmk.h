// The interface between Python and the native kernels: plain C over raw pointers.
//
// Errors come back as negative numbers (`Status`); nothing throws. Pointers are not kept beyond a
// call, except the weights in `Linear`, which the caller owns.
#pragma once
#include <cstdint>

namespace tmk {

enum Status : int64_t { kOk = 0, kUnknown = -1, kBadShape = -2, kBadScale = -3, kNoMemory = -4 };

// Weight types, numbered as in ggml.
enum Type : int32_t {
  kF32 = 0, kF16 = 1, kBF16 = 30,
  kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ2_K = 10, kQ3_K = 11, kQ4_K = 12,
  kQ5_K = 13, kQ6_K = 14, kQ8_K = 15, kIQ4_NL = 20, kIQ4_XS = 23, kMXFP4 = 39,
  kRounded = 63,  // BF16 whose activations are rounded to BF16
  kAffine = 64,  // and the bits of a code: codes with a scale and a minimum a group of columns
  // Codes as they are stored, scales beside them.
  kE4M3 = 80,
  kBook = 81,     // codes of four bits into a table
  kCrossed = 96,  // and the bits of a code: a scale and a zero a group of rows, column by column
};

enum Floats : int32_t { kFloat = 0, kBrain = 1, kHalf = 2 };  // float32, bfloat16, float16

// What lies beside codes.
struct Beside {
  const float* scales;
  const float* zeros;      // kCrossed
  const float* book;       // kBook: [16]
  int64_t height, width;   // rows and columns under one scale
  int64_t first_row;       // row of the topmost scales where the weight begins
  int64_t across;          // scales in a row of them
};

// A weight matrix [rows, cols]: packed panels, made by `tmk_pack` or `tmk_pack_affine` for the ISA in
// use, or plain floats or codes row by row.
struct Linear {
  int32_t type;
  int32_t floats;  // affine types: what scales and minima are stored as
  int64_t rows, cols;
  const uint8_t* data;
  const float* bias;  // [rows] or null
  int64_t group;      // affine types: columns under one scale, a multiple of 32
  const Beside* beside;  // types whose scales lie beside their codes
};

}  // namespace tmk
