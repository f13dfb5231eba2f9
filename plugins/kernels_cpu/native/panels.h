// Rows of a weight times tokens, and how loops over both are cut up.
#pragma once
#include <cstring>

#include "work.h"

namespace tmk {

constexpr int kMaxTile = 8;
constexpr int kMostRows = 16 * kStreams;  // of a strip
constexpr int64_t kNear = 256 << 10;  // bytes of weights that stay in a core's own cache

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
  return takes_floats(w.type) ? kStreams : kStreams * isa.lanes;
}

inline int64_t strips_of(const Isa& isa, const Linear& w) {
  const int rows = strip_rows(isa, w);
  return (w.rows + rows - 1) / rows;
}

inline Strip strip(const Isa& isa, const Linear& w, int64_t i) {
  const int64_t apart = rows_apart(w);
  if (w.type > kCrossed) {
    // Those that read the same bytes follow each other.
    const int64_t set = w.beside->height / kCrossedRows, bits = w.type - kCrossed;
    const int64_t parts = 8 / bits < set ? 8 / bits : set, n = i % set;
    const int64_t place = n % parts * (set / parts) + n / parts;
    return {i / set + place * kCrossedRows * apart, kCrossedRows, apart};
  }
  if (takes_floats(w.type) && i < w.rows / kStreams) return {i, kStreams, apart};
  const int rows = strip_rows(isa, w);
  const int64_t row = i * rows;
  return {row, w.rows - row < rows ? int(w.rows - row) : rows, 1};
}

// A strip times the tokens of one tile (of any eight, where they are not rounded), out [n, kMostRows].
inline void strip_times(const Isa& isa, const Linear& w, const Activations& x, const Strip& s,
                        Tile tile, float* out) {
  if (takes_floats(w.type)) {
    const auto times = is_widened(w.type) ? isa.widened : isa.plain;
    times(w, s.row, s.rows, s.apart, x.x + tile.first * x.x_stride, x.x_stride, tile.n, out, kMostRows);
    return;
  }
  const size_t size = panel_bytes(w, isa.lanes);
  const int count = (s.rows + isa.lanes - 1) / isa.lanes;
  const uint8_t* panels[kStreams];  // those that the weight lacks are the first again
  for (int n = 0; n < kStreams; n++) {
    const int64_t panel = s.row / isa.lanes + (n < count ? n : 0);
    panels[n] = w.data + panels_before(w.rows, isa.lanes, panel) * size;
  }
  const int which = __builtin_ctz(tile.n);
  if (const int bits = affine_bits(w.type))
    isa.affine[bits][which](panels, count, w, x, tile.first, out, kMostRows);
  else
    isa.linear[w.type][which](panels, count, x, tile.first, out, kMostRows);
}

// Strips that a thread takes at once. With many tokens each tile of them meets all these, so they
// should stay near; with few, long pieces are read faster, short ones let threads finish together.
inline int64_t strips_at_once(const Isa& isa, const Linear& w, int64_t T) {
  int64_t rows = w.rows / (16 * omp_get_num_threads()), most = 128;
  if (T >= 32) {
    const int bytes = is_widened(w.type) ? 1 : plain_bytes(w.type);
    rows = kNear / (bytes ? w.cols * bytes : int64_t(panel_bytes(w, isa.lanes)) / isa.lanes);
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
  const int most = takes_floats(w.type) ? kMaxTile : isa.tile;
  for (int64_t t = begin; t < end;) {
    const Tile tile = tile_at(t, begin, end, most);
    for (int64_t i = first; i < last; i++) {
      const Strip s = strip(isa, w, i);
      alignas(64) float values[kMaxTile * kMostRows];
      strip_times(isa, w, x, s, tile, values);
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
