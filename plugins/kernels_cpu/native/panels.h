// Rows of a weight times tokens, and how loops over both are cut up.
#pragma once
#include <cstring>

#include "work.h"

namespace tmk {

constexpr int kMaxTile = 8;
constexpr int kMostRows = 16 * kStreams;  // of a strip
constexpr int64_t kNear = 256 << 10;      // bytes of weights that stay in a core's own cache
constexpr int kMany = 32;                 // tokens from which that matters
constexpr int kStayingRows = 32;          // of a strip that meets so many, where rows stay as stored
constexpr int kOpening = 64;              // tokens from which opening panels takes less than it saves

// Rows that are computed together: pieces of so many that follow each other, the first at `row`, the
// next ones `apart` from it.
struct Strip {
  int64_t row;
  int rows, piece;
  int64_t apart;

  // use(row, n, count) for its pieces: `count` rows from `row` on, before which the strip has n others.
  template <class Use>
  void each(Use use) const {
    const int step = apart == piece ? rows : piece;
    int64_t at = row;
    for (int n = 0; n < rows; n += step, at += apart) use(at, n, rows - n < step ? rows - n : step);
  }

  void put(float* out, const float* values) const {
    each([&](int64_t at, int n, int count) { std::memcpy(out + at, values + n, sizeof(float) * count); });
  }
  void get(const float* from, float* values) const {
    each([&](int64_t at, int n, int count) { std::memcpy(values + n, from + at, sizeof(float) * count); });
  }
  void add(const float* other, float* values) const {
    each([&](int64_t at, int n, int count) {
      for (int i = 0; i < count; i++) values[n + i] += other[at + i];
    });
  }
  void add_to(float* out, float factor, const float* values) const {
    each([&](int64_t at, int n, int count) {
      for (int i = 0; i < count; i++) out[at + i] += factor * values[n + i];
    });
  }
  void fetch(const float* out) const {
    each([&](int64_t at, int, int count) {
      for (int i = 0; i < count; i += 16) __builtin_prefetch(out + at + i, 1);
    });
  }
};

inline const Tiles& tiles_of(const Isa& isa, const Linear& w) {
  const int bits = affine_bits(w.type);
  return bits ? isa.affine[bits] : isa.linear[w.type];
}

inline bool opens(const Isa& isa, const Linear& w, int64_t tokens) {
  return tokens >= kOpening && !stays(w.type) && tiles_of(isa, w).open;
}

// How a weight's rows are cut into strips to meet as many tokens.
class Strips {
 public:
  Strips(const Isa& isa, const Linear& w, int64_t tokens)
      : isa(isa), w(w), many(tokens >= kMany), in_line_(!stays(w.type) && tokens >= isa.in_line && !many),
        rows_(rows_of_one()), count(in_line_ ? in_runs() : (w.rows + rows_ - 1) / rows_),
        at_once(most_at_once(tokens)) {}

  Strip operator[](int64_t i) const {
    const int64_t apart = rows_apart(w);
    if (w.type > kCrossed) {
      // Rows from all over a set, so that those that share bytes are in one strip.
      const int64_t strips = w.beside->height / kCrossedRows;
      return {i / strips + i % strips * apart, kCrossedRows, 1, apart * strips};
    }
    if (in_line_) return one_of_a_run(i);
    if (stays(w.type) && !many && i < w.rows / kStreams) return {i, kStreams, 1, apart};
    const int64_t row = i * rows_;
    const int piece = stays(w.type) ? 1 : isa.lanes;
    return {row, w.rows - row < rows_ ? int(w.rows - row) : rows_, piece, piece};
  }

  // Where those end that a thread takes from strip `first` on.
  int64_t end_of(int64_t first) const { return first + at_once < count ? first + at_once : count; }

  const Isa& isa;
  const Linear& w;
  const bool many;

 private:
  const bool in_line_;  // panels one after the other, as they lie, not one of each run
  const int rows_;      // of a strip; the last one may have fewer

  int rows_of_one() const {
    if (w.type > kCrossed) return kCrossedRows;
    if (stays(w.type)) return many ? kStayingRows : kStreams;
    return kStreams * isa.lanes;
  }

  int64_t panels() const { return (w.rows + isa.lanes - 1) / isa.lanes; }
  int64_t panels_of_run(int64_t run) const { return (panels() - run + kStreams - 1) / kStreams; }
  int64_t strips_of_run(int64_t run) const { return (panels_of_run(run) + kStreams - 1) / kStreams; }
  int64_t in_runs() const {
    int64_t strips = 0;
    for (int run = 0; run < kStreams; run++) strips += strips_of_run(run);
    return strips;
  }
  Strip one_of_a_run(int64_t i) const {
    int run = 0;
    for (; i >= strips_of_run(run); run++) i -= strips_of_run(run);
    const int64_t left = panels_of_run(run) - i * kStreams;
    const int64_t first = (i * kStreams * kStreams + run) * isa.lanes;
    const int64_t last = first + (left < kStreams ? left - 1 : kStreams - 1) * rows_;
    const int64_t rest = w.rows - last < isa.lanes ? w.rows - last : isa.lanes;
    return {first, int((last - first) / kStreams + rest), isa.lanes, rows_};
  }

  // With many tokens each tile of them meets all these, so they should stay near; with few, long pieces
  // are read faster, short ones let threads finish together.
  int64_t most_at_once(int64_t tokens) const {
    int64_t rows = w.rows / (16 * omp_get_num_threads()), most = 128;
    if (many) {
      size_t panel = w.cols * (is_widened(w.type) ? 1 : plain_bytes(w.type)) * isa.lanes;
      if (!stays(w.type))
        panel = opens(isa, w, tokens) ? tiles_of(isa, w).opened_bytes(w) : panel_bytes(w, isa.lanes);
      rows = kNear * isa.lanes / int64_t(panel);
      most = 256;
    }
    rows = rows < 32 ? 32 : rows > most ? most : rows;
    return rows / rows_ ? rows / rows_ : 1;
  }

 public:
  const int64_t count;
  const int64_t at_once;  // strips that a thread takes
};

// Panel n of a strip.
inline const uint8_t* panel_of(const Isa& isa, const Linear& w, const Strip& s, int n) {
  const int64_t before = panels_before(w.rows, isa.lanes, (s.row + n * s.apart) / isa.lanes);
  return w.data + before * panel_bytes(w, isa.lanes);
}

// Panels of strips first … last - 1, opened where their type is and tokens are many. Where there is no
// memory for that they are taken like those of few tokens.
class NearPanels {
 public:
  NearPanels(const Strips& strips, int64_t first, int64_t last, int64_t begin, int64_t tokens)
      : strips_(strips), first_(first), begin_(begin) {
    const Isa& isa = strips.isa;
    const Linear& w = strips.w;
    if (tokens < kOpening || stays(w.type)) return;
    const Tiles& tiles = tiles_of(isa, w);
    times_ = tiles.near;
    if (!tiles.open) return;
    size_ = tiles.opened_bytes(w);
    data_ = opened_scratch.get(kStreams * size_ * (last - first));
    if (!data_) times_ = nullptr;
    for (int64_t i = first; data_ && i < last; i++) {
      const Strip s = strips[i];
      for (int n = 0; n * isa.lanes < s.rows; n++)
        tiles.open(w, panel_of(isa, w, s, n), data_ + (kStreams * (i - first) + n) * size_);
    }
  }
  // What a tile is multiplied with, if they lie near by then and it is full; else null.
  TileFn times(Tile tile) const {
    return tile.n == strips_.isa.tile && (data_ || tile.first != begin_) ? times_ : nullptr;
  }
  // Panel n of strip i.
  const uint8_t* operator()(int64_t i, int n) const {
    if (data_) return data_ + (kStreams * (i - first_) + n) * size_;
    return panel_of(strips_.isa, strips_.w, strips_[i], n);
  }

 private:
  const Strips& strips_;
  int64_t first_, begin_;
  TileFn times_ = nullptr;
  size_t size_ = 0;
  uint8_t* data_ = nullptr;
};

// Strip i times the tokens of one tile (of any eight, where rows stay as stored), out [n, kMostRows].
inline void strip_times(const Strips& strips, const Activations& x, int64_t i, const NearPanels& near,
                        Tile tile, float* out) {
  const Isa& isa = strips.isa;
  const Linear& w = strips.w;
  const Strip s = strips[i];
  if (w.type == kRounded) {
    const uint16_t* from = x.brains + tile.first * brain_stride(w.cols);
    isa.rounded(w, s.row, s.rows, s.apart, from, tile.n, out, kMostRows);
    return;
  }
  if (stays(w.type)) {
    const auto times = is_widened(w.type) ? isa.widened : isa.plain;
    times(w, s.row, s.rows, s.apart, x.x + tile.first * x.x_stride, x.x_stride, tile.n, out, kMostRows);
    return;
  }
  TileFn times = near.times(tile);
  const int count = (s.rows + isa.lanes - 1) / isa.lanes;
  const uint8_t* panels[kStreams];  // those that the weight lacks are the first again
  for (int n = 0; n < kStreams; n++) {
    const int which = n < count ? n : 0;
    panels[n] = times ? near(i, which) : panel_of(isa, w, s, which);
  }
  if (!times) times = tiles_of(isa, w).stored[__builtin_ctz(tile.n)];
  times(panels, count, w, x, tile.first, out, kMostRows);
}

// use(strip, token, values) for strips first … last - 1 and tokens begin … end - 1: rows times the
// token, and their biases. What is used for `out`, of `stride` numbers a token, is asked for meanwhile.
template <class Use>
inline void products(const Strips& strips, const Activations& x, int64_t first, int64_t last,
                     int64_t begin, int64_t end, const float* out, int64_t stride, Use use) {
  const Linear& w = strips.w;
  const int most = stays(w.type) ? kMaxTile : strips.isa.tile;
  const NearPanels near(strips, first, last, begin, end - begin);
  for (int64_t t = begin; t < end;) {
    const Tile tile = tile_at(t, begin, end, most);
    for (int64_t i = first; i < last; i++) {
      const Strip s = strips[i];
      if (strips.many)
        for (int n = 0; n < tile.n; n++) s.fetch(out + (tile.first + n) * stride);
      alignas(64) float values[kMaxTile * kMostRows];
      strip_times(strips, x, i, near, tile, values);
      for (int n = 0; n < tile.n; n++) {
        float* one = values + n * kMostRows;
        if (w.bias) s.add(w.bias, one);
        use(s, tile.first + n, one);
      }
    }
    t += tile.n;
  }
}

}  // namespace tmk
