// Rows of a weight times tokens, and how loops over both are cut up.
#pragma once
#include <cstring>

#include "work.h"

namespace tmk {

constexpr int kMaxTile = 8;
constexpr int kMostRows = 16 * kStreams;  // of a strip
constexpr int64_t kNear = 256 << 10;  // bytes of weights that stay in a core's own cache
constexpr int kMany = 32;             // tokens from which that matters
constexpr int kOpening = 64;          // tokens from which opening panels takes less than it saves

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
    for (int r = 0; r < rows; r++) values[r] = from[row + r * apart];
  }
  void add(const float* other, float* values) const {
    for (int r = 0; r < rows; r++) values[r] += other[row + r * apart];
  }
  void add_to(float* out, float factor, const float* values) const {
    for (int r = 0; r < rows; r++) out[row + r * apart] += factor * values[r];
  }
};

// Rows of a strip; the last one may have fewer.
inline int strip_rows(const Isa& isa, const Linear& w) {
  if (w.type > kCrossed) return kCrossedRows;
  return stays(w.type) ? kStreams : kStreams * isa.lanes;
}

inline int64_t strips_of(const Isa& isa, const Linear& w) {
  const int rows = strip_rows(isa, w);
  return (w.rows + rows - 1) / rows;
}

inline Strip strip(const Isa& isa, const Linear& w, int64_t i) {
  const int64_t apart = rows_apart(w);
  if (w.type > kCrossed) {
    // Rows from all over a set, so that those that share bytes are in one strip.
    const int64_t strips = w.beside->height / kCrossedRows;
    return {i / strips + i % strips * apart, kCrossedRows, apart * strips};
  }
  if (stays(w.type) && i < w.rows / kStreams) return {i, kStreams, apart};
  const int rows = strip_rows(isa, w);
  const int64_t row = i * rows;
  return {row, w.rows - row < rows ? int(w.rows - row) : rows, 1};
}

inline const Tiles& tiles_of(const Isa& isa, const Linear& w) {
  const int bits = affine_bits(w.type);
  return bits ? isa.affine[bits] : isa.linear[w.type];
}

// Panel n of a strip.
inline const uint8_t* panel_of(const Isa& isa, const Linear& w, const Strip& s, int n) {
  const int64_t before = panels_before(w.rows, isa.lanes, s.row / isa.lanes + n);
  return w.data + before * panel_bytes(w, isa.lanes);
}

inline bool opens(const Isa& isa, const Linear& w, int64_t tokens) {
  return tokens >= kOpening && !stays(w.type) && tiles_of(isa, w).open;
}

// Strips first … last - 1, opened where tokens are many; none where there is no memory for them.
class OpenedStrips {
 public:
  OpenedStrips(const Isa& isa, const Linear& w, int64_t first, int64_t last, int64_t tokens)
      : first_(first) {
    if (!opens(isa, w, tokens)) return;
    const Tiles& tiles = tiles_of(isa, w);
    size_ = tiles.opened_bytes(w);
    data_ = opened_scratch.get(kStreams * size_ * (last - first));
    for (int64_t i = first; data_ && i < last; i++) {
      const Strip s = strip(isa, w, i);
      for (int n = 0; n * isa.lanes < s.rows; n++)
        tiles.open(w, panel_of(isa, w, s, n), data_ + (kStreams * (i - first) + n) * size_);
    }
  }
  // Panel n of strip i.
  const uint8_t* panel(int64_t i, int n) const { return data_ + (kStreams * (i - first_) + n) * size_; }
  explicit operator bool() const { return data_; }

 private:
  int64_t first_;
  size_t size_ = 0;
  uint8_t* data_ = nullptr;
};

// Strip i times the tokens of one tile (of any eight, where rows stay as stored), out [n, kMostRows].
inline void strip_times(const Isa& isa, const Linear& w, const Activations& x, int64_t i,
                        const Strip& s, const OpenedStrips& opened, Tile tile, float* out) {
  if (w.type == kRounded) {
    isa.rounded(w, s.row, s.rows, s.apart, x.brains + tile.first * w.cols, tile.n, out, kMostRows);
    return;
  }
  if (stays(w.type)) {
    const auto times = is_widened(w.type) ? isa.widened : isa.plain;
    times(w, s.row, s.rows, s.apart, x.x + tile.first * x.x_stride, x.x_stride, tile.n, out, kMostRows);
    return;
  }
  const bool full = opened && tile.n == isa.tile;
  const int count = (s.rows + isa.lanes - 1) / isa.lanes;
  const uint8_t* panels[kStreams];  // those that the weight lacks are the first again
  for (int n = 0; n < kStreams; n++) {
    const int which = n < count ? n : 0;
    panels[n] = full ? opened.panel(i, which) : panel_of(isa, w, s, which);
  }
  const Tiles& tiles = tiles_of(isa, w);
  const TileFn times = full ? tiles.opened : tiles.stored[__builtin_ctz(tile.n)];
  times(panels, count, w, x, tile.first, out, kMostRows);
}

// Strips that a thread takes at once. With many tokens each tile of them meets all these, so they
// should stay near; with few, long pieces are read faster, short ones let threads finish together.
inline int64_t strips_at_once(const Isa& isa, const Linear& w, int64_t T) {
  int64_t rows = w.rows / (16 * omp_get_num_threads()), most = 128;
  if (T >= kMany) {
    size_t panel = w.cols * (is_widened(w.type) ? 1 : plain_bytes(w.type)) * isa.lanes;
    if (!stays(w.type))
      panel = opens(isa, w, T) ? tiles_of(isa, w).opened_bytes(w) : panel_bytes(w, isa.lanes);
    rows = kNear * isa.lanes / int64_t(panel);
    most = 256;
  }
  rows = rows < 32 ? 32 : rows > most ? most : rows;
  const int64_t strips = rows / strip_rows(isa, w);
  return strips ? strips : 1;
}

// use(strip, token, values) for strips first … last - 1 and tokens begin … end - 1: rows times the
// token, and their biases.
template <class Use>
inline void products(const Isa& isa, const Linear& w, const Activations& x, int64_t first,
                     int64_t last, int64_t begin, int64_t end, Use use) {
  const int most = stays(w.type) ? kMaxTile : isa.tile;
  const OpenedStrips opened(isa, w, first, last, end - begin);
  for (int64_t t = begin; t < end;) {
    const Tile tile = tile_at(t, begin, end, most);
    for (int64_t i = first; i < last; i++) {
      const Strip s = strip(isa, w, i);
      alignas(64) float values[kMaxTile * kMostRows];
      strip_times(isa, w, x, i, s, opened, tile, values);
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
