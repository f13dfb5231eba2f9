// A mixture of experts that are gated MLPs, as phases of a parallel region.
#pragma once
#include <cstdint>

#include "work.h"

namespace tmk {

// Matrices of one projection have one type and shape; gate and up round their input alike.
struct Experts {
  int64_t count;
  const Linear *gate, *up, *down;  // [count] each
  int64_t act;
  double limit, alpha;  // of the bounded gate
};

// Scores of experts, of which the largest `top_k` of a softmax are chosen.
struct Router {
  const Linear* scores;  // [count, hidden] plain floats
  int64_t top_k;
  int64_t renormalize;  // whether the chosen weights are scaled to sum to one
};

// Which experts each token goes through, and with what weight.
struct Routing {
  int64_t top_k;
  const int64_t* chosen;  // [T, top_k]
  const float* weights;   // [T, top_k]
};

// Where the parts of one call's work lie. A pair is a token and one of its experts; pairs are
// sorted by expert, within an expert by token.
struct ExpertsWork {
  int64_t pairs;
  int64_t active;      // experts that have tokens
  int64_t* experts;    // [active]
  int64_t* starts;     // [active + 1] first pair of each
  int64_t* order;      // [pairs] token * top_k + place
  int64_t* owner;      // [pairs] place of the expert among the active ones
  float* gathered;     // [pairs, hidden], for float weights
  float* middle;       // [pairs, intermediate]
  Activations entering, between;
};

// Bytes that `place_experts` needs.
size_t experts_bytes(const Isa& isa, const Experts& e, int64_t T, int64_t top_k);
ExpertsWork place_experts(const Isa& isa, const Experts& e, int64_t T, int64_t top_k,
                          uint8_t* memory);

// Weights and experts of every token of `x`, both [T, top_k]; `scores` [T, count].
void route_all(Team& team, const Isa& isa, const Router& router, const Activations& x, int64_t T,
               float* scores, int64_t* chosen, float* weights);

// One thread. False where an expert is named that there is not.
bool sort_pairs(const Experts& e, const Routing& routing, ExpertsWork& work);

// out = add (or 0) + Σ weight · expert(x), [T, hidden]; `out` may be `add`, not `x`.
void experts_all(Team& team, const Isa& isa, const Experts& e, const Routing& routing,
                 const ExpertsWork& work, const float* x, const float* add, int64_t T, float* out);

bool usable(const Isa& isa, const Experts& e);

}  // namespace tmk
