// Passes over the logits of a vocabulary, for one instruction set.
#include "draw.h"
#include "floats.inl"

namespace tmk {
namespace {

float highest(const float* x, int64_t n) {
  vf most[4];
  for (int m = 0; m < 4; m++) most[m] = splat(-INFINITY);
  int64_t i = 0;
  for (; i + 4 * N <= n; i += 4 * N)
    for (int m = 0; m < 4; m++) {
      const vf v = load(x + i + m * N);
      most[m] = pick(v > most[m], v, most[m]);
    }
  float top = -INFINITY;
  for (int m = 0; m < 4; m++)
    for (int lane = 0; lane < N; lane++) top = most[m][lane] > top ? most[m][lane] : top;
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

// out = e^((x - top) / temperature), or 0 where that is `least` or less; gives the sum.
double exponentials(const float* x, float top, float temperature, float least, int64_t n,
                    float* out) {
  const auto weigh = [=](vf v) {
    const vf e = exponential((v - top) / temperature);
    return pick(e > least, e, vf{});
  };
  double sum = 0;
  int64_t i = 0;
  while (i + N <= n) {
    vf part = {};  // a float that few numbers are added to loses little
    for (int m = 0; m < 8 && i + N <= n; m++, i += N) {
      const vf e = weigh(load(x + i));
      store(out + i, e);
      part += e;
    }
    sum += total(part);
  }
  for (; i < n; i++) {
    out[i] = weigh(splat(x[i]))[0];
    sum += out[i];
  }
  return sum;
}

// Writes what weighs more than `limit`, in order, and gives the end.
Candidate* heavier(const float* weights, float limit, int64_t n, Candidate* out) {
  constexpr int step = 4 * N;
  int64_t i = 0;
  const auto take = [&](int64_t end) {
    for (; i < end; i++) {  // no branch: where many are taken, none could be foreseen
      *out = {weights[i], int32_t(i)};
      out += weights[i] > limit;
    }
  };
  while (i + step <= n) {
    vi any = {};
    for (int m = 0; m < 4; m++) any |= load(weights + i + m * N) > splat(limit);
    int64_t parts[N / 2], some = 0;
    std::memcpy(parts, &any, sizeof any);
    for (int64_t part : parts) some |= part;
    if (some)
      take(i + step);
    else
      i += step;
  }
  take(n);
  return out;
}

}  // namespace
}  // namespace tmk
