// One panel of rows times some tokens, and how loops over panels and tokens are cut up.
#pragma once
#include "work.h"

namespace tmk {

constexpr int kMaxTile = 8, kMaxLanes = 16;

// Rows of panel `i`, tokens t0 … t1 - 1: `use(token, row, rows, values)` gets each token's.
template <class Use>
inline void panel_times(const Isa& isa, const Linear& w, const Activations& x, int64_t i,
                        int64_t t0, int64_t t1, Use use) {
  const int L = isa.lanes;
  const int64_t row = i * L;
  const int rows = w.rows - row < L ? int(w.rows - row) : L;
  alignas(64) float got[kMaxTile * kMaxLanes];
  const int bytes = plain_bytes(w.type);
  if (bytes) {
    const uint8_t* first = w.data + row * w.cols * bytes;
    for (int64_t t = t0; t < t1; t += kMaxTile) {
      const int n = t1 - t < kMaxTile ? int(t1 - t) : kMaxTile;
      isa.plain(w.type, first, rows, w.cols, x.x + t * x.x_stride, x.x_stride, n, got, L);
      for (int s = 0; s < n; s++) use(t + s, row, rows, got + s * L);
    }
    return;
  }
  const uint8_t* panel = w.data + i * panel_bytes(w, L);
  const int bits = affine_bits(w.type);
  for (int64_t t = t0; t < t1;) {
    // A tile that would stick out goes back; a few tokens are then computed twice.
    int n = 1;
    int64_t first = t;
    if (t1 - t >= isa.tile) {
      n = isa.tile;
    } else if (t1 - t > 1 && t1 - isa.tile >= 0) {
      n = isa.tile;
      first = t1 - isa.tile;
    }
    if (bits)
      isa.affine[bits][n > 1](panel, w, x, first, got, L);
    else
      isa.linear[w.type][n > 1](panel, x, first, got, L);
    for (int64_t s = t; s < first + n; s++) use(s, row, rows, got + (s - first) * L);
    t = first + n;
  }
}

// Tokens that go through a few panels together: their activations stay in the first-level cache.
inline int64_t token_block(const Isa& isa, int64_t T) { return T < isa.tile ? T : isa.tile; }

inline int64_t panels_of(const Isa& isa, const Linear& w) {
  return (w.rows + isa.lanes - 1) / isa.lanes;
}

inline int64_t panels_at_once(int64_t T) { return T >= 32 ? 8 : 4; }

}  // namespace tmk
