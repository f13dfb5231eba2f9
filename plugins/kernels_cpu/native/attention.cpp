#include "attention.h"

#include <cmath>
#include <cstring>

namespace tmk {

AttentionWork measure(const Attention& at, const Sequences& seqs, int64_t T, int threads,
                      size_t& bytes) {
  AttentionWork work{};
  const int64_t G = at.num_heads / at.num_kv_heads;
  work.tokens = tile_tokens(G, at.head_dim, at.v_head_dim);
  int64_t longest = 1, most = 1;
  for (int64_t i = 0; i < seqs.count; i++) {
    const int64_t count = seqs.starts[i + 1] - seqs.starts[i];
    longest = seqs.lengths[i] > longest ? seqs.lengths[i] : longest;
    most = count > most ? count : most;
    work.num_runs += (count + work.tokens - 1) / work.tokens;
  }
  most = most < work.tokens ? most : work.tokens;
  // With few queries the context is split, so that all threads have work.
  work.splits = 1;
  while (work.num_runs * at.num_kv_heads * work.splits < 4 * threads && work.splits < 64 &&
         longest / (2 * work.splits) >= 256)
    work.splits *= 2;
  work.part = aligned(sizeof(float) * (G * (at.v_head_dim + 2)));
  work.scratch_bytes = aligned(
      sizeof(float) * attention_scratch(most * G, at.head_dim, at.v_head_dim));
  bytes = work.part * T * at.num_kv_heads * work.splits + work.scratch_bytes * threads +
          aligned(sizeof(TokenRun) * work.num_runs);
  return work;
}

void prepare(AttentionWork& work, const Attention& at, const Sequences& seqs, int64_t T,
             uint8_t* memory) {
  work.results = memory;
  work.runs = (TokenRun*)(memory + work.part * T * at.num_kv_heads * work.splits);
  work.scratch = (uint8_t*)work.runs + aligned(sizeof(TokenRun) * work.num_runs);
  TokenRun* run = work.runs;
  for (int64_t i = 0; i < seqs.count; i++)
    for (int64_t t = seqs.starts[i]; t < seqs.starts[i + 1]; t += work.tokens) {
      const int64_t left = seqs.starts[i + 1] - t;
      *run++ = {int32_t(i), int32_t(t), int32_t(left < work.tokens ? left : work.tokens)};
    }
}

void attend_all(Team& team, const Isa& isa, const Attention& at, const Sequences& seqs,
                const AttentionWork& work, const float* q, int64_t T, float* out) {
  const int64_t H = at.num_heads, KVH = at.num_kv_heads, G = H / KVH, VD = at.v_head_dim;
  const int64_t bytes = kv_bytes(at), splits = work.splits;
  const int64_t items = work.num_runs * KVH * splits;
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t item = 0; item < items; item++) {
    const int64_t n = items - 1 - item;  // the last tokens of a prompt have most to see
    const int64_t piece = n % splits, head = n / splits % KVH;
    const TokenRun& run = work.runs[n / splits / KVH];
    const int64_t i = run.seq;
    AttentionSpan a;
    a.seen = seqs.lengths[i] - (seqs.starts[i + 1] - run.first) + 1;
    const int64_t end = a.seen + run.count - 1;
    const int64_t begin = at.window && a.seen > at.window ? a.seen - at.window : 0;
    const int64_t size = (end - begin + splits - 1) / splits;
    a.q = q + (run.first * H + head * G) * at.head_dim;
    a.q_stride = H * at.head_dim;
    a.tokens = run.count;
    a.group = int(G);
    a.head_dim = int(at.head_dim);
    a.v_head_dim = int(VD);
    a.k = at.k + head * at.block_size * at.head_dim * bytes;
    a.v = at.v + head * at.block_size * VD * bytes;
    a.k_scales = at.k_scales + head * at.block_size;
    a.v_scales = at.v_scales + head * at.block_size;
    a.k_block = KVH * at.block_size * at.head_dim * bytes;
    a.v_block = KVH * at.block_size * VD * bytes;
    a.scale_block = KVH * at.block_size;
    a.table = seqs.tables + i * seqs.table_stride;
    a.block_size = int(at.block_size);
    a.kv_dtype = int(at.kv_dtype);
    a.begin = begin + piece * size;
    a.end = a.begin + size < end ? a.begin + size : end;
    a.window = at.window;
    a.scale = float(at.scale);
    a.softcap = float(at.softcap);
    a.out = (float*)(work.results + work.part * ((head * T + run.first) * splits + piece));
    a.out_stride = work.part / sizeof(float) * splits;
    a.scratch = (float*)(work.scratch + work.scratch_bytes * omp_get_thread_num());
    isa.attend(a);
  }
  team.meet();
#pragma omp for schedule(static) nowait
  for (int64_t n = 0; n < T * H; n++) {
    const int64_t t = n / H, h = n % H;
    const float* first = (const float*)(work.results + work.part * ((h / G * T + t) * splits));
    isa.merge(first, work.part / sizeof(float), splits, int(G), int(h % G), int(VD),
              at.sinks ? at.sinks + h : nullptr, out + n * VD);
  }
  team.meet();
}

}  // namespace tmk

using namespace tmk;

EXPORT int64_t tmk_attention(const Attention* at, const Sequences* seqs, const float* q, int64_t T,
                             float* out, int32_t threads) {
  size_t bytes;
  AttentionWork work = measure(*at, *seqs, T, threads, bytes);
  uint8_t* memory = scratch.get(bytes);
  if (!memory) return kNoMemory;
  prepare(work, *at, *seqs, T, memory);
  Team team;
#pragma omp parallel num_threads(threads)
  attend_all(team, isa(), *at, *seqs, work, q, T, out);
  return kOk;
}
