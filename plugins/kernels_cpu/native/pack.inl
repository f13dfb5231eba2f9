// Weights as files hold them (ggml blocks) into panels; layouts in formats.h and ggml-common.h.
#include <cmath>
#include <cstring>

#include "formats.h"

namespace tmk {
namespace {  // see formats.h

// One row's values under one float scale: codes, sub-scales, sub-minima.
struct Row {
  uint8_t q[256];
  int8_t s[16], m[16];
  float d, low;           // for float32 scales
  uint16_t d16, low16;    // for the others, copied as they are
};

inline uint16_t word(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }

inline void nibbles(const uint8_t* p, uint8_t* q, int n) {
  for (int i = 0; i < n; i++) q[i] = p[i] & 15, q[n + i] = p[i] >> 4;
}

inline void fifth_bits(const uint8_t* p, uint8_t* q) {
  uint32_t h;
  std::memcpy(&h, p, 4);
  for (int i = 0; i < 32; i++) q[i] |= (h >> i & 1) << 4;
}

// Eight 6-bit scales and minima in 12 bytes (Q4_K, Q5_K).
inline void six_bits(const uint8_t* p, Row& o) {
  for (int i = 0; i < 4; i++) {
    o.s[i] = p[i] & 63;
    o.m[i] = p[4 + i] & 63;
    o.s[4 + i] = (p[8 + i] & 15) | (p[i] >> 6) << 4;
    o.m[4 + i] = (p[8 + i] >> 4) | (p[4 + i] >> 6) << 4;
  }
}

template <class F> struct Source;

template <> struct Source<Q4_0> {
  static constexpr int bytes = 18, cols = 32;
  static void read(const uint8_t* p, int, Row& o) { o.d16 = word(p); nibbles(p + 2, o.q, 16); }
};
template <> struct Source<Q4_1> {
  static constexpr int bytes = 20, cols = 32;
  static void read(const uint8_t* p, int, Row& o) {
    o.d16 = word(p);
    o.low16 = word(p + 2);
    nibbles(p + 4, o.q, 16);
  }
};
template <> struct Source<Q5_0> {
  static constexpr int bytes = 22, cols = 32;
  static void read(const uint8_t* p, int, Row& o) {
    o.d16 = word(p);
    nibbles(p + 6, o.q, 16);
    fifth_bits(p + 2, o.q);
  }
};
template <> struct Source<Q5_1> {
  static constexpr int bytes = 24, cols = 32;
  static void read(const uint8_t* p, int, Row& o) {
    o.d16 = word(p);
    o.low16 = word(p + 2);
    nibbles(p + 8, o.q, 16);
    fifth_bits(p + 4, o.q);
  }
};
template <> struct Source<Q8_0> {
  static constexpr int bytes = 34, cols = 32;
  static void read(const uint8_t* p, int, Row& o) {
    o.d16 = word(p);
    std::memcpy(o.q, p + 2, 32);
  }
};
template <> struct Source<Q8_K> {
  static constexpr int bytes = 292, cols = 256;
  static void read(const uint8_t* p, int part, Row& o) {
    std::memcpy(&o.d, p, 4);
    std::memcpy(o.q, p + 4 + 32 * part, 32);
  }
};
template <> struct Source<IQ4_NL> : Source<Q4_0> {};
template <> struct Source<MXFP4> {
  static constexpr int bytes = 17, cols = 32;
  static void read(const uint8_t* p, int, Row& o) {
    o.d = std::ldexp(1.0f, int(p[0]) - 128);
    nibbles(p + 1, o.q, 16);
  }
};
template <> struct Source<Q2_K> {
  static constexpr int bytes = 84, cols = 256;
  static void read(const uint8_t* p, int, Row& o) {
    for (int i = 0; i < 16; i++) o.s[i] = p[i] & 15, o.m[i] = p[i] >> 4;
    for (int i = 0; i < 256; i++)
      o.q[i] = p[16 + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
    o.d16 = word(p + 80);
    o.low16 = word(p + 82);
  }
};
template <> struct Source<Q3_K> {
  static constexpr int bytes = 110, cols = 256;
  static void read(const uint8_t* p, int, Row& o) {
    for (int i = 0; i < 256; i++)
      o.q[i] = (p[32 + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3) |
               (p[i % 32] >> (i / 32) & 1) << 2;
    const uint8_t* s = p + 96;
    for (int i = 0; i < 16; i++) {
      const int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
      o.s[i] = int8_t((low | (s[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32);
    }
    o.d16 = word(p + 108);
  }
};
template <> struct Source<Q4_K> {
  static constexpr int bytes = 144, cols = 256;
  static void read(const uint8_t* p, int, Row& o) {
    o.d16 = word(p);
    o.low16 = word(p + 2);
    six_bits(p + 4, o);
    for (int j = 0; j < 4; j++) nibbles(p + 16 + 32 * j, o.q + 64 * j, 32);
  }
};
template <> struct Source<Q5_K> {
  static constexpr int bytes = 176, cols = 256;
  static void read(const uint8_t* p, int, Row& o) {
    o.d16 = word(p);
    o.low16 = word(p + 2);
    six_bits(p + 4, o);
    for (int j = 0; j < 4; j++) {
      nibbles(p + 48 + 32 * j, o.q + 64 * j, 32);
      for (int i = 0; i < 64; i++) o.q[64 * j + i] |= (p[16 + i % 32] >> (2 * j + i / 32) & 1) << 4;
    }
  }
};
template <> struct Source<Q6_K> {
  static constexpr int bytes = 210, cols = 256;
  static void read(const uint8_t* p, int, Row& o) {
    for (int j = 0; j < 2; j++) {
      nibbles(p + 64 * j, o.q + 128 * j, 64);
      for (int k = 0; k < 4; k++)
        for (int i = 0; i < 32; i++)
          o.q[128 * j + 32 * k + i] |= (p[128 + 32 * j + i] >> (2 * k) & 3) << 4;
    }
    std::memcpy(o.s, p + 192, 16);
    o.d16 = word(p + 208);
  }
};
template <> struct Source<IQ4_XS> {
  static constexpr int bytes = 136, cols = 256;
  static void read(const uint8_t* p, int, Row& o) {
    o.d16 = word(p);
    const uint16_t high = word(p + 2);
    for (int i = 0; i < 8; i++)
      o.s[i] = int8_t(((p[4 + i / 2] >> (4 * (i % 2)) & 15) | (high >> (2 * i) & 3) << 4) - 32);
    for (int j = 0; j < 8; j++) nibbles(p + 8 + 16 * j, o.q + 32 * j, 16);
  }
};

// Plane words of one row's 32 columns. `v[i]` holds columns 4·i to 4·i + 3.
template <class F>
inline void planes(const uint8_t* q, uint32_t* o) {
  uint32_t v[8];
  std::memcpy(v, q, 32);
  int n = 0;
  if (F::base == 8) {
    for (; n < 8; n++) o[n] = v[n];
  } else if (F::base == 4) {
    for (; n < 4; n++) o[n] = (v[2 * n] & 0x0f0f0f0f) | (v[2 * n + 1] & 0x0f0f0f0f) << 4;
  } else {
    for (; n < 2; n++) {
      o[n] = 0;
      for (int i = 0; i < 4; i++) o[n] |= (v[4 * n + i] & 0x03030303) << (2 * i);
    }
  }
  if (F::high == 2) {
    for (int k = 0; k < 2; k++, n++) {
      o[n] = 0;
      for (int i = 0; i < 4; i++) o[n] |= (v[4 * k + i] >> F::base & 0x03030303) << (2 * i);
    }
  } else if (F::high == 1) {
    o[n] = 0;
    for (int i = 0; i < 8; i++) o[n] |= (v[i] >> F::base & 0x01010101) << i;
  }
}

inline bool finite16(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

// False where a scale is no finite number. `src` has one pointer to each of `rows` rows.
template <class F, int L>
bool pack_panel(int rows, int64_t cols, const uint8_t* const* src, uint8_t* dst) {
  using S = Source<F>;
  constexpr int per = S::cols / F::super;  // float scales in one source block
  const size_t header = F::header(L), block = F::block(L);
  uint8_t* p = dst + header;
  bool fine = true;
  Row o{};
  if (rows < L) std::memset(dst, 0, F::panel(L, cols));
  for (int64_t b = 0; b < cols / F::super; b++, p += block * (F::super / 32) + header) {
    for (int r = 0; r < rows; r++) {
      S::read(src[r] + size_t(b / per) * S::bytes, int(b % per), o);
      uint8_t* at = p - header;
      if (F::f32) {
        fine &= std::isfinite(o.d);
        std::memcpy(at + 4 * r, &o.d, 4);
      } else {
        fine &= finite16(o.d16);
        std::memcpy(at + 2 * r, &o.d16, 2);
      }
      at += F::scale_bytes * L;
      if (F::min) {
        fine &= finite16(o.low16);
        std::memcpy(at + 2 * r, &o.low16, 2);
        at += 2 * L;
      }
      for (int j = 0; j < F::pairs; j++, at += 2 * L) std::memcpy(at + 2 * r, o.s + 2 * j, 2);
      if (F::min)
        for (int j = 0; j < F::pairs; j++, at += 2 * L) std::memcpy(at + 2 * r, o.m + 2 * j, 2);
      for (int j = 0; j < F::super / 32; j++) {
        uint32_t words[8];
        planes<F>(o.q + 32 * j, words);
        for (int n = 0; n < F::planes; n++)
          std::memcpy(p + j * block + size_t(n) * 4 * L + 4 * r, &words[n], 4);
      }
    }
  }
  return fine;
}

}  // namespace
}  // namespace tmk
