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
  int64_t kv_dtype;  // see stored.inl
  double scale, softcap;  // softcap 0: none
  int64_t window;         // 0: none
  const float* sinks;     // [num_heads] or null
  float* k_scales;        // [num_blocks, num_kv_heads, block_size], or null where kv_dtype has none
  float* v_scales;
};

inline int64_t kv_bytes(const Attention& at) {
  return at.kv_dtype == 0 ? 4 : at.kv_dtype < 3 ? 2 : 1;
}

// Sequence i has queries starts[i] … starts[i + 1] - 1 and lengths[i] cached tokens, in blocks
// tables[i * table_stride …].
struct Sequences {
  const int32_t* starts;
  const int32_t* lengths;
  const int32_t* tables;
  int64_t table_stride;
  int64_t count;
};

// Consecutive tokens of one sequence.
struct TokenRun {
  int32_t seq, first, count;
};

// How the work of one call is cut up, and where its parts lie.
struct AttentionWork {
  int64_t tokens;  // of a run at most
  int64_t num_runs;
  int64_t splits;  // pieces that the cached tokens of a run are cut into
  size_t part;     // bytes of one token's result of one head and piece
  uint8_t* results;
  TokenRun* runs;
  uint8_t* scratch;
  size_t scratch_bytes;  // of one thread
};

// Bytes that `prepare` needs.
AttentionWork measure(const Attention& at, const Sequences& seqs, int64_t T, int threads,
                      size_t& bytes);
void prepare(AttentionWork& work, const Attention& at, const Sequences& seqs, int64_t T,
             uint8_t* memory);

// `q` [T, num_heads, head_dim], `out` [T, num_heads, v_head_dim].
void attend_all(Team& team, const Isa& isa, const Attention& at, const Sequences& seqs,
                const AttentionWork& work, const float* q, int64_t T, float* out);

}  // namespace tmk
