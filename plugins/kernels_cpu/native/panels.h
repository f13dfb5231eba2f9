// Rows of a weight times tokens, and how loops over both are cut up.
#pragma once
#include <cstring>

#include "work.h"

namespace tmk {

constexpr int kMaxTile = 8;
constexpr int64_t kNear = 256 << 10;  // bytes of weights that stay in a core's own cache

// kRows rows from number `row` on, neighbours but for those that share scales.
struct Strip {
  int64_t row;
  int rows;  // fewer at the end
  int64_t apart;

  void put(float* out, const float* values) const {
    if (apart == 1)
      std::memcpy(out + row, values, sizeof(float) * rows);
    else
      for (int r = 0; r < rows; r++) out[row + r * apart] = values[r];
  }
  void add(const float* other, float* values) const {
    for (int r = 0; r < rows; r++) values[r] += other[row + r * apart];
  }
};

inline int64_t strips_of(const Linear& w) { return (w.rows + kRows - 1) / kRows; }

inline Strip strip(const Linear& w, int64_t i) {
  if (const int64_t apart = rows_apart(w); apart > 1 || w.type > kCrossed) {
    // Those that read the same bytes follow each other.
    const int64_t set = w.beside->height / kRows, bits = w.type - kCrossed;
    const int64_t parts = 8 / bits < set ? 8 / bits : set, n = i % set;
    return {i / set + (n % parts * (set / parts) + n / parts) * kRows * apart, kRows, apart};
  }
  const int64_t row = i * kRows;
  return {row, w.rows - row < kRows ? int(w.rows - row) : kRows, 1};
}

// A strip times the tokens of one tile (of any eight, for float weights), out [n, kRows].
inline void strip_times(const Isa& isa, const Linear& w, const Activations& x, const Strip& s,
                        Tile tile, float* out) {
  if (const int bytes = plain_bytes(w.type)) {
    const uint8_t* first = w.data + s.row * w.cols * bytes;
    isa.plain(w.type, first, s.rows, w.cols, x.x + tile.first * x.x_stride, x.x_stride, tile.n, out,
              kRows);
    return;
  }
  if (is_widened(w.type))
    return isa.widened(w, s.row, s.rows, x.x + tile.first * x.x_stride, x.x_stride, tile.n, out, kRows);
  const size_t size = panel_bytes(w, isa.lanes);
  const uint8_t* panels[kRows];  // those that the weight lacks are the first again
  for (int n = 0; n < kRows / isa.lanes; n++)
    panels[n] = w.data + panels_before(w.rows, isa.lanes,
                                       s.row / isa.lanes + (n * isa.lanes < s.rows ? n : 0)) * size;
  const int which = __builtin_ctz(tile.n);
  if (const int bits = affine_bits(w.type))
    isa.affine[bits][which](panels, w, x, tile.first, out, kRows);
  else
    isa.linear[w.type][which](panels, x, tile.first, out, kRows);
}

// Strips that a thread takes at once. With many tokens each tile of them meets all these, so they
// should stay near; with few, long pieces are read faster, short ones let threads finish together.
inline int64_t strips_at_once(const Isa& isa, const Linear& w, int64_t T) {
  if (T < 32) {
    const int64_t few = strips_of(w) / (16 * omp_get_num_threads());
    return few < 2 ? 2 : few > 8 ? 8 : few;
  }
  const int bytes = is_widened(w.type) ? 1 : plain_bytes(w.type);
  const int64_t own =
      bytes ? kRows * w.cols * bytes : kRows / isa.lanes * int64_t(panel_bytes(w, isa.lanes));
  return own * 16 <= kNear ? 16 : own * 2 >= kNear ? 2 : kNear / own;
}

// use(strip, tile) for strips first … last - 1 and every tile of tokens begin … end - 1.
template <class Use>
inline void walk(const Isa& isa, const Linear& w, int64_t first, int64_t last, int64_t begin,
                 int64_t end, Use use) {
  const int most = takes_floats(w.type) ? kMaxTile : isa.tile;
  for (int64_t t = begin; t < end;) {
    const Tile tile = tile_at(t, begin, end, most);
    for (int64_t i = first; i < last; i++) use(strip(w, i), tile);
    t += tile.n;
  }
}

}  // namespace tmk
