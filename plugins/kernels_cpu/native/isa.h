// One instruction set's kernels, as a table of functions.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tmk.h"

namespace tmk {

// Activations of T tokens, quantized to int8 with one scale for every 32 or 256 columns.
struct Activations {
  int64_t cols;
  const float* x;   // [T, cols] before rounding, x_stride numbers a token; what float weights take
  int64_t x_stride;
  int8_t* q;        // [T, cols]
  int16_t* wide;    // [T, cols] the same as int16; within every four the order is 0 2 1 3
  int16_t* sum16;   // [T, cols / 16] sums of q
  int16_t* sum32;   // [T, cols / 32]
  float* d32;       // [T, cols / 32] scales, for weight types with a float scale every 32 columns
  float* d256;      // [T, cols / 256]
};

// Bytes of a value of types that are plain floats, whose rows stay as they are in the file; else 0.
inline int plain_bytes(int type) {
  return type == kF32 ? 4 : type == kF16 || type == kBF16 ? 2 : 0;
}

// Bits of a code of affine types; else 0.
inline int affine_bits(int type) { return type > kAffine && type <= kAffine + 8 ? type - kAffine : 0; }

constexpr int kTiles = 2;  // functions for one token, and for a tile of tokens

// out[t * stride + r] for the rows of one panel and tokens first … first + tile - 1.
using TileFn = void (*)(const uint8_t* panel, const Activations& x, int64_t first, float* out,
                        int64_t stride);

// The same for affine types.
using AffineFn = void (*)(const uint8_t* panel, const Linear& w, const Activations& x, int64_t first,
                          float* out, int64_t stride);

// Rows first … first + rows - 1 of streams of codes, scales and minima into one panel.
using PackAffineFn = bool (*)(const Linear& w, int64_t first, int rows, const uint8_t* codes,
                              const uint8_t* scales, const uint8_t* minima, uint8_t* panel);

// Rows in ggml blocks into one panel; false where a scale is no finite number.
using PackFn = bool (*)(int rows, int64_t cols, const uint8_t* const* src, uint8_t* panel);

struct Isa {
  const char* name;
  int lanes;
  int tile;  // tokens of the larger TileFn
  bool wide;  // whether `Activations::wide` is read
  TileFn linear[40][kTiles];  // by weight type
  PackFn pack[40];              // by weight type
  AffineFn affine[9][kTiles];   // by bits of a code
  PackAffineFn pack_affine[9];  // by bits of a code
  // Groups first … last - 1 of `super` columns of one token.
  void (*quantize)(const float* x, const Activations& out, int64_t token, int super, int64_t first,
                   int64_t last);
  // out[t * stride + r] = row r of float weights [rows, cols] times token t, up to 8 of each.
  void (*plain)(int type, const uint8_t* w, int rows, int64_t cols, const float* x,
                int64_t x_stride, int tokens, float* out, int64_t stride);
  void (*norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*rotate)(float* x, const float* cos, const float* sin, int n, bool adjacent);
  void (*store)(int kv_dtype, const float* x, uint8_t* out, int64_t n);
  void (*gate)(int act, float* gate, const float* up, int n);  // gate = act(gate) · up
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
