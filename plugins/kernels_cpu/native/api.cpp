// The exported functions, and the loops over panels and tokens that every instruction set shares.
#include "api.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace tmk {
namespace {

const Isa* chosen = nullptr;

#if defined(TMK_X86)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

// Memory that grows and is kept, one for each calling thread.
struct Scratch {
  uint8_t* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
  uint8_t* get(size_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + bytes / 4 + 4095) & ~size_t(4095);
      data = (uint8_t*)std::aligned_alloc(64, size);
      if (!data) size = 0;
    }
    return data;
  }
};
thread_local Scratch scratch;

size_t aligned(size_t bytes) { return (bytes + 63) & ~size_t(63); }

size_t activation_bytes(const Isa& isa, int64_t T, int64_t K) {
  return aligned(T * K) + (isa.wide ? aligned(2 * T * K) : 0) + aligned(T * K / 8) +
         aligned(T * K / 16) + aligned(T * K / 8) + 64;
}

Activations place(const Isa& isa, uint8_t* p, int64_t T, int64_t K) {
  Activations a{};
  a.cols = K;
  a.q = (int8_t*)p;
  p += aligned(T * K);
  if (isa.wide) {
    a.wide = (int16_t*)p;
    p += aligned(2 * T * K);
  }
  a.sum16 = (int16_t*)p;
  p += aligned(T * K / 8);
  a.sum32 = (int16_t*)p;
  p += aligned(T * K / 16);
  a.d32 = a.d256 = (float*)p;
  return a;
}

// One matrix times T tokens; `out` has `stride` numbers a token.
struct Product {
  const Linear* w;
  float* out;
  int64_t stride;
};

constexpr int kMaxTile = 8, kMaxLanes = 16;

// Rows of panel `i`, tokens t0 … t1 - 1.
void panel_times(const Isa& isa, const Product& job, const Activations& x, int64_t i, int64_t t0,
                 int64_t t1) {
  const Linear& w = *job.w;
  const int L = isa.lanes;
  const uint8_t* panel = w.data + i * panel_bytes(w.type, L, w.cols);
  const int64_t row = i * L;
  const int rows = w.rows - row < L ? int(w.rows - row) : L;
  const TileFn* fn = isa.linear[w.type];
  alignas(64) float got[kMaxTile * kMaxLanes];
  for (int64_t t = t0; t < t1;) {
    // A tile that would stick out goes back; a few tokens are then computed twice.
    int n = 1;
    int64_t first = t;
    const int64_t end = t1;
    if (t1 - t >= isa.tile) {
      n = isa.tile;
    } else if (t1 - t > 1 && t1 - isa.tile >= 0) {
      n = isa.tile;
      first = t1 - isa.tile;
    }
    fn[n > 1](panel, x, first, got, L);
    for (int64_t s = t; s < first + n && s < end; s++) {
      float* o = job.out + s * job.stride + row;
      const float* g = got + (s - first) * L;
      for (int r = 0; r < rows; r++) o[r] = w.bias ? g[r] + w.bias[row + r] : g[r];
    }
    t = first + n;
  }
}

// Tokens whose activations stay in the second-level cache.
int64_t token_block(const Isa& isa, int64_t T, int64_t K) {
  int64_t n = (int64_t(192) << 10) / (K * (isa.wide ? 2 : 1));
  n = n / isa.tile * isa.tile;
  if (n < 2 * isa.tile) n = 2 * isa.tile;
  return n < T ? n : T;
}

// To be called by all threads of a parallel region; ends with a barrier.
void multiply(const Isa& isa, const Product& job, const Activations& x, int64_t T) {
  const int64_t K = x.cols, step = token_block(isa, T, K);
  const int64_t group = T >= 32 ? 8 : 4;  // panels of one piece of work
  const int64_t panels = (job.w->rows + isa.lanes - 1) / isa.lanes;
#pragma omp for schedule(dynamic, 1)
  for (int64_t first = 0; first < panels; first += group) {
    const int64_t last = first + group < panels ? first + group : panels;
    for (int64_t t = 0; t < T; t += step)
      for (int64_t i = first; i < last; i++)
        panel_times(isa, job, x, i, t, t + step < T ? t + step : T);
  }
}

// Likewise. `x` has `stride` numbers a token.
void quantize(const Isa& isa, const float* x, int64_t stride, const Activations& a, int64_t T,
              int super) {
#pragma omp for schedule(static)
  for (int64_t t = 0; t < T; t++) isa.quantize(x + t * stride, a, t, super);
}

bool usable(const Isa& isa, const Linear& w) {
  return w.type >= 0 && w.type < 40 && isa.linear[w.type][0];
}

}  // namespace

const Isa& isa() { return *chosen; }

}  // namespace tmk

using namespace tmk;

EXPORT int64_t tmk_version() { return 1; }

// Chooses an instruction set by name, or the best proven one for "auto". Weights that were packed
// before must not be used afterwards. Gives the name in use, or null when this processor lacks it.
EXPORT const char* tmk_select(const char* name) {
  const bool any = !std::strcmp(name, "auto");
  const Isa* found = nullptr;
  if (any || !std::strcmp(name, "portable")) found = portable();
  if (!std::strcmp(name, "portable16")) found = portable16();
#if defined(TMK_X86)
  if ((any || !std::strcmp(name, "avx2")) && has_avx2()) found = avx2();
  // Only when asked for: its results have been checked on no processor that has it.
  if (!std::strcmp(name, "avx512") && has_avx512()) found = avx512();
#endif
  if (!found) return nullptr;
  chosen = found;
  return found->name;
}

EXPORT int64_t tmk_packed_bytes(int32_t type, int64_t rows, int64_t cols) {
  const int block = block_columns(type);
  if (!block) return kUnknown;
  if (rows < 0 || cols < 0 || cols % block) return kBadShape;
  return int64_t(panel_bytes(type, isa().lanes, cols)) * ((rows + isa().lanes - 1) / isa().lanes);
}

// `src` has rows · cols values in ggml blocks, `dst` tmk_packed_bytes bytes at a multiple of 64.
EXPORT int64_t tmk_pack(int32_t type, int64_t rows, int64_t cols, const uint8_t* src, uint8_t* dst,
                        int32_t threads) {
  const int64_t size = tmk_packed_bytes(type, rows, cols);
  return size < 0 ? size : pack_weight(type, isa().lanes, rows, cols, src, dst, threads);
}

// out[t, :] = w · x[t] for T tokens; `stride` numbers from one row of `out` to the next.
EXPORT int64_t tmk_linear(const Linear* w, const float* x, int64_t x_stride, int64_t T, float* out,
                          int64_t stride, int32_t threads) {
  const Isa& s = isa();
  if (!usable(s, *w)) return kUnknown;
  const int64_t K = w->cols;
  const int super = super_columns(w->type);
  uint8_t* memory = scratch.get(activation_bytes(s, T, K));
  if (!memory) return kNoMemory;
  const Activations a = place(s, memory, T, K);
  const Product job = {w, out, stride};
#pragma omp parallel num_threads(threads)
  {
    quantize(s, x, x_stride, a, T, super);
    multiply(s, job, a, T);
  }
  return kOk;
}

struct Attention {
  int64_t num_heads, num_kv_heads, head_dim, v_head_dim;
  const uint8_t* k;
  const uint8_t* v;
  int64_t block_size;
  int64_t kv_dtype;
  double scale, softcap;  // 0: none
  int64_t window;         // 0: none
  const float* sinks;     // [num_heads] or null
};

// Causal attention of T packed queries, `q` [T, num_heads, head_dim] with `q_stride` numbers a
// token; sequence i has queries starts[i] … starts[i + 1] - 1 and lengths[i] cached tokens.
EXPORT int64_t tmk_attention(const Attention* at, const float* q, int64_t q_stride, int64_t T,
                             const int32_t* starts, const int32_t* lengths, const int32_t* tables,
                             int64_t table_stride, int64_t num_seqs, float* out, int32_t threads) {
  const Isa& s = isa();
  const int64_t H = at->num_heads, KVH = at->num_kv_heads, G = H / KVH, VD = at->v_head_dim;
  const int64_t bytes = at->kv_dtype == 0 ? 4 : 2;
  // With few queries the context is split, so that all threads have work.
  int64_t longest = 1;
  for (int64_t i = 0; i < num_seqs; i++) longest = lengths[i] > longest ? lengths[i] : longest;
  int64_t splits = 1;
  while (T * KVH * splits < 4 * threads && splits < 64 && longest / (2 * splits) >= 256) splits *= 2;
  const size_t part = aligned(sizeof(float) * (G * (VD + 2)));
  const size_t parts = part * T * KVH * splits;
  const size_t score = aligned(sizeof(float) * G * at->block_size);
  uint8_t* memory = scratch.get(parts + score * threads + aligned(sizeof(int32_t) * T));
  if (!memory) return kNoMemory;
  uint8_t* scores = memory + parts;
  int32_t* owner = (int32_t*)(scores + score * threads);
  for (int64_t i = 0; i < num_seqs; i++)
    for (int32_t t = starts[i]; t < starts[i + 1]; t++) owner[t] = int32_t(i);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < T * KVH * splits; n++) {
      const int64_t piece = n % splits, head = n / splits / T, t = n / splits % T;
      const int64_t i = owner[t];
      const int64_t position = lengths[i] - (starts[i + 1] - t);
      const int64_t end = position + 1;
      const int64_t begin = at->window && end > at->window ? end - at->window : 0;
      const int64_t size = (end - begin + splits - 1) / splits;
      AttentionSpan a;
      a.q = q + t * q_stride + head * G * at->head_dim;
      a.q_stride = at->head_dim;
      a.group = int(G);
      a.head_dim = int(at->head_dim);
      a.v_head_dim = int(VD);
      a.k = at->k + head * at->block_size * at->head_dim * bytes;
      a.v = at->v + head * at->block_size * VD * bytes;
      a.k_block = KVH * at->block_size * at->head_dim * bytes;
      a.v_block = KVH * at->block_size * VD * bytes;
      a.table = tables + i * table_stride;
      a.block_size = int(at->block_size);
      a.kv_dtype = int(at->kv_dtype);
      a.begin = begin + piece * size;
      a.end = a.begin + size < end ? a.begin + size : end;
      a.scale = float(at->scale);
      a.softcap = float(at->softcap);
      float* mine = (float*)(memory + part * n);
      a.out = mine;
      a.maxima = mine + G * VD;
      a.sums = a.maxima + G;
      a.scores = (float*)(scores + score * omp_get_thread_num());
      s.attend(a);
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < T * H; n++) {
      const int64_t t = n / H, h = n % H, g = h % G;
      const float* first = (const float*)(memory + part * ((h / G * T + t) * splits));
      const size_t next = part / sizeof(float);
      float largest = at->sinks ? at->sinks[h] : -INFINITY;
      for (int64_t p = 0; p < splits; p++) {
        const float m = first[p * next + G * VD + g];
        largest = m > largest ? m : largest;
      }
      const float base = largest == -INFINITY ? 0.0f : largest;
      float sum = at->sinks ? std::exp(at->sinks[h] - base) : 0.0f;
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
  return kOk;
}
