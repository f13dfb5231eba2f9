// Attention over cached keys and values for one instruction set, by one of two roads. Few queries
// read keys and values as they are stored; many, those of consecutive tokens and of the heads that
// share a key head, have a run of keys and values converted once for all of them.
#include "stored.inl"

#include <utility>

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

// Few queries ------------------------------------------------------------------------------------

template <int H, bool Second, int... I>
inline vi crossing(std::integer_sequence<int, I...>) {
  return vi{((I & H) ? N + I - (Second ? 0 : H) : I + (Second ? H : 0))...};
}
template <int H> inline vi first_crossing() {
  return crossing<H, false>(std::make_integer_sequence<int, N>());
}
template <int H> inline vi second_crossing() {
  return crossing<H, true>(std::make_integer_sequence<int, N>());
}

// Lane i is the sum of the lanes of rows[i].
template <int H = N / 2>
inline __attribute__((always_inline)) vf totals(vf (&rows)[N]) {
  if constexpr (H == 0) {
    return rows[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < H; i++)
      rows[i] = __builtin_shuffle(rows[i], rows[i + H], first_crossing<H>()) +
                __builtin_shuffle(rows[i], rows[i + H], second_crossing<H>());
    return totals<H / 2>(rows);
  }
}

// Products of G queries with N / G keys; each key's lie together.
template <int KV, int G>
inline __attribute__((always_inline)) vf score(const AttentionSpan& s, const float* q,
                                               const typename Stored<KV>::T* const (&row)[N / G]) {
  using S = Stored<KV>;
  constexpr int J = N / G;
  const int D = s.head_dim;
  vf acc[N];
#pragma GCC unroll 16
  for (int l = 0; l < N; l++) acc[l] = vf{};
  int i = 0;
  for (; i + N <= D; i += N) {
    vf keys[J];
#pragma GCC unroll 16
    for (int m = 0; m < J; m++) keys[m] = S::vec(row[m] + i);
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
      const vf x = load(q + g * D + i);
#pragma GCC unroll 16
      for (int m = 0; m < J; m++) acc[m * G + g] += keys[m] * x;
    }
  }
  vf sum = totals(acc);
  if (i < D) {
    float rest[N] = {};
    for (int l = 0; l < N; l++)
      for (int d = i; d < D; d++) rest[l] += S::one(row[l / G][d]) * q[l % G * D + d];
    sum += load(rest);
  }
  return sum;
}

// out[g] += Σ p[j][g] · v[j] for columns i … i + M·N - 1.
template <int KV, int G, int M>
inline void weigh(const float* p, float* out, const typename Stored<KV>::T* v, int count, int dim,
                  int i) {
  using S = Stored<KV>;
  vf acc[G][M];
  for (int g = 0; g < G; g++)
    for (int m = 0; m < M; m++) acc[g][m] = load(out + g * dim + i + m * N);
  for (int j = 0; j < count; j++) {
    vf row[M];
    for (int m = 0; m < M; m++) row[m] = S::vec(v + int64_t(j) * dim + i + m * N);
    for (int g = 0; g < G; g++) {
      const vf x = splat(p[j * G + g]);
      for (int m = 0; m < M; m++) acc[g][m] += x * row[m];
    }
  }
  for (int g = 0; g < G; g++)
    for (int m = 0; m < M; m++) store(out + g * dim + i + m * N, acc[g][m]);
}

// Queries g0 … g0 + G - 1 and tokens from … to - 1 of a block, while `next` is fetched.
template <int KV, int G>
inline void attend_block(const AttentionSpan& s, const float* q, const Rows& rows, int g0,
                         int32_t block, int32_t next, int from, int to) {
  using S = Stored<KV>;
  using T = typename S::T;
  constexpr int J = N / G;
  const int D = s.head_dim, VD = s.v_head_dim, count = to - from;
  const auto* k = (const T*)(s.k + block * s.k_block);
  const auto* v = (const T*)(s.v + block * s.v_block) + int64_t(from) * VD;
  float* out = rows.out + g0 * VD;
  float* p = s.scratch;  // [count, G], and up to a whole vector
  q += g0 * D;
  vf highest = splat(-INFINITY);
  for (int key = 0; key < count; key += J) {
    const T* row[J];
    vf factor = splat(s.scale);
#pragma GCC unroll 16
    for (int m = 0; m < J; m++) {
      const int j = from + (key + m < count ? key + m : count - 1);
      row[m] = k + int64_t(j) * D;
      if constexpr (S::scaled)
        for (int g = 0; g < G; g++)
          factor[m * G + g] *= S::unit * s.k_scales[block * s.scale_block + j];
    }
    if (g0 == 0) {  // a head's part of a block is too short for the processor to see a stream
      const int64_t k_at = (from + key) * int64_t(D * sizeof(T)), k_size = J * D * sizeof(T);
      const int64_t v_at = (from + key) * int64_t(VD * sizeof(T)), v_size = J * VD * sizeof(T);
      for (int64_t n = 0; n < k_size; n += 64)
        __builtin_prefetch(s.k + next * s.k_block + k_at + n);
      for (int64_t n = 0; n < v_size; n += 64)
        __builtin_prefetch(s.v + next * s.v_block + v_at + n);
    }
    vf x = score<KV, G>(s, q, row) * factor;
    if (s.softcap > 0) x = s.softcap * hyperbolic_tangent(x / s.softcap);
    store(p + key * G, x);
    if (key + J > count)
      for (int n = count * G; n < (key + J) * G; n++) p[n] = -INFINITY;
    x = load(p + key * G);
    highest = pick(x > highest, x, highest);
  }
  vf base;
  for (int g = 0; g < G; g++) {
    float largest = -INFINITY;
    for (int l = g; l < N; l += G) largest = highest[l] > largest ? highest[l] : largest;
    const float mine = raise(largest, rows.maxima[g0 + g], rows.sums[g0 + g], out + g * VD, VD);
    for (int l = g; l < N; l += G) base[l] = mine;
  }
  vf sum = {};
  for (int n = 0; n < count * G; n += N) {
    const vf e = exponential(load(p + n) - base);
    store(p + n, e);
    sum += e;
  }
  for (int g = 0; g < G; g++)
    for (int l = g; l < N; l += G) rows.sums[g0 + g] += sum[l];
  if constexpr (S::scaled) {
    const float* scales = s.v_scales + block * s.scale_block + from;
    for (int j = 0; j < count; j++)
      for (int g = 0; g < G; g++) p[j * G + g] *= S::unit * scales[j];
  }
  int i = 0;
  if constexpr (G < 4)
    for (; i + 4 * N <= VD; i += 4 * N) weigh<KV, G, 4>(p, out, v, count, VD, i);
  for (; i + 2 * N <= VD; i += 2 * N) weigh<KV, G, 2>(p, out, v, count, VD, i);
  for (; i + N <= VD; i += N) weigh<KV, G, 1>(p, out, v, count, VD, i);
  for (; i < VD; i++)
    for (int g = 0; g < G; g++)
      for (int j = 0; j < count; j++) out[g * VD + i] += p[j * G + g] * S::one(v[int64_t(j) * VD + i]);
}

template <int KV>
void attend_token(const AttentionSpan& s, int token) {
  const int bs = s.block_size;
  const float* q = s.q + token * s.q_stride;
  const Rows rows = rows_of(s, token);
  for (int g = 0; g < s.group; g++) {
    rows.maxima[g] = -INFINITY;
    rows.sums[g] = 0;
  }
  std::memset(rows.out, 0, sizeof(float) * s.group * s.v_head_dim);
  const int64_t seen = s.seen + token;
  const int64_t oldest = s.window && seen > s.window ? seen - s.window : 0;
  const int64_t begin = s.begin > oldest ? s.begin : oldest, end = s.end < seen ? s.end : seen;
  for (int64_t b = begin / bs; b * bs < end; b++) {
    const int from = begin > b * bs ? int(begin - b * bs) : 0;
    const int to = end - b * bs < bs ? int(end - b * bs) : bs;
    const int32_t block = s.table[b], next = (b + 1) * bs < end ? s.table[b + 1] : block;
    int g = 0;
    for (; g + 4 <= s.group; g += 4) attend_block<KV, 4>(s, q, rows, g, block, next, from, to);
    for (; g + 2 <= s.group; g += 2) attend_block<KV, 2>(s, q, rows, g, block, next, from, to);
    for (; g < s.group; g++) attend_block<KV, 1>(s, q, rows, g, block, next, from, to);
  }
}

// Many queries -----------------------------------------------------------------------------------

constexpr int kQueryRows = 6, kColumns = 2 * N;  // of a product held in registers
constexpr int kKeys = 64;                    // converted at a time

// c[kQueryRows][kColumns] = a[kQueryRows][inner] · b[inner][kColumns], added to what is there or not.
template <bool Add>
inline void product(const float* a, int a_stride, const float* b, int b_stride, float* c,
                    int c_stride, int inner) {
  vf acc[kQueryRows][2];
  for (int r = 0; r < kQueryRows; r++)
    for (int m = 0; m < 2; m++) acc[r][m] = Add ? load(c + r * c_stride + m * N) : vf{};
  for (int k = 0; k < inner; k++) {
    const vf low = load(b + k * b_stride), high = load(b + k * b_stride + N);
    for (int r = 0; r < kQueryRows; r++) {
      const vf x = splat(a[r * a_stride + k]);
      acc[r][0] += x * low;
      acc[r][1] += x * high;
    }
  }
  for (int r = 0; r < kQueryRows; r++)
    for (int m = 0; m < 2; m++) store(c + r * c_stride + m * N, acc[r][m]);
}

// N vectors of N lanes become their columns; halves change places, then quarters, and so on.
template <int H = N / 2>
inline void transpose(vf (&rows)[N]) {
  if constexpr (H > 0) {
    for (int i = 0; i < N; i++)
      if (!(i & H)) {
        const vf a = rows[i], b = rows[i + H];
        rows[i] = __builtin_shuffle(a, b, first_crossing<H>());
        rows[i + H] = __builtin_shuffle(a, b, second_crossing<H>());
      }
    transpose<H / 2>(rows);
  }
}

// Memory of a thread for many queries, with room for up to 16 lanes.
struct Workspace {
  float *q;         // [rows, head_dim], times the scale
  float *out;       // [rows, width]
  float *scores;    // [rows, kKeys]
  float *maxima, *sums;  // [rows]
  float *keys;      // [head_dim, kKeys]
  float *values;    // [kKeys, width]
  int rows, width;  // multiples of kQueryRows and kColumns
};

inline Workspace workspace_of(const AttentionSpan& s) {
  Workspace t;
  t.rows = (s.tokens * s.group + kQueryRows - 1) / kQueryRows * kQueryRows;
  t.width = (s.v_head_dim + kColumns - 1) / kColumns * kColumns;
  t.q = s.scratch;
  t.out = t.q + t.rows * s.head_dim;
  t.scores = t.out + t.rows * t.width;
  t.maxima = t.scores + t.rows * kKeys;
  t.sums = t.maxima + t.rows;
  t.keys = t.sums + t.rows;
  t.values = t.keys + s.head_dim * kKeys;
  return t;
}

// Keys, transposed, and values of `count` tokens from `first` on, in float32.
template <int KV>
void convert(const AttentionSpan& s, const Workspace& t, int64_t first, int count) {
  using S = Stored<KV>;
  const int D = s.head_dim, VD = s.v_head_dim;
  for (int j0 = 0; j0 < count; j0 += N) {
    const typename S::T* row[N];
    float factor[N];
    const int last = count - j0 < N ? count - j0 : N;
    for (int m = 0; m < N; m++) {
      const int64_t place = first + j0 + (m < last ? m : 0);
      const int64_t block = s.table[place / s.block_size], offset = place % s.block_size;
      row[m] = (const typename S::T*)(s.k + block * s.k_block) + offset * D;
      factor[m] = S::scaled ? S::unit * s.k_scales[block * s.scale_block + offset] : 1.0f;
      if (m >= last) continue;
      const auto* v = (const typename S::T*)(s.v + block * s.v_block) + offset * VD;
      const float by = S::scaled ? S::unit * s.v_scales[block * s.scale_block + offset] : 1.0f;
      float* out = t.values + (j0 + m) * t.width;
      int i = 0;
      for (; i + N <= VD; i += N) store(out + i, S::scaled ? S::vec(v + i) * by : S::vec(v + i));
      for (; i < VD; i++) out[i] = S::one(v[i]) * by;
      for (; i < t.width; i++) out[i] = 0.0f;
    }
    int i = 0;
    for (; i + N <= D; i += N) {
      vf rows[N];
      for (int m = 0; m < N; m++)
        rows[m] = S::scaled ? S::vec(row[m] + i) * factor[m] : S::vec(row[m] + i);
      transpose(rows);
      for (int m = 0; m < N; m++) store(t.keys + (i + m) * kKeys + j0, rows[m]);
    }
    for (; i < D; i++)
      for (int m = 0; m < N; m++) t.keys[i * kKeys + j0 + m] = S::one(row[m][i]) * factor[m];
  }
}

// Scores p[0 … count - 1] of a row become weights, zero outside of from … to - 1.
inline void soften(const AttentionSpan& s, float* p, int from, int to, int count, float& maximum,
                   float& sum, float* out, int width) {
  const int padded = (count + N - 1) / N * N;
  if (s.softcap > 0)
    for (int j = 0; j < padded; j += N)
      store(p + j, s.softcap * hyperbolic_tangent(load(p + j) / s.softcap));
  for (int j = 0; j < from; j++) p[j] = -INFINITY;
  for (int j = to; j < padded; j++) p[j] = -INFINITY;
  vf highest = load(p);
  for (int j = N; j < padded; j += N) {
    const vf x = load(p + j);
    highest = pick(x > highest, x, highest);
  }
  float largest = -INFINITY;
  for (int i = 0; i < N; i++) largest = highest[i] > largest ? highest[i] : largest;
  const float base = raise(largest, maximum, sum, out, width);
  vf added = {};
  for (int j = 0; j < padded; j += N) {
    const vf e = exponential(load(p + j) - base);
    store(p + j, e);
    added += e;
  }
  sum += total(added);
}

inline int within(int64_t x, int most) { return x < 0 ? 0 : x > most ? most : int(x); }

template <int KV>
void attend_tile(const AttentionSpan& s) {
  const Workspace t = workspace_of(s);
  const int G = s.group, D = s.head_dim, VD = s.v_head_dim, rows = s.tokens * G;
  for (int r = 0; r < t.rows; r++) {
    const float* q = s.q + r / G * s.q_stride + r % G * D;
    for (int i = 0; i < D; i++) t.q[r * D + i] = r < rows ? q[i] * s.scale : 0.0f;
    t.maxima[r] = -INFINITY;
    t.sums[r] = 0;
  }
  std::memset(t.out, 0, sizeof(float) * t.rows * t.width);
  for (int64_t first = s.begin; first < s.end; first += kKeys) {
    const int count = s.end - first < kKeys ? int(s.end - first) : kKeys;
    // Token n sees positions below seen + n. Earlier ones see nothing of this run, and those whose
    // window has moved on nothing any more.
    const int low = within(first + 1 - s.seen, s.tokens) * G / kQueryRows * kQueryRows;
    int high = s.window ? within(first + count + s.window - s.seen, s.tokens) * G : rows;
    high = (high + kQueryRows - 1) / kQueryRows * kQueryRows;
    if (low >= high) continue;
    convert<KV>(s, t, first, count);
    for (int c = 0; c < count; c += kColumns)
      for (int r = low; r < high; r += kQueryRows)
        product<false>(t.q + r * D, D, t.keys + c, kKeys, t.scores + r * kKeys + c, kKeys, D);
    for (int r = low; r < high; r++) {
      const int64_t seen = s.seen + r / G;
      const int to = within(seen - first, count);
      const int from = s.window ? within(seen - s.window - first, count) : 0;
      soften(s, t.scores + r * kKeys, from, to, count, t.maxima[r], t.sums[r],
             t.out + r * t.width, t.width);
    }
    for (int c = 0; c < t.width; c += kColumns)
      for (int r = low; r < high; r += kQueryRows)
        product<true>(t.scores + r * kKeys, kKeys, t.values + c, t.width, t.out + r * t.width + c,
                      t.width, count);
  }
  for (int r = 0; r < rows; r++) {
    const Rows done = rows_of(s, r / G);
    const int g = r % G;
    std::memcpy(done.out + g * VD, t.out + r * t.width, sizeof(float) * VD);
    done.maxima[g] = t.maxima[r];
    done.sums[g] = t.sums[r];
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
