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
  kAffine = 64,  // and the bits of a code: codes with a scale and a minimum a group of columns
};

enum Floats : int32_t { kFloat = 0, kBrain = 1, kHalf = 2 };  // float32, bfloat16, float16

// A weight matrix [rows, cols]: packed panels, made by `tmk_pack` or `tmk_pack_affine` for the ISA in
// use, or plain floats row by row.
struct Linear {
  int32_t type;
  int32_t floats;  // affine types: what scales and minima are stored as
  int64_t rows, cols;
  const uint8_t* data;
  const float* bias;  // [rows] or null
  int64_t group;      // affine types: columns under one scale, a multiple of 32
};

}  // namespace tmk
