// Penalties, and one token for each row of logits: softmax at a temperature, top-k, top-p, min-p,
// and a draw by weight. Nothing is sorted: where a sum crosses a limit is found by counting the
// leading bits of weights.
#include "draw.h"

#include <cmath>
#include <cstring>

#include "work.h"

namespace tmk {
namespace {

constexpr int64_t kColumns = 2048;  // logits in a block, the unit of work
constexpr int64_t kRows = 8;        // rows whose weights are held at once

int64_t blocks_of(int64_t vocab) { return (vocab + kColumns - 1) / kColumns; }
int64_t columns_of(int64_t vocab, int64_t block) {
  return block + 1 < blocks_of(vocab) ? kColumns : vocab - block * kColumns;
}

// The first of candidates, heaviest first and in order where they weigh the same, up to one of them.
struct Prefix {
  int64_t count = 0;
  double mass = 0;
  int32_t last = -1;
};

// Up to the first candidate with which there are `count` of them, or with which their mass exceeds
// `limit`; up to the last where no such one is.
Prefix up_to(const Candidate* begin, const Candidate* end, int64_t count, double limit) {
  constexpr int digits[] = {11, 10, 10};  // of the 31 bits of a positive float
  const auto bits_of = [](const Candidate& c) {
    uint32_t bits;
    std::memcpy(&bits, &c.weight, sizeof bits);
    return bits;
  };
  const auto crossed = [&](const Prefix& p) { return p.count >= count || p.mass > limit; };
  Prefix before;
  uint32_t lead = 0;  // of the one looked for
  int shift = 31;
  for (int digit : digits) {
    int32_t counts[1 << 11] = {};
    double masses[1 << 11] = {};
    for (const Candidate* c = begin; c < end; c++) {
      const uint32_t bits = bits_of(*c);
      if (bits >> shift != lead) continue;
      const uint32_t bin = (bits >> (shift - digit)) & ((1u << digit) - 1);
      counts[bin]++;
      masses[bin] += c->weight;
    }
    // Rounding may let the parts of a sum stay below what the sum has exceeded: the last then.
    int found = -1;
    Prefix until = before;
    for (int bin = (1 << digit) - 1; bin >= 0; bin--) {
      if (!counts[bin]) continue;
      before = until;
      until.count += counts[bin];
      until.mass += masses[bin];
      found = bin;
      if (crossed(until)) break;
    }
    lead = lead << digit | uint32_t(found);
    shift -= digit;
  }
  Prefix until = before;
  for (const Candidate* c = begin; c < end; c++) {
    if (bits_of(*c) != lead) continue;
    until.count++;
    until.mass += c->weight;
    until.last = c->token;
    if (crossed(until)) break;
  }
  return until;
}

double below(double x) { return std::nextafter(x, 0.0); }

// What the uniform number picks of a mass: less than all of it.
double target(const Drawing& how, double mass) { return std::fmin(how.uniform * mass, below(mass)); }

// Any token, in their order.
int64_t among_all(const Drawing& how, const float* weights, const double* sums, double mass,
                  int64_t vocab) {
  const double aim = target(how, mass);
  double before = 0;
  int64_t found = 0;
  for (int64_t b = 0; b < blocks_of(vocab); b++) {
    if (!(sums[b] > 0)) continue;
    found = b;
    if (before + sums[b] > aim) break;
    before += sums[b];
  }
  int64_t token = 0;
  for (int64_t i = found * kColumns, end = i + columns_of(vocab, found); i < end; i++) {
    if (!(weights[i] > 0)) continue;
    token = i;
    before += weights[i];
    if (before > aim) break;
  }
  return token;
}

// What weights exceed that pass min-p. The heaviest is 1.
float least(const Drawing& how) { return std::fmin(float(how.min_p), std::nextafter(1.0f, 0.0f)); }

// A token of those that stay, heaviest first.
int64_t among_likely(const Isa& isa, const Drawing& how, const float* weights, double mass,
                     int64_t vocab, Candidate* candidates) {
  const int64_t most = how.top_k < double(vocab) ? int64_t(how.top_k) : vocab;
  // A token stays while those before it hold less than top_p.
  const double limit = how.top_p > 1 ? INFINITY : below(how.top_p * mass);
  // Most often a few hundred tokens hold all that is asked for, so the heaviest are looked at first.
  Candidate* end;
  for (float floor = 1.0f / 256;; floor = floor > 1e-12f ? floor / 256 : 0) {
    floor = std::fmax(floor, least(how));
    end = isa.heavier(weights, floor, vocab, candidates);
    if (floor == least(how) || end - candidates >= most) break;
    double held = 0;
    for (const Candidate* c = candidates; c < end; c++) held += c->weight;
    if (held > limit) break;
  }
  const Prefix kept = up_to(candidates, end, most, limit);
  return up_to(candidates, end, kept.count, target(how, kept.mass)).last;
}

void draw_rows(Team& team, const Isa& isa, const float* logits, int64_t stride, int64_t vocab,
               const Drawing* how, int64_t rows, float* weights, double* sums, Candidate* candidates,
               int64_t* tokens) {
  const int64_t blocks = blocks_of(vocab);
#pragma omp for schedule(static) nowait
  for (int64_t n = 0; n < rows * blocks; n++) {
    const int64_t row = n / blocks, b = n % blocks;
    sums[n] = isa.highest(logits + row * stride + b * kColumns, columns_of(vocab, b));
  }
  team.meet();
  float top[kRows];
  for (int64_t row = 0; row < rows; row++) {
    top[row] = -INFINITY;
    for (int64_t b = 0; b < blocks; b++) top[row] = std::fmax(top[row], float(sums[row * blocks + b]));
  }
  team.meet();
#pragma omp for schedule(static) nowait
  for (int64_t n = 0; n < rows * blocks; n++) {
    const int64_t row = n / blocks, b = n % blocks, first = b * kColumns;
    const Drawing& d = how[row];
    // Before min-p, top-p counts what every token holds.
    sums[n] = isa.exponentials(logits + row * stride + first, top[row], float(d.temperature),
                               d.top_p > 1 ? least(d) : 0.0f, columns_of(vocab, b),
                               weights + row * vocab + first);
  }
  team.meet();
#pragma omp for schedule(dynamic) nowait
  for (int64_t row = 0; row < rows; row++) {
    const Drawing& d = how[row];
    const float* w = weights + row * vocab;
    const double* s = sums + row * blocks;
    double mass = 0;
    for (int64_t b = 0; b < blocks; b++) mass += s[b];
    const bool all = d.top_k >= double(vocab) && d.top_p > 1;
    Candidate* own = candidates + vocab * omp_get_thread_num();
    tokens[row] = all ? among_all(d, w, s, mass, vocab) : among_likely(isa, d, w, mass, vocab, own);
  }
  team.meet();
}

}  // namespace
}  // namespace tmk

using namespace tmk;

// One token a row of `logits` [rows, vocab], `stride` numbers apart, each with a finite maximum.
EXPORT int64_t tmk_draw(const float* logits, int64_t stride, int64_t vocab, const Drawing* how,
                        int64_t rows, int64_t* tokens, int32_t threads) {
  if (vocab < 1 || vocab > INT32_MAX) return kBadShape;
  const int64_t blocks = blocks_of(vocab), together = rows < kRows ? rows : kRows;
  if (threads > together * blocks) threads = int32_t(together * blocks);
  const size_t weight_bytes = aligned(sizeof(float) * together * vocab);
  const size_t sum_bytes = aligned(sizeof(double) * together * blocks);
  uint8_t* memory = scratch.get(weight_bytes + sum_bytes + sizeof(Candidate) * vocab * threads);
  if (!memory) return kNoMemory;
  auto* candidates = (Candidate*)(memory + weight_bytes + sum_bytes);
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = rows - first < kRows ? rows - first : kRows;
    Team team;
#pragma omp parallel num_threads(threads)
    draw_rows(team, isa(), logits + first * stride, stride, vocab, how + first, count,
              (float*)memory, (double*)(memory + weight_bytes), candidates, tokens + first);
  }
  return kOk;
}

// Lowers the logits of tokens that occur, of which those beyond the vocabulary are passed over.
EXPORT int64_t tmk_penalize(float* logits, int64_t vocab, const int64_t* ids, const float* counts,
                            int64_t size, double presence, double frequency, double repetition) {
  for (int64_t i = 0; i < size; i++) {
    if (ids[i] < 0 || ids[i] >= vocab) continue;
    float& x = logits[ids[i]];
    x = x - float(frequency) * counts[i] - float(presence);
    x = x > 0 ? x / float(repetition) : x * float(repetition);
  }
  return kOk;
}
