// Attention over cached keys and values for one instruction set, by one of two roads.
#include "stored.inl"

namespace tmk {
namespace {

struct Rows {  // one token's results, see AttentionSpan
  float *out, *maxima, *sums;
};

inline Rows rows_of(const AttentionSpan& s, int token) {
  float* out = s.out + token * s.out_stride;
  float* maxima = out + s.group * s.v_head_dim;
  return {out, maxima, maxima + s.group};
}

// A new largest score: what has been summed up to now counts less. Gives what scores are taken
// relative to.
inline float raise(float largest, float& maximum, float& sum, float* out, int dim) {
  if (largest > maximum) {
    const float shrink = std::exp(maximum - largest);
    maximum = largest;
    sum *= shrink;
    for (int i = 0; i < dim; i++) out[i] *= shrink;
  }
  // Nothing but -inf so far: there is no finite reference point, and every weight is zero.
  return maximum == -INFINITY ? 0.0f : maximum;
}

}  // namespace
}  // namespace tmk

#include "attend_few.inl"
#include "attend_many.inl"

namespace tmk {
namespace {

// One query's pieces, `next` numbers apart, into one. A sink takes its share of the weights and has no
// value.
void merge(const float* first, int64_t next, int64_t pieces, int group, int g, int dim,
           const float* sink, float* out) {
  const int maximum = group * dim + g, sum = maximum + group;
  float largest = sink ? *sink : -INFINITY;
  for (int64_t p = 0; p < pieces; p++)
    largest = first[p * next + maximum] > largest ? first[p * next + maximum] : largest;
  const float base = largest == -INFINITY ? 0.0f : largest;
  float all = sink ? std::exp(*sink - base) : 0.0f;
  for (int64_t p = 0; p < pieces; p++)
    all += std::exp(first[p * next + maximum] - base) * first[p * next + sum];
  for (int64_t p = 0; p < pieces; p++) {
    const float* values = first + p * next + g * dim;
    const float share = std::exp(first[p * next + maximum] - base) / all;
    for (int i = 0; i < dim; i++) out[i] = p ? out[i] + share * values[i] : share * values[i];
  }
}

template <int KV>
void attend_as(const AttentionSpan& s) {
  if (s.tokens * s.group >= kTileRows) return attend_tile<KV>(s);
  for (int t = 0; t < s.tokens; t++) attend_token<KV>(s, t);
}

void attend(const AttentionSpan& s) {
  switch (s.kv_dtype) {
    case 0: return attend_as<0>(s);
    case 1: return attend_as<1>(s);
    case 2: return attend_as<2>(s);
    case 3: return attend_as<3>(s);
    default: return attend_as<4>(s);
  }
}

}  // namespace
}  // namespace tmk
