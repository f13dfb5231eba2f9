// Types whose blocks hold 32 weights, eight blocks at a time.
#pragma once
#include "encode.h"
#include "groups.h"

namespace {

// Up to eight neighbouring blocks of a row.
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
  const Scale best = fit.search(-127.f, -28.f, 28.f, 8.f);
  float d[8];
  for (int b = 0; b < 8; b++) d[b] = halved(best.a[b]);
  uint8_t q[kBlock];
  groups.table_codes(d, q);
  for (int b = 0; b < in.count; b++) {
    store_half(out + 18 * b, d[b]);
    put_nibbles(out + 18 * b + 2, q + 32 * b, 32, 16);
  }
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

}  // namespace
