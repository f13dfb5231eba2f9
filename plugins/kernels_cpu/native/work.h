// What the exported functions share: memory, and the loops over panels and tokens. Functions that
// take a `Team` are called by every thread of a parallel region and end with its `meet`.
#pragma once
#include <atomic>
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
extern thread_local Scratch opened_scratch;  // of each thread of a team: opened panels

// The threads of one parallel region, where all wait for all. OpenMP's own barrier waits with one
// PAUSE after the other, which a virtual machine takes for idling: its processor is then given to
// somebody else, and each of the dozen barriers of a layer costs tens of microseconds.
class Team {
 public:
  void meet();

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> meetings_{0};
};

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

// Rounds T tokens of `x` to int8 where the weights' type (columns under one scale:
// `super`, 0 for float weights, which take `x` as it is) asks for it.
void quantize(Team& team, const Isa& isa, const float* x, int64_t stride, Activations& a, int64_t T,
              int super);

// Every product of the same activations.
void multiply(Team& team, const Isa& isa, const Product* jobs, int count, const Activations& x,
              int64_t T);

// out = act(gate) · up, both products of the same shape.
void multiply_gated(Team& team, const Isa& isa, const Linear& gate, const Linear& up, int act,
                    float* out, int64_t stride, const Activations& x, int64_t T);

}  // namespace tmk
