// Attention over the block KV cache, as a phase of a parallel region.
#pragma once
#include <cstdint>

#include "work.h"

namespace tmk {

struct Attention {
  int64_t num_heads, num_kv_heads, head_dim, v_head_dim;
  uint8_t* k;  // [num_blocks, num_kv_heads, block_size, head_dim]
  uint8_t* v;
  int64_t block_size;
  int64_t kv_dtype;  // 0 float32, 1 bfloat16, 2 float16
  double scale, softcap;  // softcap 0: none
  int64_t window;         // 0: none
  const float* sinks;     // [num_heads] or null
};

// Sequence i has queries starts[i] … starts[i + 1] - 1 and lengths[i] cached tokens, in blocks
// tables[i * table_stride …].
struct Sequences {
  const int32_t* starts;
  const int32_t* lengths;
  const int32_t* tables;
  int64_t table_stride;
  int64_t count;
};

// How the work of one call is cut up, and where its parts lie.
struct AttentionWork {
  int64_t splits;
  size_t part;  // bytes of one piece's result
  uint8_t* results;
  uint8_t* scores;
  size_t score;  // bytes of one thread's scores
  int32_t* owner;  // [T] sequence of each token
};

// Bytes that `prepare` needs.
AttentionWork measure(const Attention& at, const Sequences& seqs, int64_t T, int threads,
                      size_t& bytes);
void prepare(AttentionWork& work, const Attention& at, const Sequences& seqs, int64_t T,
             uint8_t* memory);

// All threads. `q` [T, num_heads, head_dim], `out` [T, num_heads, v_head_dim].
void attend_all(const Isa& isa, const Attention& at, const Sequences& seqs,
                const AttentionWork& work, const float* q, int64_t T, float* out);

}  // namespace tmk
