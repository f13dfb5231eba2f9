// Panels back into what they were made of, row by row: ggml blocks, or streams of codes with scales
// and minima. The inverse of pack.inl and affine.inl, bit for bit.
#include <cmath>
#include <cstring>

#include "api.h"
#include "pack.inl"
#include "work.h"

namespace tmk {
namespace {

// The inverse of `planes`.
template <class F>
inline void codes_of(const uint32_t* o, uint8_t* q) {
  uint32_t v[8];
  int n = 0;
  for (int i = 0; i < 8; i++) {
    if (F::base == 8)
      v[i] = o[i];
    else if (F::base == 4)
      v[i] = o[i / 2] >> (i % 2 * 4) & 0x0f0f0f0f;
    else
      v[i] = o[i / 4] >> (i % 4 * 2) & 0x03030303;
  }
  n = F::base;
  for (int i = 0; i < 8; i++) {
    if (F::high == 2) v[i] |= (o[n + i / 4] >> (i % 4 * 2) & 0x03030303) << F::base;
    if (F::high == 1) v[i] |= (o[n] >> i & 0x01010101) << F::base;
  }
  std::memcpy(q, v, 32);
}

// Row `lane` of a panel's 32 columns at `block`.
template <class F, int L>
inline void block_codes(const uint8_t* block, int lane, uint8_t* q) {
  uint32_t words[8];
  for (int n = 0; n < F::planes; n++)
    std::memcpy(&words[n], block + size_t(n) * 4 * L + 4 * lane, 4);
  codes_of<F>(words, q);
}

inline void put_word(uint8_t* p, uint16_t h) { p[0] = uint8_t(h), p[1] = uint8_t(h >> 8); }

inline void put_nibbles(uint8_t* p, const uint8_t* q, int n) {
  for (int i = 0; i < n; i++) p[i] = uint8_t((q[i] & 15) | q[n + i] << 4);
}

inline void put_fifth_bits(uint8_t* p, const uint8_t* q) {
  uint32_t h = 0;
  for (int i = 0; i < 32; i++) h |= uint32_t(q[i] >> 4 & 1) << i;
  std::memcpy(p, &h, 4);
}

inline void put_six_bits(uint8_t* p, const Row& o) {
  for (int i = 0; i < 4; i++) {
    p[i] = uint8_t(o.s[i] | o.s[4 + i] >> 4 << 6);
    p[4 + i] = uint8_t(o.m[i] | o.m[4 + i] >> 4 << 6);
    p[8 + i] = uint8_t((o.s[4 + i] & 15) | (o.m[4 + i] & 15) << 4);
  }
}

// The inverse of Source<F>::read.
template <class F> struct Sink;

template <> struct Sink<Q4_0> {
  static void write(const Row& o, int, uint8_t* p) { put_word(p, o.d16); put_nibbles(p + 2, o.q, 16); }
};
template <> struct Sink<Q4_1> {
  static void write(const Row& o, int, uint8_t* p) {
    put_word(p, o.d16);
    put_word(p + 2, o.low16);
    put_nibbles(p + 4, o.q, 16);
  }
};
template <> struct Sink<Q5_0> {
  static void write(const Row& o, int, uint8_t* p) {
    put_word(p, o.d16);
    put_fifth_bits(p + 2, o.q);
    put_nibbles(p + 6, o.q, 16);
  }
};
template <> struct Sink<Q5_1> {
  static void write(const Row& o, int, uint8_t* p) {
    put_word(p, o.d16);
    put_word(p + 2, o.low16);
    put_fifth_bits(p + 4, o.q);
    put_nibbles(p + 8, o.q, 16);
  }
};
template <> struct Sink<Q8_0> {
  static void write(const Row& o, int, uint8_t* p) {
    put_word(p, o.d16);
    std::memcpy(p + 2, o.q, 32);
  }
};
template <> struct Sink<Q8_K> {  // sums of sixteen follow the codes, which determine them
  static void write(const Row& o, int part, uint8_t* p) {
    std::memcpy(p, &o.d, 4);
    std::memcpy(p + 4 + 32 * part, o.q, 32);
    for (int i = 0; i < 2; i++) {
      int sum = 0;
      for (int j = 0; j < 16; j++) sum += int8_t(o.q[16 * i + j]);
      put_word(p + 260 + 2 * (2 * part + i), uint16_t(sum));
    }
  }
};
template <> struct Sink<IQ4_NL> : Sink<Q4_0> {};
template <> struct Sink<MXFP4> {
  static void write(const Row& o, int, uint8_t* p) {
    int exponent;
    std::frexp(o.d, &exponent);  // d = 0.5 · 2^exponent
    p[0] = uint8_t(exponent - 1 + 128);
    put_nibbles(p + 1, o.q, 16);
  }
};
template <> struct Sink<Q2_K> {
  static void write(const Row& o, int, uint8_t* p) {
    for (int i = 0; i < 16; i++) p[i] = uint8_t(o.s[i] | o.m[i] << 4);
    std::memset(p + 16, 0, 64);
    for (int i = 0; i < 256; i++) p[16 + 32 * (i / 128) + i % 32] |= o.q[i] << (2 * (i / 32 % 4));
    put_word(p + 80, o.d16);
    put_word(p + 82, o.low16);
  }
};
template <> struct Sink<Q3_K> {
  static void write(const Row& o, int, uint8_t* p) {
    std::memset(p, 0, 108);
    for (int i = 0; i < 256; i++) {
      p[32 + 32 * (i / 128) + i % 32] |= (o.q[i] & 3) << (2 * (i / 32 % 4));
      p[i % 32] |= (o.q[i] >> 2) << (i / 32);
    }
    for (int i = 0; i < 16; i++) {
      const int s = o.s[i] + 32;
      p[96 + i % 8] |= (s & 15) << (i < 8 ? 0 : 4);
      p[104 + i % 4] |= (s >> 4) << (2 * (i / 4));
    }
    put_word(p + 108, o.d16);
  }
};
template <> struct Sink<Q4_K> {
  static void write(const Row& o, int, uint8_t* p) {
    put_word(p, o.d16);
    put_word(p + 2, o.low16);
    put_six_bits(p + 4, o);
    for (int j = 0; j < 4; j++) put_nibbles(p + 16 + 32 * j, o.q + 64 * j, 32);
  }
};
template <> struct Sink<Q5_K> {
  static void write(const Row& o, int, uint8_t* p) {
    put_word(p, o.d16);
    put_word(p + 2, o.low16);
    put_six_bits(p + 4, o);
    std::memset(p + 16, 0, 32);
    for (int j = 0; j < 4; j++) {
      put_nibbles(p + 48 + 32 * j, o.q + 64 * j, 32);
      for (int i = 0; i < 64; i++) p[16 + i % 32] |= (o.q[64 * j + i] >> 4) << (2 * j + i / 32);
    }
  }
};
template <> struct Sink<Q6_K> {
  static void write(const Row& o, int, uint8_t* p) {
    std::memset(p + 128, 0, 64);
    for (int j = 0; j < 2; j++) {
      put_nibbles(p + 64 * j, o.q + 128 * j, 64);
      for (int k = 0; k < 4; k++)
        for (int i = 0; i < 32; i++)
          p[128 + 32 * j + i] |= (o.q[128 * j + 32 * k + i] >> 4) << (2 * k);
    }
    std::memcpy(p + 192, o.s, 16);
    put_word(p + 208, o.d16);
  }
};
template <> struct Sink<IQ4_XS> {
  static void write(const Row& o, int, uint8_t* p) {
    put_word(p, o.d16);
    std::memset(p + 2, 0, 6);
    uint16_t high = 0;
    for (int i = 0; i < 8; i++) {
      const int s = o.s[i] + 32;
      p[4 + i / 2] |= (s & 15) << (4 * (i % 2));
      high |= (s >> 4) << (2 * i);
    }
    put_word(p + 2, high);
    for (int j = 0; j < 8; j++) put_nibbles(p + 8 + 16 * j, o.q + 32 * j, 16);
  }
};

template <class F, int L>
void unpack_row(int lane, int64_t cols, const uint8_t* panel, uint8_t* dst) {
  using S = Source<F>;
  constexpr int per = S::cols / F::super;
  const uint8_t* p = panel;
  Row o{};
  for (int64_t b = 0; b < cols / F::super; b++) {
    const uint8_t* at = p;
    p += F::header(L);
    if (F::f32)
      std::memcpy(&o.d, at + 4 * lane, 4);
    else
      std::memcpy(&o.d16, at + 2 * lane, 2);
    at += F::scale_bytes * L;
    if (F::min) {
      std::memcpy(&o.low16, at + 2 * lane, 2);
      at += 2 * L;
    }
    for (int j = 0; j < F::pairs; j++, at += 2 * L) std::memcpy(o.s + 2 * j, at + 2 * lane, 2);
    if (F::min)
      for (int j = 0; j < F::pairs; j++, at += 2 * L) std::memcpy(o.m + 2 * j, at + 2 * lane, 2);
    for (int j = 0; j < F::super / 32; j++, p += F::block(L)) block_codes<F, L>(p, lane, o.q + 32 * j);
    Sink<F>::write(o, int(b % per), dst + size_t(b / per) * S::bytes);
  }
}

// 32 codes into their stream.
template <int Bits>
inline void to_stream(const uint8_t* q, uint8_t* p) {
  for (int i = 0; i < 4; i++, p += Bits) {
    uint64_t eight = 0;
    for (int j = 0; j < 8; j++) eight |= uint64_t(q[8 * i + j]) << (Bits * j);
    for (int j = 0; j < Bits; j++) p[j] = uint8_t(eight >> (8 * j));
  }
}

template <int Bits, class F, int L>
void unpack_affine_row(const Linear& w, int lane, const uint8_t* panel, uint8_t* codes,
                       uint8_t* scales, uint8_t* minima) {
  const size_t size = float_bytes(w.floats), groups = w.cols / w.group;
  const uint8_t* p = panel;
  for (size_t g = 0; g < groups; g++) {
    std::memcpy(scales + g * size, p + size * lane, size);
    std::memcpy(minima + g * size, p + size * (L + lane), size);
    p += affine_header(w, L);
    for (int64_t b = 0; b < w.group / 32; b++, p += F::block(L)) {
      uint8_t q[32];
      block_codes<F, L>(p, lane, q);
      if (F::is_signed)
        for (uint8_t& code : q) code ^= 128;
      to_stream<Bits>(q, codes);
      codes += 4 * Bits;
    }
  }
}

using UnpackFn = void (*)(int lane, int64_t cols, const uint8_t* panel, uint8_t* dst);
using UnpackAffineFn = void (*)(const Linear& w, int lane, const uint8_t* panel, uint8_t* codes,
                                uint8_t* scales, uint8_t* minima);

template <int L>
UnpackFn unpacks(int type) {
  switch (type) {
#define X(F) case k##F: return unpack_row<F, L>;
    TMK_FORMATS(X)
#undef X
  }
  return nullptr;
}

template <int L>
UnpackAffineFn unpacks_affine(int bits) {
  switch (bits) {
#define X(Bits) case Bits: return unpack_affine_row<Bits, Affine##Bits, L>;
    TMK_AFFINE(X)
#undef X
  }
  return nullptr;
}

bool within(const int64_t* index, int64_t count, int64_t rows) {
  for (int64_t i = 0; i < count; i++)
    if (index[i] < 0 || index[i] >= rows) return false;
  return true;
}

}  // namespace
}  // namespace tmk

using namespace tmk;

// Rows `index` [count] of a weight in panels as ggml blocks, [count, bytes of a row].
EXPORT int64_t tmk_unpack(const Linear* w, const int64_t* index, int64_t count, uint8_t* dst,
                          int32_t threads) {
  const int L = isa().lanes;
  const UnpackFn row = L == 8 ? unpacks<8>(w->type) : unpacks<16>(w->type);
  if (!row) return kUnknown;
  if (!within(index, count, w->rows)) return kBadShape;
  const size_t row_bytes = size_t(w->cols / block_columns(w->type)) * block_bytes(w->type);
  const size_t size = panel_bytes(*w, L);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i++)
    row(int(index[i] % L), w->cols, w->data + panels_before(w->rows, L, index[i] / L) * size,
        dst + i * row_bytes);
  return kOk;
}

// The same of an affine type, as what tmk_pack_affine takes.
EXPORT int64_t tmk_unpack_affine(const Linear* w, const int64_t* index, int64_t count,
                                 uint8_t* codes, uint8_t* scales, uint8_t* minima,
                                 int32_t threads) {
  const int L = isa().lanes, bits = affine_bits(w->type);
  const UnpackAffineFn row = L == 8 ? unpacks_affine<8>(bits) : unpacks_affine<16>(bits);
  if (!row) return kUnknown;
  if (!within(index, count, w->rows)) return kBadShape;
  const size_t size = panel_bytes(*w, L), one = w->cols / w->group * float_bytes(w->floats);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i++)
    row(*w, int(index[i] % L), w->data + panels_before(w->rows, L, index[i] / L) * size,
        codes + i * (w->cols / 8 * bits), scales + i * one, minima + i * one);
  return kOk;
}
