// Attention of few queries, which read keys and values as they are stored. Needs attend.inl before it.
#include "crossing.inl"

namespace tmk {
namespace {

constexpr int kRun = 64;    // cached tokens at a time, so that few blocks' scores are weighed at once
constexpr int kPieces = 8;  // blocks they may lie in

struct Piece {  // consecutive tokens of one block
  const uint8_t *k, *v;
  const float *k_scales, *v_scales;
  int count;
};

struct Run {
  Piece pieces[kPieces];
  int count = 0, tokens = 0;
};

// Cached tokens from `first` on, as far as `end` and a run allow.
inline Run run_from(const AttentionSpan& s, int64_t first, int64_t end, int bytes) {
  Run run;
  while (run.count < kPieces && run.tokens < kRun && first + run.tokens < end) {
    const int64_t place = first + run.tokens, block = s.table[place / s.block_size];
    const int offset = int(place % s.block_size);
    int n = s.block_size - offset;
    n = n < kRun - run.tokens ? n : kRun - run.tokens;
    n = n < end - place ? n : int(end - place);
    run.pieces[run.count++] = {s.k + block * s.k_block + int64_t(offset) * s.head_dim * bytes,
                               s.v + block * s.v_block + int64_t(offset) * s.v_head_dim * bytes,
                               s.k_scales + block * s.scale_block + offset,
                               s.v_scales + block * s.scale_block + offset, n};
    run.tokens += n;
  }
  return run;
}

// Asks for what comes next, into the second-level cache: it is more than waits for a core at a time,
// and a block is too short for the processor to see a stream.
inline void fetch(const uint8_t* p, int64_t bytes) {
  for (int64_t n = 0; n < bytes; n += 64) __builtin_prefetch(p + n, 0, 2);
}

// Queries are taken in groups of G = 4, 2 or 1, Q groups at once. Their scores, then weights, lie
// kWeights apart for each group, and for each piece as [keys, G], where keys are rounded up to those
// that are summed at once: two vectors of sums where four queries share them.
constexpr int kMostGroups = N == 16 ? 2 : 1;
template <int G> constexpr int kAtOnce = (G == 4 ? 2 : 1) * N / G;
constexpr int kWeights = 4 * kRun + kPieces * 4 * kAtOnce<4>;

template <int G> inline int weights_of(const Piece& piece) {
  return (piece.count + kAtOnce<G> - 1) / kAtOnce<G> * kAtOnce<G> * G;
}

// Products of Q times G queries with kAtOnce<G> keys. Four dimensions of each key are in four lanes
// of their own, so that only those four have to be added in the end.
template <int KV, int G, int Q>
inline __attribute__((always_inline)) void scores(const AttentionSpan& s, const float* q,
                                                  const typename Stored<KV>::T* const* row,
                                                  vf (&out)[Q][kAtOnce<G> * G / N]) {
  using S = Stored<KV>;
  constexpr int H = kAtOnce<G> * G / N, M = 4 / G;  // vectors of sums, keys in four lanes of them
  const int D = s.head_dim;
  vf acc[Q][H][4] = {};
  int i = 0;
  for (; i + N <= D; i += N) {
    vf keys[H][M][kLanes];
#pragma GCC unroll 4
    for (int h = 0; h < H; h++)
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
        for (int l = 0; l < kLanes; l++) keys[h][m][l] = S::vec(row[(h * kLanes + l) * M + m] + i);
        cross_fours(keys[h][m]);
      }
#pragma GCC unroll 4
    for (int c = 0; c < kLanes; c++)
#pragma GCC unroll 4
      for (int n = 0; n < Q; n++)
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
          const vf x = fours(q + (n * G + g) * D + i + 4 * c);
#pragma GCC unroll 4
          for (int h = 0; h < H; h++)
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) acc[n][h][m * G + g] += keys[h][m][c] * x;
        }
  }
#pragma GCC unroll 4
  for (int n = 0; n < Q; n++)
#pragma GCC unroll 4
    for (int h = 0; h < H; h++) {
      vf (&four)[4] = acc[n][h];
      const vf even = crossed<0, false>(four[0], four[1]) + crossed<0, true>(four[0], four[1]);
      const vf odd = crossed<0, false>(four[2], four[3]) + crossed<0, true>(four[2], four[3]);
      out[n][h] = crossed<1, false>(even, odd) + crossed<1, true>(even, odd);
      if (i < D) {
        float rest[N] = {};
        for (int l = 0; l < N; l++)
          for (int d = i; d < D; d++)
            rest[l] += S::one(row[h * N / G + l / G][d]) * q[(n * G + l % G) * D + d];
        out[n][h] += load(rest);
      }
    }
}

// Scores of a run, into `p`, and the highest of each group; gives how many a group has.
template <int KV, int G, int Q>
inline int score_run(const AttentionSpan& s, const float* q, const Run& run, const Run* next, float* p,
                     vf (&highest)[Q]) {
  using S = Stored<KV>;
  using T = typename S::T;
  constexpr int keys = kAtOnce<G>, H = keys * G / N;
  const int D = s.head_dim;
  for (int n = 0; n < Q; n++) highest[n] = splat(-INFINITY);
  int end = 0;
  for (int b = 0; b < run.count; b++) {
    const Piece& piece = run.pieces[b];
    for (int key = 0; key < piece.count; key += keys, end += keys * G) {
      const T* row[keys];
      vf factor[H], x[Q][H];
      for (int h = 0; h < H; h++) factor[h] = splat(s.scale);
#pragma GCC unroll 16
      for (int m = 0; m < keys; m++) {
        const int j = key + m < piece.count ? key + m : piece.count - 1;
        row[m] = (const T*)piece.k + int64_t(j) * D;
        if constexpr (S::scaled)
          for (int g = 0; g < G; g++) factor[m * G / N][m * G % N + g] *= S::unit * piece.k_scales[j];
      }
      if (next) fetch(next->pieces[b].k + key * int64_t(D * sizeof(T)), keys * D * sizeof(T));
      scores<KV, G, Q>(s, q, row, x);
#pragma GCC unroll 4
      for (int n = 0; n < Q; n++)
#pragma GCC unroll 4
        for (int h = 0; h < H; h++) {
          vf y = x[n][h] * factor[h];
          if (s.softcap > 0) y = s.softcap * hyperbolic_tangent(y / s.softcap);
          float* to = p + n * kWeights + end + h * N;
          store(to, y);
          const int left = (piece.count - key) * G - h * N;
          if (left < N) {
            for (int l = left < 0 ? 0 : left; l < N; l++) to[l] = -INFINITY;
            y = load(to);
          }
          highest[n] = larger(y, highest[n]);
        }
    }
  }
  return end;
}

// Scores p[0 … end - 1] of G queries become weights, relative to the largest up to now.
template <int G>
inline void soften_run(float* p, int end, vf highest, float* maxima, float* sums, float* out, int dim) {
  const vf top = across<G>(highest, larger);
  for (int g = 0; g < G; g++) raise(top[g], maxima[g], sums[g], out + g * dim, dim);
  const vf largest = larger(top, repeated<G>(maxima));
  const vf base = pick(largest == splat(-INFINITY), vf{}, largest);
  vf sum = {};
  for (int n = 0; n < end; n += N) {
    const vf e = exponential(load(p + n) - base);
    store(p + n, e);
    sum += e;
  }
  sum = across<G>(sum, [](vf a, vf b) { return a + b; });
  for (int g = 0; g < G; g++) sums[g] += sum[g];
}

// Weights are multiplied with what values are stored in units of.
template <int KV, int G>
inline void scale_weights(const Run& run, float* p) {
  for (int b = 0; b < run.count; b++) {
    const Piece& piece = run.pieces[b];
    for (int j = 0; j < piece.count; j++)
      for (int g = 0; g < G; g++) p[j * G + g] *= Stored<KV>::unit * piece.v_scales[j];
    p += weights_of<G>(piece);
  }
}

// out[g] += Σ p[j][g] · v[j] for columns i … i + M·N - 1.
template <int KV, int G, int Q, int M>
inline void weigh(const float* p, float* out, const Run& run, const Run* next, int dim, int i) {
  using S = Stored<KV>;
  using T = typename S::T;
  vf acc[Q * G][M];
  for (int g = 0; g < Q * G; g++)
    for (int m = 0; m < M; m++) acc[g][m] = load(out + g * dim + i + m * N);
  for (int b = 0; b < run.count; b++) {
    const T* v = (const T*)run.pieces[b].v;
    for (int j = 0; j < run.pieces[b].count; j++) {
      if (next) fetch(next->pieces[b].v + j * int64_t(dim * sizeof(T)), dim * sizeof(T));
      vf row[M];
      for (int m = 0; m < M; m++) row[m] = S::vec(v + int64_t(j) * dim + i + m * N);
      for (int g = 0; g < Q * G; g++) {
        const vf x = splat(p[g / G * kWeights + j * G + g % G]);
        for (int m = 0; m < M; m++) acc[g][m] += x * row[m];
      }
    }
    p += weights_of<G>(run.pieces[b]);
  }
  for (int g = 0; g < Q * G; g++)
    for (int m = 0; m < M; m++) store(out + g * dim + i + m * N, acc[g][m]);
}

// The same for columns from i on that fill no vector.
template <int KV, int G, int Q>
inline void weigh_rest(const float* p, float* out, const Run& run, int dim, int i) {
  using S = Stored<KV>;
  for (int b = 0; b < run.count; b++) {
    const auto* v = (const typename S::T*)run.pieces[b].v;
    for (int j = 0; j < run.pieces[b].count; j++)
      for (int g = 0; g < Q * G; g++)
        for (int c = i; c < dim; c++)
          out[g * dim + c] += p[g / G * kWeights + j * G + g % G] * S::one(v[int64_t(j) * dim + c]);
    p += weights_of<G>(run.pieces[b]);
  }
}

// Q times G queries against a run, while the `next` one is fetched.
template <int KV, int G, int Q>
inline void attend_run(const AttentionSpan& s, const float* q, const Rows& rows, const Run& run,
                       const Run* next) {
  const int dim = s.v_head_dim;
  float *p = s.scratch, *out = rows.out;
  vf highest[Q];
  const int end = score_run<KV, G>(s, q, run, next, p, highest);
  for (int n = 0; n < Q; n++) {
    const int g = n * G;
    soften_run<G>(p + n * kWeights, end, highest[n], rows.maxima + g, rows.sums + g, out + g * dim, dim);
    if constexpr (Stored<KV>::scaled) scale_weights<KV, G>(run, p + n * kWeights);
  }
  int i = 0;
  const auto columns = [&](auto vectors) {
    constexpr int M = decltype(vectors)::value;
    for (; i + M * N <= dim; i += M * N)
      weigh<KV, G, Q, M>(p, out, run, i ? nullptr : next, dim, i);
  };
  if constexpr (G < 4) columns(std::integral_constant<int, 4>());
  columns(std::integral_constant<int, 2>());
  columns(std::integral_constant<int, 1>());
  if (i < dim) weigh_rest<KV, G, Q>(p, out, run, dim, i);
}

template <int KV>
void attend_token(const AttentionSpan& s, int token) {
  const Rows rows = rows_of(s, token);
  for (int g = 0; g < s.group; g++) {
    rows.maxima[g] = -INFINITY;
    rows.sums[g] = 0;
  }
  std::memset(rows.out, 0, sizeof(float) * s.group * s.v_head_dim);
  const int64_t seen = s.seen + token;
  const int64_t oldest = s.window && seen > s.window ? seen - s.window : 0;
  const int64_t begin = s.begin > oldest ? s.begin : oldest, end = s.end < seen ? s.end : seen;
  constexpr int bytes = sizeof(typename Stored<KV>::T);
  int64_t first = begin;
  for (Run run = run_from(s, first, end, bytes), after; run.count; run = after) {
    first += run.tokens;
    after = run_from(s, first, end, bytes);
    int g = 0;
    const auto queries = [&](auto size, auto groups) {
      constexpr int G = decltype(size)::value, Q = decltype(groups)::value;
      for (; g + Q * G <= s.group; g += Q * G) {
        const Rows own = {rows.out + g * s.v_head_dim, rows.maxima + g, rows.sums + g};
        const Run* next = g == 0 && after.count == run.count ? &after : nullptr;
        attend_run<KV, G, Q>(s, s.q + token * s.q_stride + g * s.head_dim, own, run, next);
      }
    };
    using One = std::integral_constant<int, 1>;
    if constexpr (kMostGroups > 1)
      queries(std::integral_constant<int, 4>(), std::integral_constant<int, kMostGroups>());
    queries(std::integral_constant<int, 4>(), One());
    queries(std::integral_constant<int, 2>(), One());
    queries(One(), One());
  }
}

}  // namespace
}  // namespace tmk
