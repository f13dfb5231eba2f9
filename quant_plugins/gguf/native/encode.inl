// Encoders of the ggml block types. Layouts are those of ggml-common.h; the fits are in fit.h.
//
// Without importances a large weight counts more than a small one: |x| plus the root mean square
// of its group. With them a weight counts by its column times √(2·mean(x²) + x²), in Q6_K by its
// column alone.
#include <omp.h>

#include "encode.h"
#include "groups.h"
#include "wide.h"

namespace {

// K-quants with offsets -----------------------------------------------------------------------

struct AffineBlock {
  float d, dmin;
  int scale[16], min[16];
  uint8_t q[kBlock];
};

struct Grid {
  float from, to, step;
};

// Groups of N codes 0 … levels; scales and offsets are codes 0 … scale_levels.
template <int N>
void fit_block(const float* x, const float* importance, float spread, int levels, int scale_levels,
               Grid grid, AffineBlock& block) {
  using G = Groups<N>;
  const G groups(x, importance, spread, false);
  float a[G::kCount], weight[G::kCount], m[G::kCount], sw[G::kCount];
  V start[G::kBatches];
  for (int b = 0; b < G::kBatches; b++) {
    const AffineFit<N> fit(groups.x[b], groups.w[b], levels);
    const Affine best = fit.search(grid.from, grid.to, grid.step);
    start[b] = best.b;
    store(a + b * kLanes, best.a);
    store(weight + b * kLanes, best.qq);
    store(sw + b * kLanes, fit.sw);
  }
  block.d = fit_scales(a, weight, G::kCount, 0, scale_levels, scale_levels, block.scale);
  for (int i = 0; i < G::kCount; i++) a[i] = block.d * float(block.scale[i]);
  // Offsets are chosen for the scales as they are now.
  for (int b = 0; b < G::kBatches; b++) {
    const AffineFit<N> fit(groups.x[b], groups.w[b], levels);
    store(m + b * kLanes, fit.offset(load(a + b * kLanes), start[b]));
  }
  block.dmin = fit_scales(m, sw, G::kCount, 0, scale_levels, scale_levels, block.min);
  for (int i = 0; i < G::kCount; i++) m[i] = block.dmin * float(block.min[i]);
  groups.codes(a, m, 0.f, float(levels), 0, block.q);
}

void q2_k(const float* x, const float* importance, uint8_t* out) {
  AffineBlock b;
  fit_block<16>(x, importance, 1.f, 3, 15, {-0.9f, 1.2f, 0.1f}, b);
  for (int i = 0; i < 16; i++) out[i] = uint8_t(b.scale[i] | b.min[i] << 4);
  put_pairs(out + 16, b.q, 0);
  store_half(out + 80, b.d);
  store_half(out + 82, b.dmin);
}

void q4_k(const float* x, const float* importance, uint8_t* out) {
  AffineBlock b;
  fit_block<32>(x, importance, 2.f, 15, 63, {-1.f, 1.f, 0.1f}, b);
  store_half(out, b.d);
  store_half(out + 2, b.dmin);
  put_scales_and_mins(out + 4, b.scale, b.min);
  put_nibbles(out + 16, b.q, kBlock, 32);
}

void q5_k(const float* x, const float* importance, uint8_t* out) {
  AffineBlock b;
  fit_block<32>(x, importance, 2.f, 31, 63, {-1.f, 1.f, 0.1f}, b);
  store_half(out, b.d);
  store_half(out + 2, b.dmin);
  put_scales_and_mins(out + 4, b.scale, b.min);
  put_bits(out + 16, b.q, 4);
  put_nibbles(out + 48, b.q, kBlock, 32);
}

// K-quants without offsets ------------------------------------------------------------------------

struct ScaledBlock {
  float d;
  int scale[16];
  uint8_t q[kBlock];
};

// Groups of 16 codes -half … half - 1; scales are codes -scale_half … scale_half - 1.
void fit_block(const float* x, const float* importance, bool columns_only, int half, int scale_half,
               Grid grid, ScaledBlock& block) {
  using G = Groups<16>;
  const G groups(x, importance, 2.f, columns_only);
  const Integers integers{float(-half), float(half - 1)};
  float a[G::kCount], weight[G::kCount];
  for (int b = 0; b < G::kBatches; b++) {
    const ScaleFit<16, Integers> fit{groups.x[b], groups.w[b], integers};
    const Scale best = fit.search(float(-half), grid.from, grid.to, grid.step);
    store(a + b * kLanes, best.a);
    store(weight + b * kLanes, best.qq);
  }
  block.d = fit_scales(a, weight, G::kCount, -scale_half, scale_half - 1, -scale_half,
                       block.scale);
  for (int i = 0; i < G::kCount; i++) a[i] = block.d * float(block.scale[i]);
  groups.codes(a, nullptr, float(-half), float(half - 1), half, block.q);
}

void q3_k(const float* x, const float* importance, uint8_t* out) {
  ScaledBlock b;
  fit_block(x, importance, false, 4, 32, {-0.9f, 1.2f, 0.1f}, b);
  put_bits(out, b.q, 2);
  put_pairs(out + 32, b.q, 0);
  uint8_t* scales = out + 96;
  for (int i = 0; i < 12; i++) scales[i] = 0;
  for (int i = 0; i < 16; i++) {
    const int s = b.scale[i] + 32;
    scales[i % 8] |= uint8_t((s & 15) << (i < 8 ? 0 : 4));
    scales[8 + i % 4] |= uint8_t((s >> 4) << (2 * (i / 4)));
  }
  store_half(out + 108, b.d);
}

void q6_k(const float* x, const float* importance, uint8_t* out) {
  ScaledBlock b;
  fit_block(x, importance, true, 32, 128, {-0.9f, 0.9f, 0.1f}, b);
  put_nibbles(out, b.q, kBlock, 64);
  put_pairs(out + 128, b.q, 4);
  for (int i = 0; i < 16; i++) out[192 + i] = uint8_t(int8_t(b.scale[i]));
  store_half(out + 208, b.d);
}

void q8_k(const float* x, const float*, uint8_t* out) {
  float largest = 0.f;
  for (int i = 0; i < kBlock; i++)
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  const float d = largest / -127.f, inverse = largest == 0.f ? 0.f : -127.f / largest;
  std::memcpy(out, &d, 4);
  int8_t* q = reinterpret_cast<int8_t*>(out + 4);
  for (int g = 0; g < 16; g++) {
    int16_t sum = 0;
    for (int i = 16 * g; i < 16 * (g + 1); i++) {
      const float v = std::nearbyint(x[i] * inverse);
      q[i] = int8_t(v > 127.f ? 127.f : v < -127.f ? -127.f : v);
      sum = int16_t(sum + q[i]);
    }
    std::memcpy(out + 260 + 2 * g, &sum, 2);
  }
}

// The table of IQ4 -------------------------------------------------------------------------------

void iq4_xs(const float* x, const float* importance, uint8_t* out) {
  using G = Groups<32>;
  const G groups(x, importance, 2.f, false);
  const ScaleFit<32, Iq4Values> fit{groups.x[0], groups.w[0], Iq4Values{}};
  const Scale best = fit.search(-127.f, -28.f, 28.f, 8.f);
  float a[8], weight[8];
  store(a, best.a);
  store(weight, best.qq);
  int scale[8];
  const float d = fit_scales(a, weight, 8, -32, 31, -32, scale);
  store_half(out, d);
  uint16_t high = 0;
  for (int i = 0; i < 4; i++) out[4 + i] = 0;
  for (int g = 0; g < 8; g++) {
    const int s = scale[g] + 32;
    out[4 + g / 2] |= uint8_t((s & 15) << (4 * (g % 2)));
    high = uint16_t(high | (s >> 4) << (2 * g));
    a[g] = d * float(scale[g]);
  }
  std::memcpy(out + 2, &high, 2);
  uint8_t q[kBlock];
  groups.table_codes(a, q);
  put_nibbles(out + 8, q, kBlock, 16);
}

// ------------------------------------------------------------------------------------------------

typedef void (*BlockEncoder)(const float*, const float*, uint8_t*);

BlockEncoder block_encoder(int type, int& size) {
  switch (type) {
    case tgq::kQ2_K: size = 84; return q2_k;
    case tgq::kQ3_K: size = 110; return q3_k;
    case tgq::kQ4_K: size = 144; return q4_k;
    case tgq::kQ5_K: size = 176; return q5_k;
    case tgq::kQ6_K: size = 210; return q6_k;
    case tgq::kQ8_K: size = 292; return q8_k;
    case tgq::kIQ4_XS: size = 136; return iq4_xs;
  }
  return nullptr;
}

bool finite(const float* x, int64_t count) {
  float sum = 0.f;
  for (int64_t i = 0; i < count; i++) sum += x[i] * 0.f;
  return sum == 0.f;
}

}  // namespace

namespace tgq {

int64_t ENCODE(const Job& job) {
  int size = 0;
  const BlockEncoder encoder = block_encoder(job.type, size);
  const int wide = wide_size(job.type);
  if (!encoder && !wide) return kUnknown;
  if (job.cols % (encoder ? kBlock : 32)) return kBadShape;
  const int64_t row_bytes = encoder ? job.cols / kBlock * size : job.cols / 32 * wide;
  bool good = true;
#pragma omp parallel for num_threads(job.threads) schedule(dynamic, 4) reduction(&& : good)
  for (int64_t row = 0; row < job.rows; row++) {
    const float* x = job.x + row * job.cols;
    uint8_t* out = job.out + row * row_bytes;
    if (!finite(x, job.cols)) {
      good = false;
      continue;
    }
    for (int64_t c = 0; c < job.cols; c += kBlock) {
      const float* importance = job.importance ? job.importance + c : nullptr;
      if (encoder) {
        encoder(x + c, importance, out + c / kBlock * size);
      } else {
        const int64_t left = (job.cols - c) / 32;
        const Wide in{int(left < 8 ? left : 8), x + c, importance};
        encode_wide(job.type, in, out + c / 32 * wide);
      }
    }
  }
  return good ? kOk : kNotFinite;
}

}  // namespace tgq
