// Attention of many queries, those of consecutive tokens and of the heads that share a key head: a run
// of keys and values is converted once for all of them. Needs attend.inl before it.
#include "crossing.inl"

namespace tmk {
namespace {

constexpr int kQueryRows = N == 16 ? 8 : 6, kColumns = 2 * N;  // of a product held in registers
constexpr int kKeys = 128;  // converted at a time

// c[kQueryRows][kColumns] = a[kQueryRows][inner] · b[inner][kColumns], added to what is there or not.
template <bool Add>
inline void product(const float* a, int a_stride, const float* b, float* c, int c_stride, int inner) {
  vf acc[kQueryRows][2];
  for (int r = 0; r < kQueryRows; r++)
    for (int m = 0; m < 2; m++) acc[r][m] = Add ? load(c + r * c_stride + m * N) : vf{};
  for (int k = 0; k < inner; k++) {
    const vf low = load(b + k * kColumns), high = load(b + k * kColumns + N);
    for (int r = 0; r < kQueryRows; r++) {
      const vf x = splat(a[r * a_stride + k]);
      acc[r][0] += x * low;
      acc[r][1] += x * high;
    }
  }
  for (int r = 0; r < kQueryRows; r++)
    for (int m = 0; m < 2; m++) store(c + r * c_stride + m * N, acc[r][m]);
}

// Memory of a thread for many queries, with room for up to 16 lanes.
struct Workspace {
  float *q;         // [rows, head_dim], times the scale
  float *out;       // [rows, width]
  float *scores;    // [rows, kKeys]
  float *maxima, *sums;  // [rows]
  float *keys;      // [kKeys / kColumns, head_dim, kColumns]
  float *values;    // [width / kColumns, kKeys, kColumns]
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
      float* out = t.values + (j0 + m) * kColumns;
      constexpr int64_t next = kKeys * kColumns - kColumns;  // from one panel's end to the next
      int i = 0;
      for (; i + N <= VD; i += N)
        store(out + i + i / kColumns * next, S::scaled ? S::vec(v + i) * by : S::vec(v + i));
      for (; i < VD; i++) out[i + i / kColumns * next] = S::one(v[i]) * by;
      for (; i < t.width; i++) out[i + i / kColumns * next] = 0.0f;
    }
    float* keys = t.keys + j0 / kColumns * kColumns * D + j0 % kColumns;
    int i = 0;
    for (; i + N <= D; i += N) {
      vf rows[N];
      for (int m = 0; m < N; m++)
        rows[m] = S::scaled ? S::vec(row[m] + i) * factor[m] : S::vec(row[m] + i);
      transpose(rows);
      for (int m = 0; m < N; m++) store(keys + (i + m) * kColumns, rows[column_at(m)]);
    }
    for (; i < D; i++)
      for (int m = 0; m < N; m++) keys[i * kColumns + m] = S::one(row[m][i]) * factor[m];
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
  for (int j = N; j < padded; j += N) highest = larger(load(p + j), highest);
  const float base = raise(across<1>(highest, larger)[0], maximum, sum, out, width);
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
    // Token n sees positions below seen + n: rows before these see nothing of column c and what follows.
    const auto rows_for = [&](int c) {
      return within(first + c + 1 - s.seen, s.tokens) * G / kQueryRows * kQueryRows;
    };
    // What is seen by any of the rows that are multiplied together with row r.
    const auto columns_for = [&](int r) {
      r = r / kQueryRows * kQueryRows + kQueryRows;
      return within(s.seen + ((r < rows ? r : rows) - 1) / G - first, count);
    };
    // Rows whose window has moved on see nothing any more.
    const int low = rows_for(0);
    int high = s.window ? within(first + count + s.window - s.seen, s.tokens) * G : rows;
    high = (high + kQueryRows - 1) / kQueryRows * kQueryRows;
    if (low >= high) continue;
    convert<KV>(s, t, first, count);
    for (int c = 0; c < count; c += kColumns)
      for (int r = rows_for(c); r < high; r += kQueryRows)
        product<false>(t.q + r * D, D, t.keys + c * D, t.scores + r * kKeys + c, kKeys, D);
    for (int r = low; r < high; r++) {
      const int64_t seen = s.seen + r / G;
      const int to = within(seen - first, count);
      const int from = s.window ? within(seen - s.window - first, count) : 0;
      soften(s, t.scores + r * kKeys, from, to, columns_for(r), t.maxima[r], t.sums[r],
             t.out + r * t.width, t.width);
    }
    for (int c = 0; c < t.width; c += kColumns)
      for (int r = low; r < high; r += kQueryRows)
        product<true>(t.scores + r * kKeys, kKeys, t.values + c * kKeys, t.out + r * t.width + c,
                      t.width, columns_for(r));
  }
  for (int r = 0; r < rows; r++) {
    const Rows done = rows_of(s, r / G);
    const int g = r % G;
    std::memcpy(done.out + g * VD, t.out + r * t.width, sizeof(float) * VD);
    done.maxima[g] = t.maxima[r];
    done.sums[g] = t.sums[r];
  }
}

}  // namespace
}  // namespace tmk
