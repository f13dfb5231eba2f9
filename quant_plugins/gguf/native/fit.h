// Fits of a group of weights to codes 0 … levels with a scale, with or without an offset, eight
// groups at a time, by weighted least squares.
//
// Rounding makes the error a function of the scale with many small valleys, and for given codes
// the best scale is a quotient of sums. So a grid of scales is tried, each gives codes, the codes
// give a better scale, and the best one is refined by doing the same again (Lloyd, "Least squares
// quantization in PCM", 1982, in one dimension).
#pragma once
#include "lanes.h"

namespace {

// Σ w·q, Σ w·q², Σ w·x·q over a group.
struct Sums {
  V q, qq, xq;
};

// x ≈ a·q + b with a ≥ 0 and b ≤ 0.
struct Affine {
  V a, b;
  V err;  // less Σ w·x², which no choice changes
  V qq;   // Σ w·q², how much an error of `a` weighs
};

template <int N>
struct AffineFit {
  const V *x, *w;
  float levels;
  V sw, sx;

  AffineFit(const V* x, const V* w, int levels) : x(x), w(w), levels(float(levels)) {
    sw = sx = all(0.f);
    for (int i = 0; i < N; i++) {
      sw += w[i];
      sx = mad(w[i], x[i], sx);
    }
  }

  Sums sums(V inverse, V b) const {
    Sums s{all(0.f), all(0.f), all(0.f)};
    const V shift = -b * inverse;
    for (int i = 0; i < N; i++) add(s, i, mad(x[i], inverse, shift));
    return s;
  }

  // Two scales for one offset at once: the sums of one hide the latency of the other's.
  void sums(V inverse, V other, V b, Sums& s, Sums& t) const {
    s = t = Sums{all(0.f), all(0.f), all(0.f)};
    const V shift = -b * inverse, other_shift = -b * other;
    for (int i = 0; i < N; i++) {
      add(s, i, mad(x[i], inverse, shift));
      add(t, i, mad(x[i], other, other_shift));
    }
  }

  void add(Sums& s, int i, V code) const {
    const V q = clamp(nearest(code), 0.f, levels);
    const V wq = w[i] * q;
    s.q += wq;
    s.qq = mad(wq, q, s.qq);
    s.xq = mad(wq, x[i], s.xq);
  }

  // The best scale and offset for given codes.
  Affine solve(const Sums& s) const {
    const V det = sw * s.qq - s.q * s.q;
    const M proper = det > all(1e-9f) * sw * s.qq;
    V a = pick(proper, (sw * s.xq - sx * s.q) / det, s.xq * safe_inverse(s.qq));
    V b = pick(proper, (sx - a * s.q) * safe_inverse(sw), all(0.f));
    // An offset above zero cannot be stored, nor a scale below it.
    const M above = b > all(0.f);
    b = pick(above, all(0.f), b);
    a = pick(above, s.xq * safe_inverse(s.qq), a);
    const M below = a < all(0.f);
    a = pick(below, all(0.f), a);
    b = pick(below, vmin(sx * safe_inverse(sw), all(0.f)), b);
    const V err = a * a * s.qq + b * b * sw + (a * b + a * b) * s.q - (a + a) * s.xq - (b + b) * sx;
    return {a, b, err, s.qq};
  }

  static Affine better(const Affine& best, const Affine& next) {
    const M less = next.err < best.err;
    return {pick(less, next.a, best.a), pick(less, next.b, best.b), pick(less, next.err, best.err),
            pick(less, next.qq, best.qq)};
  }

  // Scales that spread the group over levels + from … levels + to steps of the grid.
  Affine search(float from, float to, float step) const {
    V low = all(0.f), high = all(0.f);
    for (int i = 0; i < N; i++) {
      low = vmin(low, x[i]);
      high = vmax(high, x[i]);
    }
    const V spread = safe_inverse(high - low);
    Affine best{all(0.f), low, all(INFINITY), all(0.f)};
    for (float t = from; t < to; t += 2 * step) {
      Sums one, two;
      sums(all(levels + t) * spread, all(levels + t + step) * spread, low, one, two);
      best = better(better(best, solve(one)), solve(two));
    }
    for (int k = 0; k < 2; k++) best = better(best, solve(sums(safe_inverse(best.a), best.b)));
    return best;
  }

  // The best offset for a scale that is settled; as a positive number to take away.
  V offset(V a, V b) const {
    const V inverse = safe_inverse(a);
    for (int k = 0; k < 2; k++) {
      const Sums s = sums(inverse, b);
      b = vmin((sx - a * s.q) * safe_inverse(sw), all(0.f));
    }
    return -b;
  }
};

// x ≈ a·v(q) where v is the table of a type, or q itself from -half to half - 1.
struct Scale {
  V a, gain, qq;
};

template <int N, class Code>
struct ScaleFit {
  const V *x, *w;
  Code code;  // nearest entry of the table

  Scale solve(V inverse) const {
    V qq = all(0.f), xq = all(0.f);
    for (int i = 0; i < N; i++) add(i, inverse, qq, xq);
    return quotient(qq, xq);
  }

  Scale solve(V inverse, V other) const {
    V qq = all(0.f), xq = all(0.f), rr = all(0.f), xr = all(0.f);
    for (int i = 0; i < N; i++) {
      add(i, inverse, qq, xq);
      add(i, other, rr, xr);
    }
    return better(quotient(qq, xq), quotient(rr, xr));
  }

  void add(int i, V inverse, V& qq, V& xq) const {
    const V q = code(x[i] * inverse);
    const V wq = w[i] * q;
    qq = mad(wq, q, qq);
    xq = mad(wq, x[i], xq);
  }

  static Scale quotient(V qq, V xq) {
    const V a = xq * safe_inverse(qq);
    return {a, a * xq, qq};
  }

  static Scale better(const Scale& best, const Scale& next) {
    const M more = next.gain > best.gain;
    return {pick(more, next.a, best.a), pick(more, next.gain, best.gain),
            pick(more, next.qq, best.qq)};
  }

  // Scales that put the largest weight at `end` + from … `end` + to of the table.
  Scale search(float end, float from, float to, float step) const {
    V largest = all(0.f);
    for (int i = 0; i < N; i++) largest = pick(vabs(x[i]) > vabs(largest), x[i], largest);
    const V unit = safe_inverse(largest);
    Scale best{all(0.f), all(0.f), all(0.f)};
    for (float t = from; t < to; t += 2 * step)
      best = better(best, solve(all(end + t) * unit, all(end + t + step) * unit));
    for (int k = 0; k < 2; k++) best = better(best, solve(safe_inverse(best.a)));
    return best;
  }
};

struct Integers {
  float low, high;
  V operator()(V x) const { return clamp(nearest(x), low, high); }
};

constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                             1,    13,   25,  38,  53,  69,  89,  113};

struct Iq4Values {
#ifdef __AVX2__
  // Four halvings of the table, each with a threshold chosen by what is known so far.
  M index(V x) const {
    const V first = {mid(3), mid(11), 0, 0, 0, 0, 0, 0};
    const V second = {mid(1), mid(5), mid(9), mid(13), 0, 0, 0, 0};
    const V third = {mid(0), mid(2), mid(4), mid(6), mid(8), mid(10), mid(12), mid(14)};
    M k = (x > all(mid(7))) & 1;
    k = k + k + ((x > entry(first, k)) & 1);
    k = k + k + ((x > entry(second, k)) & 1);
    return k + k + ((x > entry(third, k)) & 1);
  }
  V operator()(V x) const {
    const V low = {kIq4[0], kIq4[1], kIq4[2], kIq4[3], kIq4[4], kIq4[5], kIq4[6], kIq4[7]};
    const V high = {kIq4[8], kIq4[9], kIq4[10], kIq4[11], kIq4[12], kIq4[13], kIq4[14], kIq4[15]};
    const M k = index(x);
    return pick(k > 7, entry(high, k), entry(low, k));
  }
  static constexpr float mid(int k) { return (kIq4[k] + kIq4[k + 1]) * 0.5f; }
  // By the lowest three bits of k.
  static V entry(V table, M k) { return (V)_mm256_permutevar8x32_ps((__m256)table, (__m256i)k); }
#else
  M index(V x) const {
    M k = {};
    for (int i = 1; i < 16; i++) k -= x > all((kIq4[i - 1] + kIq4[i]) * 0.5f);
    return k;
  }
  V operator()(V x) const {
    V v = all(kIq4[0]);
    for (int k = 1; k < 16; k++) {
      const M above = x > all((kIq4[k - 1] + kIq4[k]) * 0.5f);
      v += (V)(above & (M)all(float(kIq4[k] - kIq4[k - 1])));
    }
    return v;
  }
#endif
};

// One scale for the scales of a block: values[i] ≈ d · codes[i], weighted, d as a half.
// Codes lie in low … high; the value largest in magnitude is put near `end`.
inline float fit_scales(const float* values, const float* weights, int count, int low, int high,
                        int end, int* codes) {
  float largest = 0.f;
  for (int i = 0; i < count; i++)
    if (std::fabs(values[i]) > std::fabs(largest)) largest = values[i];
  for (int i = 0; i < count; i++) codes[i] = 0;
  if (largest == 0.f) return 0.f;
  // Here each lane is a scale to try.
  float best = 0.f, gain = -1.f;
  for (int k = 0; k < 3; k++) {
    V steps;
    for (int lane = 0; lane < kLanes; lane++)
      steps[lane] = float(end) + 0.1f * float(kLanes * k + lane - 11);
    V inverse = steps / all(largest), qq, xq;
    for (int round = 0; round < 2; round++) {
      qq = xq = all(0.f);
      for (int i = 0; i < count; i++) {
        const V q = clamp(nearest(all(values[i]) * inverse), float(low), float(high));
        const V wq = all(weights[i]) * q;
        qq = mad(wq, q, qq);
        xq = mad(wq, all(values[i]), xq);
      }
      inverse = qq * safe_inverse(xq);
    }
    for (int lane = 0; lane < kLanes; lane++)
      if (qq[lane] > 0.f && xq[lane] * xq[lane] > gain * qq[lane]) {
        gain = xq[lane] * xq[lane] / qq[lane];
        best = xq[lane] / qq[lane];
      }
  }
  if (best == 0.f) best = largest / float(end);
  const float d = halved(best);
  if (d == 0.f) return 0.f;
  for (int i = 0; i < count; i++) {
    const float q = std::nearbyint(values[i] / d);
    codes[i] = int(q < float(low) ? float(low) : q > float(high) ? float(high) : q);
  }
  return d;
}

}  // namespace
