// One instruction set's kernels, as a table of functions.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tmk.h"

namespace tmk {

// Activations of T tokens, quantized to int8 with one scale for every 32 or 256 columns.
struct Activations {
  int64_t cols;
  int8_t* q;        // [T, cols]
  int16_t* wide;    // [T, cols] the same as int16; within every four the order is 0 2 1 3
  int16_t* sum16;   // [T, cols / 16] sums of q
  int16_t* sum32;   // [T, cols / 32]
  float* d32;       // [T, cols / 32] scales, for weight types with a float scale every 32 columns
  float* d256;      // [T, cols / 256]
};

constexpr int kTiles = 2;  // functions for one token, and for a tile of tokens

// out[t * stride + r] for the rows of one panel and tokens first … first + tile - 1.
using TileFn = void (*)(const uint8_t* panel, const Activations& x, int64_t first, float* out,
                        int64_t stride);

struct Isa {
  const char* name;
  int lanes;
  int tile;  // tokens of the larger TileFn
  bool wide;  // whether `Activations::wide` is read
  TileFn linear[40][kTiles];  // by weight type
  void (*quantize)(const float* x, const Activations& out, int64_t token, int super);
  // scores and values of one key/value head over a run of cached tokens; see attention.inl
  void (*attend)(const struct AttentionSpan&);
};

// Queries of one key/value head against tokens begin … end - 1 of one sequence.
struct AttentionSpan {
  const float* q;        // [group, head_dim]
  int64_t q_stride;
  int group;
  int head_dim, v_head_dim;
  const uint8_t* k;      // the head's part of block 0
  const uint8_t* v;
  int64_t k_block, v_block;  // bytes from one block to the next
  const int32_t* table;
  int block_size;
  int kv_dtype;          // 0 float32, 1 bfloat16, 2 float16
  int64_t begin, end;
  float scale, softcap;  // softcap 0: none
  float* out;            // [group, v_head_dim], not yet divided by the sum
  float* maxima;         // [group]
  float* sums;           // [group]
  float* scores;         // scratch [group, block_size]
};

// Call only what the processor can run: filling the table may already use its instructions.
const Isa* portable();
const Isa* portable16();  // the layout of AVX-512 in portable code, for tests
const Isa* avx2();
const Isa* avx512();

}  // namespace tmk
