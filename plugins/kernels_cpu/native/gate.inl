// What joins the two branches of a gated MLP, for one instruction set.
#include <cmath>
#include <cstring>

#include "float_ops.inl"

namespace tmk {
namespace {

inline vf sigmoid(vf x) {
  const vf top = splat(88.0f);
  return 1.0f / (1.0f + exponential(pick(-x > top, top, -x)));
}

enum Act { kSilu = 0, kTanhGelu = 1, kGelu = 2, kRelu = 3 };

inline vf activate(int act, vf x) {
  switch (act) {
    case kSilu: return x * sigmoid(x);
    case kTanhGelu: return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
    case kGelu: {
      vf o;
      for (int i = 0; i < N; i++) o[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
      return o;
    }
    default: return pick(x > splat(0.0f), x, pick(x == x, vf{}, x));
  }
}

// `use` on all numbers of two runs, the last few of them in vectors of their own.
template <class Use>
inline void both(float* g, const float* up, int n, Use use) {
  int i = 0;
  for (; i + N <= n; i += N) store(g + i, use(load(g + i), load(up + i)));
  if (i == n) return;
  float a[N] = {}, b[N] = {};
  std::memcpy(a, g + i, sizeof(float) * (n - i));
  std::memcpy(b, up + i, sizeof(float) * (n - i));
  store(a, use(load(a), load(b)));
  std::memcpy(g + i, a, sizeof(float) * (n - i));
}

void gate(int act, float* g, const float* up, int n) {
  both(g, up, n, [act](vf a, vf b) { return activate(act, a) * b; });
}

void bounded_gate(float limit, float alpha, float* g, const float* up, int n) {
  const vf most = splat(limit), least = splat(-limit);
  both(g, up, n, [=](vf a, vf b) {
    a = pick(a > most, most, a);
    b = pick(b > most, most, pick(b < least, least, b));
    return (b + 1.0f) * a * sigmoid(alpha * a);
  });
}

}  // namespace
}  // namespace tmk
