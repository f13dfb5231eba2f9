// The interface between Python and the encoders: plain C over raw pointers.
#pragma once
#include <cstdint>

namespace tgq {

enum Status : int64_t { kOk = 0, kUnknown = -1, kBadShape = -2, kNotFinite = -3 };

// Types, numbered as in ggml.
enum Type : int32_t {
  kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ8_1 = 9, kQ2_K = 10, kQ3_K = 11,
  kQ4_K = 12, kQ5_K = 13, kQ6_K = 14, kQ8_K = 15, kIQ4_NL = 20, kIQ4_XS = 23,
};

struct Job {
  int32_t type;
  int64_t rows, cols;
  const float* x;           // [rows, cols]
  const float* importance;  // [cols] or null
  uint8_t* out;
  int threads;
};

int64_t encode_portable(const Job& job);
int64_t encode_avx2(const Job& job);

}  // namespace tgq
