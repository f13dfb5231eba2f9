// What Python calls. The instruction set is chosen when the process first asks.
#include <cstdlib>
#include <cstring>

#include "encode.h"

using namespace tgq;

extern "C" __attribute__((visibility("default"))) int64_t tgq_version() { return 1; }

extern "C" __attribute__((visibility("default"))) int64_t tgq_encode(
    int32_t type, int64_t rows, int64_t cols, const float* x, const float* importance, uint8_t* out,
    int32_t threads, int32_t portable) {
  const Job job{type, rows, cols, x, importance, out, threads};
#ifdef TGQ_X86
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c");
  if (avx2 && !portable) return encode_avx2(job);
#else
  (void)portable;
#endif
  return encode_portable(job);
}
