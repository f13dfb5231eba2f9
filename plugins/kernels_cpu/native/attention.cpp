#include "attention.h"

#include <cmath>
#include <cstring>

namespace tmk {

AttentionWork measure(const Attention& at, const Sequences& seqs, int64_t T, int threads,
                      size_t& bytes) {
  AttentionWork work{};
  const int64_t G = at.num_heads / at.num_kv_heads;
  // With few queries the context is split, so that all threads have work.
  int64_t longest = 1;
  for (int64_t i = 0; i < seqs.count; i++)
    longest = seqs.lengths[i] > longest ? seqs.lengths[i] : longest;
  work.splits = 1;
  while (T * at.num_kv_heads * work.splits < 4 * threads && work.splits < 64 &&
         longest / (2 * work.splits) >= 256)
    work.splits *= 2;
  work.part = aligned(sizeof(float) * (G * (at.v_head_dim + 2)));
  work.score = aligned(sizeof(float) * G * at.block_size);
  bytes = work.part * T * at.num_kv_heads * work.splits + work.score * threads +
          aligned(sizeof(int32_t) * T);
  return work;
}

void prepare(AttentionWork& work, const Attention& at, const Sequences& seqs, int64_t T,
             uint8_t* memory) {
  work.results = memory;
  work.owner = (int32_t*)(memory + work.part * T * at.num_kv_heads * work.splits);
  work.scores = (uint8_t*)work.owner + aligned(sizeof(int32_t) * T);
  for (int64_t i = 0; i < seqs.count; i++)
    for (int32_t t = seqs.starts[i]; t < seqs.starts[i + 1]; t++) work.owner[t] = int32_t(i);
}

void attend_all(const Isa& isa, const Attention& at, const Sequences& seqs,
                const AttentionWork& work, const float* q, int64_t T, float* out) {
  const int64_t H = at.num_heads, KVH = at.num_kv_heads, G = H / KVH, VD = at.v_head_dim;
  const int64_t bytes = at.kv_dtype == 0 ? 4 : 2, splits = work.splits;
#pragma omp for schedule(dynamic, 1)
  for (int64_t n = 0; n < T * KVH * splits; n++) {
    const int64_t piece = n % splits, head = n / splits / T, t = n / splits % T;
    const int64_t i = work.owner[t];
    const int64_t end = seqs.lengths[i] - (seqs.starts[i + 1] - t) + 1;
    const int64_t begin = at.window && end > at.window ? end - at.window : 0;
    const int64_t size = (end - begin + splits - 1) / splits;
    AttentionSpan a;
    a.q = q + (t * H + head * G) * at.head_dim;
    a.q_stride = at.head_dim;
    a.group = int(G);
    a.head_dim = int(at.head_dim);
    a.v_head_dim = int(VD);
    a.k = at.k + head * at.block_size * at.head_dim * bytes;
    a.v = at.v + head * at.block_size * VD * bytes;
    a.k_block = KVH * at.block_size * at.head_dim * bytes;
    a.v_block = KVH * at.block_size * VD * bytes;
    a.table = seqs.tables + i * seqs.table_stride;
    a.block_size = int(at.block_size);
    a.kv_dtype = int(at.kv_dtype);
    a.begin = begin + piece * size;
    a.end = a.begin + size < end ? a.begin + size : end;
    a.scale = float(at.scale);
    a.softcap = float(at.softcap);
    float* mine = (float*)(work.results + work.part * n);
    a.out = mine;
    a.maxima = mine + G * VD;
    a.sums = a.maxima + G;
    a.scores = (float*)(work.scores + work.score * omp_get_thread_num());
    isa.attend(a);
  }
#pragma omp for schedule(static)
  for (int64_t n = 0; n < T * H; n++) {
    const int64_t t = n / H, h = n % H, g = h % G;
    const float* first = (const float*)(work.results + work.part * ((h / G * T + t) * splits));
    const size_t next = work.part / sizeof(float);
    float largest = at.sinks ? at.sinks[h] : -INFINITY;
    for (int64_t p = 0; p < splits; p++) {
      const float m = first[p * next + G * VD + g];
      largest = m > largest ? m : largest;
    }
    const float base = largest == -INFINITY ? 0.0f : largest;
    float sum = at.sinks ? std::exp(at.sinks[h] - base) : 0.0f;
    float* o = out + n * VD;
    std::memset(o, 0, sizeof(float) * VD);
    for (int64_t p = 0; p < splits; p++) {
      const float* one = first + p * next;
      const float factor = std::exp(one[G * VD + g] - base);
      sum += factor * one[G * VD + G + g];
      for (int64_t d = 0; d < VD; d++) o[d] += factor * one[g * VD + d];
    }
    const float inverse = 1.0f / sum;
    for (int64_t d = 0; d < VD; d++) o[d] *= inverse;
  }
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
#pragma omp parallel num_threads(threads)
  attend_all(isa(), *at, *seqs, work, q, T, out);
  return kOk;
}
