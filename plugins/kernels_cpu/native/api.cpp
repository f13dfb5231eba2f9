// Choosing an instruction set, packing, and one matrix at a time.
#include "work.h"

#include <cstring>

namespace tmk {
namespace {

const Isa* chosen = nullptr;

#if defined(TMK_X86)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#if defined(TMK_EMULATED_AVX512)
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif
bool has_avx512() {
  if (emulated) return has_avx2();
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#if TMK_COMPILES_BRAIN
bool has_avx512_bf16() {
  return has_avx512() && (emulated || __builtin_cpu_supports("avx512bf16"));
}
#endif
#endif

}  // namespace

const Isa& isa() { return *chosen; }

}  // namespace tmk

using namespace tmk;

EXPORT int64_t tmk_version() { return 11; }

// Chooses an instruction set by name, or the best one for "auto". Weights that were packed
// before must not be used afterwards. Gives the name in use, or null when this processor lacks it.
EXPORT const char* tmk_select(const char* name) {
  const bool any = !std::strcmp(name, "auto");
  const Isa* found = nullptr;
  if (any || !std::strcmp(name, "portable")) found = portable();
  if (!std::strcmp(name, "portable16")) found = portable16();
#if defined(TMK_X86)
  if ((any || !std::strcmp(name, "avx2")) && has_avx2()) found = avx2();
  if (((any && !emulated) || !std::strcmp(name, "avx512")) && has_avx512()) found = avx512();
#if TMK_COMPILES_BRAIN
  if (((any && !emulated) || !std::strcmp(name, "avx512bf16")) && has_avx512_bf16())
    found = avx512_bf16();
#endif
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

// `src` has rows in ggml blocks, `dst` tmk_packed_bytes bytes at a multiple of 64. Row i is row
// order[i] of `src`, or row i where `order` is null.
EXPORT int64_t tmk_pack(int32_t type, int64_t rows, int64_t cols, const uint8_t* src,
                        const int64_t* order, uint8_t* dst, int32_t threads) {
  const int64_t size = tmk_packed_bytes(type, rows, cols);
  return size < 0 ? size : pack_weight(isa(), type, rows, cols, src, order, dst, threads);
}

// Bytes of the panels of an affine type; `data` and `bias` of the record are not read.
EXPORT int64_t tmk_affine_bytes(const Linear* w) {
  if (w->rows < 0 || w->cols < 0 || w->group <= 0) return kBadShape;
  if (w->floats < kFloat || w->floats > kHalf || !usable(isa(), *w)) return kUnknown;
  return int64_t(panel_bytes(*w, isa().lanes)) * ((w->rows + isa().lanes - 1) / isa().lanes);
}

// Codes are streams of bits, least significant first: [rows, cols · bits / 8]; scales and minima
// [rows, cols / group] of the type that `floats` names; `dst` as for tmk_pack.
EXPORT int64_t tmk_pack_affine(const Linear* w, const uint8_t* codes, const uint8_t* scales,
                               const uint8_t* minima, uint8_t* dst, int32_t threads) {
  const int64_t size = tmk_affine_bytes(w);
  return size < 0 ? size : pack_affine(isa(), *w, codes, scales, minima, dst, threads);
}

// Rows first … first + count - 1 of a weight that is widened: [count, cols].
EXPORT int64_t tmk_floats(const Linear* w, int64_t first, int64_t count, float* out,
                          int32_t threads) {
  const Isa& s = isa();
  if (!is_widened(w->type) || !usable(s, *w)) return kUnknown;
  if (first < 0 || count < 0 || first + count > w->rows) return kBadShape;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i++) s.floats(*w, first + i, out + i * w->cols);
  return kOk;
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
  const Product job = {w, out, stride, nullptr};
  Team team;
#pragma omp parallel num_threads(threads)
  {
    Activations a = place(s, memory, T, K);
    quantize(team, s, x, x_stride, a, T, super);
    multiply(team, s, &job, 1, a, T);
  }
  return kOk;
}
