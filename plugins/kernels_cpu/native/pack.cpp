// Panels of a whole weight, several threads at once.
#include "api.h"
#include "pack.inl"
#include "work.h"

namespace tmk {

size_t panel_bytes(int type, int lanes, int64_t cols) {
  switch (type) {
#define X(F) case k##F: return F::panel(lanes, cols);
    TMK_FORMATS(X)
#undef X
  }
  return 0;
}

size_t panel_bytes(const Linear& w, int lanes) {
  if (const int bits = affine_bits(w.type))
    return aligned(affine_header(w, lanes) * (w.cols / w.group) + size_t(4) * lanes * bits * (w.cols / 32));
  return panel_bytes(w.type, lanes, w.cols);
}

int super_columns(int type) {
  if (affine_bits(type)) return 32;
  if (type == kRounded) return kToBrain;
  switch (type) {
#define X(F) case k##F: return F::super;
    TMK_FORMATS(X)
#undef X
  }
  return 0;
}

int block_bytes(int type) {
  switch (type) {
#define X(F) case k##F: return Source<F>::bytes;
    TMK_FORMATS(X)
#undef X
  }
  return 0;
}

int block_columns(int type) {
  switch (type) {
#define X(F) case k##F: return Source<F>::cols;
    TMK_FORMATS(X)
#undef X
  }
  return 0;
}

int64_t pack_weight(const Isa& isa, int type, int64_t rows, int64_t cols, const uint8_t* src,
                    const int64_t* order, uint8_t* dst, int threads) {
  constexpr int kMaxLanes = 16;
  const int L = isa.lanes;
  const int64_t panels = (rows + L - 1) / L;
  const size_t row_bytes = size_t(cols / block_columns(type)) * block_bytes(type);
  const size_t size = panel_bytes(type, L, cols);
  const PackFn panel = isa.pack[type];
  int64_t bad = 0;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) reduction(+ : bad)
  for (int64_t i = 0; i < panels; i++) {
    const uint8_t* from[kMaxLanes];
    const int64_t first = i * L;
    const int n = rows - first < L ? int(rows - first) : L;
    for (int r = 0; r < n; r++) from[r] = src + (order ? order[first + r] : first + r) * row_bytes;
    bad += !panel(n, cols, from, dst + panels_before(rows, L, i) * size);
  }
  return bad ? kBadScale : kOk;
}

int64_t pack_affine(const Isa& isa, const Linear& w, const uint8_t* codes, const uint8_t* scales,
                    const uint8_t* minima, uint8_t* dst, int threads) {
  const int L = isa.lanes;
  const int64_t panels = (w.rows + L - 1) / L;
  const size_t size = panel_bytes(w, L);
  const PackAffineFn panel = isa.pack_affine[affine_bits(w.type)];
  int64_t bad = 0;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) reduction(+ : bad)
  for (int64_t i = 0; i < panels; i++) {
    const int64_t first = i * L;
    const int rows = w.rows - first < L ? int(w.rows - first) : L;
    bad += !panel(w, first, rows, codes, scales, minima, dst + panels_before(w.rows, L, i) * size);
  }
  return bad ? kBadScale : kOk;
}

}  // namespace tmk
