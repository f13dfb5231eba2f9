#include "experts.h"

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
  work.gathered = take<float>(p, plain_bytes(e.gate->type) && T > 1 ? pairs * hidden : 0);
  work.middle = take<float>(p, pairs * inner);
  work.entering = place(isa, p, rows, hidden);
  p += aligned(activation_bytes(isa, rows, hidden));
  work.between = place(isa, p, pairs, inner);
  p += aligned(activation_bytes(isa, pairs, inner));
  return p - memory;
}

// Every pair's token, one after the other.
void enter(const Isa& isa, const Experts& e, const Routing& routing, const ExpertsWork& work,
           const float* x, Activations& a, int64_t T) {
  const int64_t hidden = e.gate->cols;
  const int super = super_columns(e.gate->type);
  if (T == 1) return quantize(isa, x, hidden, a, 1, super);
  a.x = work.gathered;
  a.x_stride = hidden;
#pragma omp for schedule(static)
  for (int64_t p = 0; p < work.pairs; p++) {
    const float* from = x + work.order[p] / routing.top_k * hidden;
    if (super)
      isa.quantize(from, a, p, super, 0, hidden / super);
    else
      std::memcpy(work.gathered + p * hidden, from, sizeof(float) * hidden);
  }
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
    work.starts[work.active] = start;
    work.experts[work.active++] = i;  // of `ends`, nothing up to here is read again
  }
  work.starts[work.active] = work.pairs;
  return true;
}

void experts_all(const Isa& isa, const Experts& e, const Routing& routing, const ExpertsWork& work,
                 const float* x, const float* add, int64_t T, float* out) {
  const int64_t hidden = e.gate->cols, inner = e.down->cols;
  // Each thread has its own of these, so no two write them.
  Activations entering = work.entering, between = work.between;
  enter(isa, e, routing, work, x, entering, T);
  const int64_t group = panels_at_once(work.active ? work.pairs / work.active : 0);

  const int64_t panels = panels_of(isa, *e.gate), groups = (panels + group - 1) / group;
#pragma omp for schedule(dynamic, 1)
  for (int64_t n = 0; n < work.active * groups; n++) {
    const int64_t which = n / groups, first = n % groups * group;
    const int64_t last = first + group < panels ? first + group : panels;
    const Linear &gate = e.gate[work.experts[which]], &up = e.up[work.experts[which]];
    // The rows of activations that this expert multiplies, and where their results lie.
    const int64_t shift = T == 1 ? work.starts[which] : 0;
    const int64_t begin = work.starts[which] - shift, end = work.starts[which + 1] - shift;
    const int64_t step = token_block(isa, end - begin);
    const auto place_of = [&](int64_t s, int64_t row) {
      return work.middle + (s + shift) * inner + row;
    };
    const auto keep = [&](int64_t s, int64_t row, int rows, const float* values) {
      float* o = place_of(s, row);
      for (int r = 0; r < rows; r++) o[r] = gate.bias ? values[r] + gate.bias[row + r] : values[r];
    };
    const auto combine = [&](int64_t s, int64_t row, int rows, const float* values) {
      alignas(64) float raised[kMaxLanes];
      for (int r = 0; r < rows; r++) raised[r] = up.bias ? values[r] + up.bias[row + r] : values[r];
      if (e.limit > 0)
        isa.bounded_gate(float(e.limit), float(e.alpha), place_of(s, row), raised, rows);
      else
        isa.gate(int(e.act), place_of(s, row), raised, rows);
    };
    for (int64_t t = begin; t < end; t += step)
      for (int64_t i = first; i < last; i++) {
        const int64_t stop = t + step < end ? t + step : end;
        panel_times(isa, gate, entering, i, t, stop, keep);
        panel_times(isa, up, entering, i, t, stop, combine);
      }
  }
  quantize(isa, work.middle, inner, between, work.pairs, super_columns(e.down->type));

  // A thread adds up all experts' shares of its rows, in the experts' order whoever else is there.
  const int64_t below = panels_of(isa, *e.down);
#pragma omp for schedule(dynamic, 1)
  for (int64_t first = 0; first < below; first += group) {
    const int64_t last = first + group < below ? first + group : below;
    const int64_t row = first * isa.lanes;
    const int64_t rows = (last * isa.lanes < hidden ? last * isa.lanes : hidden) - row;
    for (int64_t t = 0; t < T; t++) {
      float* o = out + t * hidden + row;
      if (add)
        std::memcpy(o, add + t * hidden + row, sizeof(float) * rows);
      else
        std::memset(o, 0, sizeof(float) * rows);
    }
    for (int64_t which = 0; which < work.active; which++) {
      const Linear& down = e.down[work.experts[which]];
      const int64_t begin = work.starts[which], end = work.starts[which + 1];
      const int64_t step = token_block(isa, end - begin);
      const auto share = [&](int64_t s, int64_t row, int rows, const float* values) {
        const int64_t pair = work.order[s];
        const float weight = routing.weights[pair];
        float* o = out + pair / routing.top_k * hidden + row;
        for (int r = 0; r < rows; r++)
          o[r] += weight * (down.bias ? values[r] + down.bias[row + r] : values[r]);
      };
      for (int64_t t = begin; t < end; t += step)
        for (int64_t i = first; i < last; i++)
          panel_times(isa, down, between, i, t, t + step < end ? t + step : end, share);
    }
  }
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
#pragma omp parallel num_threads(threads)
  experts_all(s, *e, *routing, work, x, nullptr, T, out);
  return kOk;
}
