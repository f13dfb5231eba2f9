#include "experts.h"

#include <cmath>
#include <cstring>

#include "panels.h"

namespace tmk {
namespace {

// A single token's activations are the same for all of its experts.
int64_t entering_rows(int64_t T, int64_t pairs) { return T == 1 ? 1 : pairs; }

template <class T> T* take(uint8_t*& p, int64_t count) {
  T* out = (T*)p;
  p += aligned(sizeof(T) * count);
  return out;
}

size_t layout(const Isa& isa, const Experts& e, int64_t T, int64_t top_k, uint8_t* memory,
              ExpertsWork& work) {
  uint8_t* p = memory;
  const int64_t hidden = e.gate->cols, inner = e.down->cols, pairs = T * top_k;
  const int64_t rows = entering_rows(T, pairs);
  work.pairs = pairs;
  work.experts = take<int64_t>(p, e.count);
  work.starts = take<int64_t>(p, e.count + 1);
  work.order = take<int64_t>(p, pairs);
  work.owner = take<int64_t>(p, pairs);
  work.gathered = take<float>(p, !super_columns(e.gate->type) && T > 1 ? pairs * hidden : 0);
  work.middle = take<float>(p, pairs * inner);
  work.entering = place(isa, p, rows, hidden);
  p += aligned(activation_bytes(isa, rows, hidden));
  work.between = place(isa, p, pairs, inner);
  p += aligned(activation_bytes(isa, pairs, inner));
  return p - memory;
}

// Rounds every pair's row of activations, `row(p)`, where the weights ask for it; each expert's pairs
// are tiled for themselves.
template <class Row>
void enter(Team& team, const Isa& isa, const ExpertsWork& work, const Activations& a, int super, Row row) {
#pragma omp for schedule(static) nowait
  for (int64_t p = 0; p < work.pairs; p++) {
    const int64_t* begin = work.starts + work.owner[p];
    const Tile tile = tile_at(p, begin[0], begin[1], isa.tile);
    isa.quantize(row(p), a, tile, p, super, 0, groups_of(a, super));
  }
  team.meet();
}

}  // namespace

bool usable(const Isa& isa, const Experts& e) {
  return usable(isa, *e.gate) && usable(isa, *e.up) && usable(isa, *e.down) &&
         super_columns(e.gate->type) == super_columns(e.up->type);
}

size_t experts_bytes(const Isa& isa, const Experts& e, int64_t T, int64_t top_k) {
  ExpertsWork work;
  return layout(isa, e, T, top_k, (uint8_t*)64, work);  // anywhere: nothing is read or written
}

ExpertsWork place_experts(const Isa& isa, const Experts& e, int64_t T, int64_t top_k,
                          uint8_t* memory) {
  ExpertsWork work{};
  layout(isa, e, T, top_k, memory, work);
  return work;
}

void route_all(Team& team, const Isa& isa, const Router& router, const Activations& x, int64_t T,
               float* scores, int64_t* chosen, float* weights) {
  const int64_t count = router.scores->rows;
  const Product job = {router.scores, scores, count, nullptr};
  multiply(team, isa, &job, 1, x, T);
#pragma omp for schedule(static) nowait
  for (int64_t t = 0; t < T; t++) {
    float* s = scores + t * count;
    float largest = s[0], sum = 0, of_chosen = 0;
    for (int64_t i = 1; i < count; i++) largest = s[i] > largest ? s[i] : largest;
    for (int64_t i = 0; i < count; i++) sum += s[i] = std::exp(s[i] - largest);
    float* w = weights + t * router.top_k;
    for (int64_t k = 0; k < router.top_k; k++) {
      // A chosen one is marked with a negative number; with NaN, any that is not marked will do.
      int64_t best = 0;
      while (s[best] < 0) best++;
      for (int64_t i = best + 1; i < count; i++) best = s[i] > s[best] ? i : best;
      of_chosen += w[k] = s[best];
      chosen[t * router.top_k + k] = best;
      s[best] = -1;
    }
    for (int64_t k = 0; k < router.top_k; k++) w[k] /= router.renormalize ? of_chosen : sum;
  }
  team.meet();
}

bool sort_pairs(const Experts& e, const Routing& routing, ExpertsWork& work) {
  // Counts, then ends; each expert's end walks back to its start as its pairs are placed.
  int64_t* ends = work.experts;
  std::memset(ends, 0, sizeof(int64_t) * e.count);
  for (int64_t p = 0; p < work.pairs; p++) {
    if (routing.chosen[p] < 0 || routing.chosen[p] >= e.count) return false;
    ends[routing.chosen[p]]++;
  }
  for (int64_t i = 1; i < e.count; i++) ends[i] += ends[i - 1];
  for (int64_t p = work.pairs; p-- > 0;) work.order[--ends[routing.chosen[p]]] = p;
  work.active = 0;
  for (int64_t i = 0; i < e.count; i++) {
    const int64_t start = ends[i], end = i + 1 < e.count ? ends[i + 1] : work.pairs;
    if (start == end) continue;
    for (int64_t p = start; p < end; p++) work.owner[p] = work.active;
    work.starts[work.active] = start;
    work.experts[work.active++] = i;  // of `ends`, nothing up to here is read again
  }
  work.starts[work.active] = work.pairs;
  return true;
}

void experts_all(Team& team, const Isa& isa, const Experts& e, const Routing& routing,
                 const ExpertsWork& work, const float* x, const float* add, int64_t T, float* out) {
  const int64_t hidden = e.gate->cols, inner = e.down->cols;
  const int super = super_columns(e.gate->type), super_between = super_columns(e.down->type);
  // Each thread has its own of these, so no two write them.
  Activations entering = work.entering, between = work.between;
  entering.x = T == 1 ? x : work.gathered;
  between.x = work.middle;
  entering.x_stride = hidden, between.x_stride = inner;
  const auto token = [&](int64_t pair) { return work.order[pair] / routing.top_k; };
  if (T == 1) {
    quantize(team, isa, x, hidden, entering, 1, super);
  } else if (super) {
    enter(team, isa, work, entering, super, [&](int64_t p) { return x + token(p) * hidden; });
  } else {
#pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < work.pairs; p++)
      std::memcpy(work.gathered + p * hidden, x + token(p) * hidden, sizeof(float) * hidden);
    team.meet();
  }

  const int64_t each = work.active ? work.pairs / work.active : 0;
  const Strips gates(isa, *e.gate, each);
  const int64_t pieces = (gates.count + gates.at_once - 1) / gates.at_once;
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t n = 0; n < work.active * pieces; n++) {
    const int64_t which = n / pieces, first = n % pieces * gates.at_once, last = gates.end_of(first);
    const Strips gate(isa, e.gate[work.experts[which]], each), up(isa, e.up[work.experts[which]], each);
    // The rows of activations that this expert multiplies, and where their results lie.
    const int64_t shift = T == 1 ? work.starts[which] : 0;
    const int64_t begin = work.starts[which] - shift, end = work.starts[which + 1] - shift;
    float* middle = work.middle + shift * inner;
    // One matrix after the other, so that each is read as long streams.
    products(gate, entering, first, last, begin, end, middle, inner,
             [&](const Strip& s, int64_t t, float* one) { s.put(middle + t * inner, one); });
    products(up, entering, first, last, begin, end, middle, inner,
             [&](const Strip& s, int64_t t, float* raised) {
               float one[kMostRows];
               s.get(middle + t * inner, one);
               if (e.limit > 0)
                 isa.bounded_gate(float(e.limit), float(e.alpha), one, raised, s.rows);
               else
                 isa.gate(int(e.act), one, raised, s.rows);
               s.put(middle + t * inner, one);
             });
  }
  team.meet();
  if (super_between)
    enter(team, isa, work, between, super_between, [&](int64_t p) { return work.middle + p * inner; });

  // A thread adds up all experts' shares of its rows, in the experts' order whoever else is there.
  const Strips below(isa, *e.down, each);
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t first = 0; first < below.count; first += below.at_once) {
    const int64_t last = below.end_of(first);
    for (int64_t i = first; add != out && i < last; i++) {
      const Strip s = below[i];
      for (int64_t t = 0; t < T; t++) {
        float begin[kMostRows] = {};
        if (add) s.add(add + t * hidden, begin);
        s.put(out + t * hidden, begin);
      }
    }
    for (int64_t which = 0; which < work.active; which++) {
      const Strips down(isa, e.down[work.experts[which]], each);
      products(down, between, first, last, work.starts[which], work.starts[which + 1], out, 0,
               [&](const Strip& s, int64_t p, float* one) {
                 const int64_t pair = work.order[p];
                 s.add_to(out + pair / routing.top_k * hidden, routing.weights[pair], one);
               });
    }
  }
  team.meet();
}

}  // namespace tmk

using namespace tmk;

// `x` and `out` are [T, hidden] and must not overlap.
EXPORT int64_t tmk_experts(const Experts* e, const Routing* routing, const float* x, int64_t T,
                           float* out, int32_t threads) {
  const Isa& s = isa();
  if (!usable(s, *e)) return kUnknown;
  uint8_t* memory = scratch.get(experts_bytes(s, *e, T, routing->top_k));
  if (!memory) return kNoMemory;
  ExpertsWork work = place_experts(s, *e, T, routing->top_k, memory);
  if (!sort_pairs(*e, *routing, work)) return kBadShape;
  Team team;
#pragma omp parallel num_threads(threads)
  experts_all(team, s, *e, *routing, work, x, nullptr, T, out);
  return kOk;
}
