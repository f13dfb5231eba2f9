// What the exported functions share: memory, and the loops over panels and tokens. Functions marked
// "all threads" are called by every thread of a parallel region and end with a barrier.
#pragma once
#include <cstdint>
#include <cstdlib>

#include "api.h"

#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace tmk {

// Memory that grows and is kept, one for each calling thread.
struct Scratch {
  uint8_t* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
  uint8_t* get(size_t bytes);
};
extern thread_local Scratch scratch;

inline size_t aligned(size_t bytes) { return (bytes + 63) & ~size_t(63); }

// Bytes for T tokens of K columns, and where their parts lie; a token's place depends on T.
size_t activation_bytes(const Isa& isa, int64_t T, int64_t K);
Activations place(const Isa& isa, uint8_t* memory, int64_t T, int64_t K);

// One matrix times T tokens; `out` has `stride` numbers a token, as has what is added.
struct Product {
  const Linear* w;
  float* out;
  int64_t stride;
  const float* add;  // or null
};

bool usable(const Isa& isa, const Linear& w);

// All threads. Rounds T tokens of `x` to int8 where the weights' type (columns under one scale:
// `super`, 0 for float weights, which take `x` as it is) asks for it.
void quantize(const Isa& isa, const float* x, int64_t stride, Activations& a, int64_t T, int super);

// All threads. Every product of the same activations.
void multiply(const Isa& isa, const Product* jobs, int count, const Activations& x, int64_t T);

// All threads. out = act(gate) · up, both products of the same shape.
void multiply_gated(const Isa& isa, const Linear& gate, const Linear& up, int act, float* out,
                    int64_t stride, const Activations& x, int64_t T);

}  // namespace tmk
