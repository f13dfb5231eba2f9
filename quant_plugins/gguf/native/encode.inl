// Encoders of the ggml block types. Layouts are those of ggml-common.h; the fits are in fit.h.
//
// Without importances a large weight counts more than a small one: |x| plus the root mean square
// of its group. With them a weight counts by its column times √(2·mean(x²) + x²), in Q6_K by its
// column alone.
#include <omp.h>

#include "encode.h"
#include "fit.h"

namespace {

constexpr int kBlock = 256;

// 256 weights with the importance of each, as groups of N side by side.
template <int N>
struct Groups {
  static constexpr int kCount = kBlock / N, kBatches = kCount / kLanes;
  V x[kBatches][N], w[kBatches][N];

  Groups(const float* values, const float* importance, float spread, bool columns_only) {
    float mean = 0.f;
    for (int i = 0; i < kBlock; i++) mean += values[i] * values[i];
    mean /= kBlock;
    for (int b = 0; b < kBatches; b++) {
      transpose(values + b * kLanes * N, x[b]);
      if (importance) {
        transpose(importance + b * kLanes * N, w[b]);
        if (!columns_only)
          for (int i = 0; i < N; i++)
            w[b][i] *= square_root(mad(x[b][i], x[b][i], all(spread * mean)));
      } else {
        V rms = all(0.f);
        for (int i = 0; i < N; i++) rms = mad(x[b][i], x[b][i], rms);
        rms = square_root(rms * all(1.f / N));
        for (int i = 0; i < N; i++) w[b][i] = vabs(x[b][i]) + rms;
      }
    }
  }

  static void transpose(const float* from, V* to) {
    float* lanes = reinterpret_cast<float*>(to);
    for (int lane = 0; lane < kLanes; lane++)
      for (int i = 0; i < N; i++) lanes[i * kLanes + lane] = from[lane * N + i];
  }

  // Codes in the order of the block, after the scales have been settled.
  void codes(const float* scale, const float* offset, float low, float high, int add,
             uint8_t* out) const {
    for (int b = 0; b < kBatches; b++) {
      const V inverse = safe_inverse(load(scale + b * kLanes));
      const V m = offset ? load(offset + b * kLanes) : all(0.f);
      for (int i = 0; i < N; i++) {
        const V q = clamp(nearest((x[b][i] + m) * inverse), low, high);
        int32_t code[kLanes];
        store_integers(code, q + all(float(add)));
        for (int lane = 0; lane < kLanes; lane++)
          out[(b * kLanes + lane) * N + i] = uint8_t(code[lane]);
      }
    }
  }
};

// Bit fields ----------------------------------------------------------------------------------

// Four bits of `group` codes, then of the next `group` above them, in each byte.
void put_nibbles(uint8_t* out, const uint8_t* q, int count, int group) {
  for (int start = 0; start < count; start += 2 * group)
    for (int i = 0; i < group; i++)
      *out++ = uint8_t((q[start + i] & 15) | (q[start + group + i] & 15) << 4);
}

// Two bits of each code, from bit `from` up: 32 bytes hold 4 · 32 codes.
void put_pairs(uint8_t* out, const uint8_t* q, int from) {
  for (int start = 0; start < kBlock; start += 128)
    for (int i = 0; i < 32; i++) {
      uint8_t byte = 0;
      for (int k = 0; k < 4; k++) byte |= uint8_t(((q[start + 32 * k + i] >> from) & 3) << (2 * k));
      *out++ = byte;
    }
}

// Bit `from` of each code: 32 bytes hold 8 · 32 codes.
void put_bits(uint8_t* out, const uint8_t* q, int from) {
  for (int i = 0; i < 32; i++) {
    uint8_t byte = 0;
    for (int k = 0; k < 8; k++) byte |= uint8_t(((q[32 * k + i] >> from) & 1) << k);
    out[i] = byte;
  }
}

// Eight 6-bit scales and eight 6-bit offsets in 12 bytes (Q4_K, Q5_K).
void put_scales_and_mins(uint8_t* out, const int* scale, const int* min) {
  for (int i = 0; i < 4; i++) {
    out[i] = uint8_t(scale[i] | (scale[i + 4] >> 4) << 6);
    out[i + 4] = uint8_t(min[i] | (min[i + 4] >> 4) << 6);
    out[i + 8] = uint8_t((scale[i + 4] & 15) | (min[i + 4] & 15) << 4);
  }
}

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
  block.d = fit_scales(a, weight, G::kCount, 0, scale_levels, scale_levels,
                       block.scale);
  for (int i = 0; i < G::kCount; i++) a[i] = block.d * float(block.scale[i]);
  // Offsets are chosen for the scales as they are now.
  for (int b = 0; b < G::kBatches; b++) {
    const AffineFit<N> fit(groups.x[b], groups.w[b], levels);
    store(m + b * kLanes, fit.offset(load(a + b * kLanes), start[b]));
  }
  block.dmin = fit_scales(m, sw, G::kCount, 0, scale_levels, scale_levels,
                          block.min);
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
  block.d = fit_scales(a, weight, G::kCount, -scale_half, scale_half - 1, -scale_half, block.scale);
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

uint8_t iq4_code(float x) {
  int k = 0;
  while (k < 15 && x > (kIq4[k] + kIq4[k + 1]) * 0.5f) k++;
  return uint8_t(k);
}

void iq4_xs(const float* x, const float* importance, uint8_t* out) {
  using G = Groups<32>;
  const G groups(x, importance, 2.f, false);
  const ScaleFit<32, Iq4Values> fit{groups.x[0], groups.w[0], Iq4Values{}};
  const Scale best = fit.search(-127.f, -28.f, 28.f, 4.f);
  float a[8], weight[8];
  store(a, best.a);
  store(weight, best.qq);
  int scale[8];
  const float d = fit_scales(a, weight, 8, -32, 31, -32, scale);
  store_half(out, d);
  uint16_t high = 0;
  for (int i = 0; i < 4; i++) out[4 + i] = 0;
  uint8_t q[kBlock];
  for (int g = 0; g < 8; g++) {
    const int s = scale[g] + 32;
    out[4 + g / 2] |= uint8_t((s & 15) << (4 * (g % 2)));
    high = uint16_t(high | (s >> 4) << (2 * g));
    const float own = d * float(scale[g]), inverse = own == 0.f ? 0.f : 1.f / own;
    for (int i = 0; i < 32; i++) q[32 * g + i] = iq4_code(x[32 * g + i] * inverse);
  }
  std::memcpy(out + 2, &high, 2);
  put_nibbles(out + 8, q, kBlock, 16);
}

// Blocks of 32, eight at a time ------------------------------------------------------------------

// The weights' own search, for which there must be importances or a table.
struct Wide {
  int count;  // blocks that are there; the others are zeros
  const float *x, *importance;

  void values(float* to) const {
    for (int i = 0; i < kBlock; i++) to[i] = i < 32 * count ? x[i] : 0.f;
  }
  void importances(float* to) const {
    for (int i = 0; i < kBlock; i++) to[i] = i < 32 * count ? importance[i] : 0.f;
  }
};

void put_high_bits(uint8_t* out, const uint8_t* q) {
  uint32_t word = 0;
  for (int i = 0; i < 32; i++) word |= uint32_t(q[i] >> 4 & 1) << i;
  std::memcpy(out, &word, 4);
}

// One block as ggml's own reference does it, in the same order of operations.
void plain_scaled(const float* x, int half, uint8_t* q, float& d) {
  float largest = 0.f;
  for (int i = 0; i < 32; i++)
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  d = largest / float(-half);
  const float inverse = d == 0.f ? 0.f : 1.f / d;
  for (int i = 0; i < 32; i++) {
    const int v = int(x[i] * inverse + (float(half) + 0.5f));
    q[i] = uint8_t(v < 0 ? 0 : v > 2 * half - 1 ? 2 * half - 1 : v);
  }
}

void plain_affine(const float* x, int levels, uint8_t* q, float& d, float& low) {
  float high = x[0];
  low = x[0];
  for (int i = 1; i < 32; i++) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  d = (high - low) / float(levels);
  const float inverse = d == 0.f ? 0.f : 1.f / d;
  for (int i = 0; i < 32; i++) {
    const int v = int((x[i] - low) * inverse + 0.5f);
    q[i] = uint8_t(v > levels ? levels : v);
  }
}

void put_scaled(uint8_t* out, bool five, float d, const uint8_t* q) {
  store_half(out, d);
  if (five) put_high_bits(out + 2, q);
  put_nibbles(out + (five ? 6 : 2), q, 32, 16);
}

void put_affine(uint8_t* out, bool five, float d, float low, const uint8_t* q) {
  store_half(out, d);
  store_half(out + 2, low);
  if (five) put_high_bits(out + 4, q);
  put_nibbles(out + (five ? 8 : 4), q, 32, 16);
}

void wide_scaled(const Wide& in, bool five, uint8_t* out) {
  const int half = five ? 16 : 8, size = five ? 22 : 18;
  uint8_t q[kBlock];
  if (!in.importance) {
    for (int b = 0; b < in.count; b++) {
      float d;
      plain_scaled(in.x + 32 * b, half, q, d);
      put_scaled(out + b * size, five, d, q);
    }
    return;
  }
  float x[kBlock], importance[kBlock], d[8];
  in.values(x);
  in.importances(importance);
  const Groups<32> groups(x, importance, 1.f, false);
  const Integers integers{float(-half), float(half - 1)};
  const ScaleFit<32, Integers> fit{groups.x[0], groups.w[0], integers};
  const Scale best = fit.search(float(-half), -0.9f, 1.2f, 0.1f);
  for (int b = 0; b < 8; b++) d[b] = halved(best.a[b]);
  groups.codes(d, nullptr, float(-half), float(half - 1), half, q);
  for (int b = 0; b < in.count; b++) put_scaled(out + b * size, five, d[b], q + 32 * b);
}

void wide_affine(const Wide& in, bool five, uint8_t* out) {
  const int levels = five ? 31 : 15, size = five ? 24 : 20;
  uint8_t q[kBlock];
  if (!in.importance) {
    for (int b = 0; b < in.count; b++) {
      float d, low;
      plain_affine(in.x + 32 * b, levels, q, d, low);
      put_affine(out + b * size, five, d, low, q);
    }
    return;
  }
  float x[kBlock], importance[kBlock], d[8], m[8];
  in.values(x);
  in.importances(importance);
  // Here the offset may have either sign: groups are moved below zero first.
  float top[8];
  for (int b = 0; b < 8; b++) {
    top[b] = 0.f;
    for (int i = 0; i < 32; i++) top[b] = std::fmax(top[b], x[32 * b + i]);
  }
  Groups<32> groups(x, importance, 1.f, false);
  const V shift = load(top);
  for (int i = 0; i < 32; i++) groups.x[0][i] -= shift;
  const AffineFit<32> fit(groups.x[0], groups.w[0], levels);
  const Affine best = fit.search(-0.9f, 1.2f, 0.1f);
  for (int i = 0; i < 32; i++) groups.x[0][i] += shift;
  for (int b = 0; b < 8; b++) {
    d[b] = halved(best.a[b]);
    m[b] = -halved(best.b[b] + top[b]);
  }
  groups.codes(d, m, 0.f, float(levels), 0, q);
  for (int b = 0; b < in.count; b++) put_affine(out + b * size, five, d[b], -m[b], q + 32 * b);
}

void wide_eight(const Wide& in, bool with_sum, uint8_t* out) {
  for (int b = 0; b < in.count; b++, out += with_sum ? 36 : 34) {
    const float* x = in.x + 32 * b;
    float largest = 0.f;
    for (int i = 0; i < 32; i++) largest = std::fmax(largest, std::fabs(x[i]));
    const float d = largest / 127.f, inverse = d == 0.f ? 0.f : 1.f / d;
    int8_t* q = reinterpret_cast<int8_t*>(out + (with_sum ? 4 : 2));
    int sum = 0;
    for (int i = 0; i < 32; i++) {
      const float v = x[i] * inverse;
      q[i] = int8_t(v < 0.f ? -std::floor(0.5f - v) : std::floor(v + 0.5f));
      sum += q[i];
    }
    store_half(out, d);
    if (with_sum) store_half(out + 2, d * float(sum));
  }
}

void wide_iq4(const Wide& in, uint8_t* out) {
  float x[kBlock], importance[kBlock];
  in.values(x);
  if (in.importance) in.importances(importance);
  const Groups<32> groups(x, in.importance ? importance : nullptr, 1.f, false);
  const ScaleFit<32, Iq4Values> fit{groups.x[0], groups.w[0], Iq4Values{}};
  const Scale best = fit.search(-127.f, -28.f, 28.f, 4.f);
  for (int b = 0; b < in.count; b++) {
    const float d = halved(best.a[b]), inverse = d == 0.f ? 0.f : 1.f / d;
    uint8_t q[32];
    for (int i = 0; i < 32; i++) q[i] = iq4_code(x[32 * b + i] * inverse);
    store_half(out + 18 * b, d);
    put_nibbles(out + 18 * b + 2, q, 32, 16);
  }
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

int wide_size(int type) {
  switch (type) {
    case tgq::kQ4_0: return 18;
    case tgq::kQ4_1: return 20;
    case tgq::kQ5_0: return 22;
    case tgq::kQ5_1: return 24;
    case tgq::kQ8_0: return 34;
    case tgq::kQ8_1: return 36;
    case tgq::kIQ4_NL: return 18;
  }
  return 0;
}

void encode_wide(int type, const Wide& in, uint8_t* out) {
  switch (type) {
    case tgq::kQ4_0: return wide_scaled(in, false, out);
    case tgq::kQ5_0: return wide_scaled(in, true, out);
    case tgq::kQ4_1: return wide_affine(in, false, out);
    case tgq::kQ5_1: return wide_affine(in, true, out);
    case tgq::kQ8_0: return wide_eight(in, false, out);
    case tgq::kQ8_1: return wide_eight(in, true, out);
    case tgq::kIQ4_NL: return wide_iq4(in, out);
  }
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
