// One instruction set's kernels, as a table of functions.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tmk.h"

namespace tmk {

// Activations of T tokens, quantized to int8 with one scale for every 32 or 256 columns (`super`).
// Tokens lie in tiles (`tile_at`), those of one tile side by side, so that a kernel follows one
// pointer whatever their number n. Token `first` of a tile begins at first · (numbers a token).
struct Activations {
  int64_t cols;
  const float* x;   // [T, cols] before rounding, x_stride numbers a token; what float weights take
  int64_t x_stride;
  int8_t* q;        // tiles of [cols / 4, n, 4]
  int16_t* sum16;   // sums of q: [cols / 32, n, 2]
  int16_t* sum32;   // [cols / 32, n], or [cols / 64, n, 2] with scales every 256 columns
  float* d;         // scales: [cols / super, n]
  uint16_t* brains;  // in place of all these [T, brain_stride], rounded to BF16
};

// Not a power of two, at which tokens would all want the same places of a cache.
inline int64_t brain_stride(int64_t cols) { return (cols + 31) / 32 * 32 + 32; }

// In place of columns under one scale: activations are rounded to BF16, so many columns at once.
constexpr int kToBrain = -256;

inline int64_t groups_of(const Activations& a, int super) {
  return super == kToBrain ? (a.cols - kToBrain - 1) / -kToBrain : a.cols / super;
}

struct Tile {
  int64_t first;
  int n;
};

// The tile of token t among begin … end - 1, which are tiled for themselves: `most` tokens (a power
// of two), and what is left over in halves of that.
inline Tile tile_at(int64_t t, int64_t begin, int64_t end, int most) {
  Tile tile = {t - (t - begin) % most, most};
  for (;; tile.first += tile.n) {
    while (tile.n > end - tile.first) tile.n /= 2;
    if (t < tile.first + tile.n) return tile;
  }
}

// Bytes of a value of types that are plain floats, whose rows stay as they are in the file; else 0.
inline int plain_bytes(int type) {
  return type == kF32 ? 4 : type == kF16 || type == kBF16 || type == kRounded ? 2 : 0;
}

// Bits of a code of affine types; else 0.
inline int affine_bits(int type) { return type > kAffine && type <= kAffine + 8 ? type - kAffine : 0; }

// Whether codes stay as they are stored and are widened to floats.
inline bool is_widened(int type) { return type >= kE4M3; }

// Whether rows stay as they are stored.
inline bool stays(int type) { return plain_bytes(type) || is_widened(type); }

// Weights are read as so many long streams at once: processors fetch ahead by themselves, and better
// on four than on one, or on many short ones.
constexpr int kStreams = 4;

constexpr int kCrossedRows = 16;  // that share scales and are computed together

// How many panels lie before panel i of a weight. A strip has one panel out of each of kStreams runs
// of memory, so that going from strip to strip follows these however short rows are.
inline int64_t panels_before(int64_t rows, int lanes, int64_t i) {
  const int64_t panels = (rows + lanes - 1) / lanes;
  const int64_t run = i % kStreams, longer = panels % kStreams;
  return run * (panels / kStreams) + (run < longer ? run : longer) + i / kStreams;
}

// How far apart the rows lie that share scales; where rows have their own and stay as they are stored,
// those that are computed together, one of each quarter.
inline int64_t rows_apart(const Linear& w) {
  if (w.type > kCrossed) return w.rows / w.beside->height;
  return stays(w.type) && w.rows >= kStreams ? w.rows / kStreams : 1;
}

constexpr int kTiles = 4;  // functions for tiles of 1, 2, 4 and 8 tokens

// out[t * stride + r] for the rows of kStreams panels, of which the first `count` are needed, and the
// tokens of the tile at `first`.
using TileFn = void (*)(const uint8_t* const* panels, int count, const Linear& w,
                        const Activations& x, int64_t first, float* out, int64_t stride);

// What one type's panels are multiplied with.
struct Tiles {
  TileFn stored[kTiles];  // by the logarithm of the tile's tokens
  // Many tokens, see opened.inl; null where an instruction set does not tell them from few, and
  // opening where a type is taken as it is stored.
  size_t (*opened_bytes)(const Linear& w);
  void (*open)(const Linear& w, const uint8_t* panel, uint8_t* opened);
  TileFn near;  // full tiles, panels in a core's own cache
};

// Rows first … first + rows - 1 of streams of codes, scales and minima into one panel.
using PackAffineFn = bool (*)(const Linear& w, int64_t first, int rows, const uint8_t* codes,
                              const uint8_t* scales, const uint8_t* minima, uint8_t* panel);

// Rows in ggml blocks into one panel; false where a scale is no finite number.
using PackFn = bool (*)(int rows, int64_t cols, const uint8_t* const* src, uint8_t* panel);

struct Isa {
  const char* name;
  int lanes;
  int tile;     // most tokens of a tile
  int in_line;  // tokens from which panels are taken as they lie, not one of each run of memory
  Tiles linear[40];             // by weight type
  PackFn pack[40];              // by weight type
  Tiles affine[9];              // by bits of a code
  PackAffineFn pack_affine[9];  // by bits of a code
  // Groups first … last - 1 of `super` columns of one token, which is in `tile`; or of kToBrain.
  void (*quantize)(const float* x, const Activations& out, Tile tile, int64_t token, int super,
                   int64_t first, int64_t last);
  // out[t * stride + r] = row `row` + r · `apart` of a weight of plain floats times token t, of which
  // there are 8 at most.
  void (*plain)(const Linear& w, int64_t row, int rows, int64_t apart, const float* x,
                int64_t x_stride, int tokens, float* out, int64_t stride);
  // The same of rounded activations [tokens, cols]; null where a processor does not multiply these.
  void (*rounded)(const Linear& w, int64_t row, int rows, int64_t apart, const uint16_t* x,
                  int tokens, float* out, int64_t stride);
  // The same of a weight that is widened, and activations as they are.
  void (*widened)(const Linear& w, int64_t row, int rows, int64_t apart, const float* x,
                  int64_t x_stride, int tokens, float* out, int64_t stride);
  void (*floats)(const Linear& w, int64_t row, float* out);  // a row of such a weight
  void (*norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*rotate)(float* x, const float* cos, const float* sin, int n, bool adjacent);
  // One vector into the KV cache; `scale` is written where the type has scales.
  void (*store)(int kv_dtype, const float* x, uint8_t* out, float* scale, int64_t n);
  void (*gate)(int act, float* gate, const float* up, int n);  // gate = act(gate) · up
  // gate = (up + 1) · gate · sigmoid(alpha · gate), with gate at most limit and up within ±limit
  void (*bounded_gate)(float limit, float alpha, float* gate, const float* up, int n);
  // Passes over logits; see draw.inl.
  float (*highest)(const float* x, int64_t n);
  double (*exponentials)(const float* x, float top, float temperature, float least, int64_t n,
                         float* out);
  struct Candidate* (*heavier)(const float* weights, float limit, int64_t n, struct Candidate* out);
  // scores and values of one key/value head over a run of cached tokens; see attend.inl
  void (*attend)(const struct AttentionSpan&);
  void (*merge)(const float* first, int64_t next, int64_t pieces, int group, int g, int dim,
                const float* sink, float* out);
};

// Rows of queries from which keys and values are converted once for all; see attend.inl.
constexpr int kTileRows = 16;

// Queries of one key/value head, of consecutive tokens of one sequence, against its cached tokens
// begin … end - 1, as far as each may see them.
struct AttentionSpan {
  const float* q;            // [tokens, group, head_dim], q_stride numbers a token
  int64_t q_stride;
  int tokens, group;
  int head_dim, v_head_dim;
  const uint8_t* k;          // the head's part of block 0
  const uint8_t* v;
  const float* k_scales;     // likewise, of an 8-bit cache
  const float* v_scales;
  int64_t k_block, v_block;  // bytes from one block to the next
  int64_t scale_block;       // numbers from one block's scales to the next
  const int32_t* table;
  int block_size;
  int kv_dtype;              // see stored.inl
  int64_t begin, end;
  int64_t seen;              // cached tokens that the first token may see, itself among them
  int64_t window;            // how many of them at most; 0: all
  float scale, softcap;      // softcap 0: none
  // Of each token, out_stride numbers apart: [group, v_head_dim] not yet divided by the sum, then
  // the largest scores [group] and the sums [group].
  float* out;
  int64_t out_stride;
  float* scratch;            // of attention_scratch numbers
};

// Most tokens of one AttentionSpan: as many as keep queries and results in the second-level cache.
inline int64_t tile_tokens(int64_t group, int64_t head_dim, int64_t v_head_dim) {
  const int64_t tokens = 32768 / (head_dim + v_head_dim) / group;
  return tokens < 1 ? 1 : tokens;
}

inline int64_t attention_scratch(int64_t rows, int64_t head_dim, int64_t v_head_dim) {
  const int64_t keys = 128, width = v_head_dim + 31, padded = rows + 7;
  const int64_t tile = padded * (head_dim + width + keys + 2) + keys * (head_dim + width);
  const int64_t few = 2 * (4 * 64 + 8 * 32);
  return tile > few ? tile : few;
}

// Whether the compiler knows AVX512_BF16.
#if defined(__clang__) || __GNUC__ >= 11
#define TMK_COMPILES_BRAIN 1
#endif

// Call only what the processor can run: filling the table may already use its instructions.
const Isa* portable();
const Isa* portable16();  // the layout of AVX-512 in portable code, for tests
const Isa* avx2();
const Isa* avx512();
const Isa* avx512_bf16();

}  // namespace tmk
