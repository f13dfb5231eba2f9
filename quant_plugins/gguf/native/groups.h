// 256 weights as groups side by side, and the bit fields that codes are put into.
#pragma once
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
        put(__builtin_convertvector(q + all(float(add)), M), b, i, out);
      }
    }
  }

  // The same for the table of IQ4.
  void table_codes(const float* scale, uint8_t* out) const {
    for (int b = 0; b < kBatches; b++) {
      const V inverse = safe_inverse(load(scale + b * kLanes));
      for (int i = 0; i < N; i++) put(Iq4Values{}.index(x[b][i] * inverse), b, i, out);
    }
  }

  static void put(M codes, int batch, int i, uint8_t* out) {
    for (int lane = 0; lane < kLanes; lane++)
      out[(batch * kLanes + lane) * N + i] = uint8_t(codes[lane]);
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

}  // namespace
