// Rows of a weight times tokens, and how loops over both are cut up.
#pragma once
#include <cstring>

#include "work.h"

namespace tmk {

constexpr int kMaxTile = 8;
constexpr int kMostRows = 16 * kStreams;  // of a strip
constexpr int kStayingRows = 32;          // of one whose rows stay as stored and meet many tokens
constexpr int64_t kNear = 256 << 10;  // bytes of weights that stay in a core's own cache
constexpr int kMany = 32;             // tokens from which that matters
constexpr int kOpening = 64;          // the same, where they may be opened for that

// Rows that are computed together: number `row` and those that follow it at a distance.
struct Strip {
  int64_t row;
  int rows;
  int64_t apart;

  void put(float* out, const float* values) const {
    if (apart == 1)
      std::memcpy(out + row, values, sizeof(float) * rows);
    else
      for (int r = 0; r < rows; r++) out[row + r * apart] = values[r];
  }
  void get(const float* from, float* values) const {
    if (apart == 1)
      std::memcpy(values, from + row, sizeof(float) * rows);
    else
      for (int r = 0; r < rows; r++) values[r] = from[row + r * apart];
  }
  void add(const float* other, float* values) const {
    if (apart == 1)
      for (int r = 0; r < rows; r++) values[r] += other[row + r];
    else
      for (int r = 0; r < rows; r++) values[r] += other[row + r * apart];
  }
  void fetch(const float* out) const {
    for (int r = 0; r < rows; r += 16) __builtin_prefetch(out + row + r, 1);
  }
  void add_to(float* out, float factor, const float* values) const {
    for (int r = 0; r < rows; r++) out[row + r * apart] += factor * values[r];
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
      : isa(isa), w(w), many(tokens >= kMany), rows_(rows_of_one()),
        count((w.rows + rows_ - 1) / rows_), at_once(most_at_once(tokens)) {}

  Strip operator[](int64_t i) const {
    const int64_t apart = rows_apart(w);
    if (w.type > kCrossed) {
      // Rows from all over a set, so that those that share bytes are in one strip.
      const int64_t strips = w.beside->height / kCrossedRows;
      return {i / strips + i % strips * apart, kCrossedRows, apart * strips};
    }
    if (stays(w.type) && !many && i < w.rows / kStreams) return {i, kStreams, apart};
    const int64_t row = i * rows_;
    return {row, w.rows - row < rows_ ? int(w.rows - row) : rows_, 1};
  }

  const Isa& isa;
  const Linear& w;
  const bool many;

 private:
  const int rows_;  // of a strip; the last one may have fewer

  int rows_of_one() const {
    if (w.type > kCrossed) return kCrossedRows;
    if (stays(w.type)) return many ? kStayingRows : kStreams;
    return kStreams * isa.lanes;
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
  const int64_t before = panels_before(w.rows, isa.lanes, s.row / isa.lanes + n);
  return w.data + before * panel_bytes(w, isa.lanes);
}

// Panels of strips first … last - 1, opened where their type is and tokens are many. Where there is no
// memory for that they are taken like those of few tokens.
class NearPanels {
 public:
  NearPanels(const Strips& strips, int64_t first, int64_t last, int64_t tokens)
      : strips_(strips), first_(first) {
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
  // What a full tile is multiplied with; null where tokens are few.
  TileFn times() const { return times_; }
  // Panel n of strip i.
  const uint8_t* operator()(int64_t i, int n) const {
    if (data_) return data_ + (kStreams * (i - first_) + n) * size_;
    return panel_of(strips_.isa, strips_.w, strips_[i], n);
  }

 private:
  const Strips& strips_;
  int64_t first_;
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
    isa.rounded(w, s.row, s.rows, s.apart, x.brains + tile.first * brain_stride(w.cols), tile.n, out, kMostRows);
    return;
  }
  if (stays(w.type)) {
    const auto times = is_widened(w.type) ? isa.widened : isa.plain;
    times(w, s.row, s.rows, s.apart, x.x + tile.first * x.x_stride, x.x_stride, tile.n, out, kMostRows);
    return;
  }
  const bool full = near.times() && tile.n == isa.tile;
  const int count = (s.rows + isa.lanes - 1) / isa.lanes;
  const uint8_t* panels[kStreams];  // those that the weight lacks are the first again
  for (int n = 0; n < kStreams; n++) {
    const int which = n < count ? n : 0;
    panels[n] = full ? near(i, which) : panel_of(isa, w, s, which);
  }
  const TileFn times = full ? near.times() : tiles_of(isa, w).stored[__builtin_ctz(tile.n)];
  times(panels, count, w, x, tile.first, out, kMostRows);
}

// use(strip, token, values) for strips first … last - 1 and tokens begin … end - 1: rows times the
// token, and their biases. What is used for `out`, of `stride` numbers a token, is asked for meanwhile.
template <class Use>
inline void products(const Strips& strips, const Activations& x, int64_t first, int64_t last,
                     int64_t begin, int64_t end, const float* out, int64_t stride, Use use) {
  const Linear& w = strips.w;
  const int most = stays(w.type) ? kMaxTile : strips.isa.tile;
  const NearPanels near(strips, first, last, end - begin);
  for (int64_t t = begin; t < end;) {
    const Tile tile = tile_at(t, begin, end, most);
    for (int64_t i = first; i < last; i++) {
      const Strip s = strips[i];
      if (strips.many && s.apart == 1)
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
