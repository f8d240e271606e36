// Sixteen lanes as an array: the reference that the others are tested equal to, bit for bit, and what runs on
// a CPU without them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lme::cpu::scalar {

constexpr int kRowsAtOnce = 1;
constexpr int kTokensAtOnce = 1;

struct Lanes {
  float v[16];
};
struct Words {
  uint32_t v[16];
};

template <typename F>
inline Lanes each(F&& f) {
  Lanes result;
  for (int i = 0; i < 16; ++i) result.v[i] = f(i);
  return result;
}
inline float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

inline Lanes broadcast(float f) {
  return each([=](int) { return f; });
}
inline Lanes zero() { return broadcast(0); }
inline Lanes load(const float* p) {
  return each([=](int i) { return p[i]; });
}
inline Lanes load_once(const float* p) { return load(p); }
inline void store(float* p, Lanes a) { __builtin_memcpy(p, a.v, sizeof a.v); }
inline float widen(const uint8_t* p) {
  uint16_t half;
  __builtin_memcpy(&half, p, sizeof half);
  return from_bits(static_cast<uint32_t>(half) << 16);
}
inline Lanes load_bfloat16(const uint8_t* p) {
  return each([=](int i) { return widen(p + 2 * i); });
}

inline Lanes add(Lanes a, Lanes b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes multiply(Lanes a, Lanes b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes divide(Lanes a, Lanes b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
inline Lanes fused(Lanes a, Lanes b, Lanes c) {
  return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
// As x86's minimum and maximum: of a number that is none, `a`.
inline Lanes at_most(Lanes a, Lanes b) {
  return each([&](int i) { return b.v[i] < a.v[i] ? b.v[i] : a.v[i]; });
}
inline Lanes at_least(Lanes a, Lanes b) {
  return each([&](int i) { return b.v[i] > a.v[i] ? b.v[i] : a.v[i]; });
}
inline Lanes add_to_exponent(Lanes a, Lanes n) {
  return each([&](int i) {
    return from_bits(__builtin_bit_cast(uint32_t, a.v[i]) + (__builtin_bit_cast(uint32_t, n.v[i]) << 23));
  });
}
inline Lanes zero_where_infinite(Lanes a, Lanes where) {
  return each([&](int i) { return where.v[i] == -__builtin_inff() ? 0.0f : a.v[i]; });
}
inline float sum(Lanes a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}

inline Words load_words(const uint8_t* p) {
  Words w;
  __builtin_memcpy(w.v, p, sizeof w.v);
  return w;
}

// Digit j of each word as a float.
template <int j>
inline Lanes nibble(Words w) {
  return each([&](int i) { return static_cast<float>(w.v[i] >> (4 * j) & 15); });
}
template <int j>
inline Lanes byte(Words w) {
  return each([&](int i) { return static_cast<float>(w.v[i] >> (8 * j) & 255); });
}
template <int j>
inline Lanes e2m1(Words w) {
  static constexpr float kTable[16] = {0,    .5f,   1,   1.5f,   2,   3,   4,   6,
                                       -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
  return each([&](int i) { return kTable[w.v[i] >> (4 * j) & 15]; });
}

struct Scales {
  float v[4];
};

template <int groups>
inline Scales float_scales(const uint8_t* p) {
  Scales s{};
  __builtin_memcpy(s.v, p, groups * sizeof(float));
  return s;
}
template <int groups>
inline Scales bfloat16_scales(const uint8_t* p) {
  Scales s{};
  for (int g = 0; g < groups; ++g) s.v[g] = widen(p + 2 * g);
  return s;
}
// 2^(e - 127); e = 0 is the subnormal 2^-127.
template <int groups>
inline Scales exponent_scales(const uint8_t* p) {
  Scales s{};
  for (int g = 0; g < groups; ++g) s.v[g] = from_bits(p[g] == 0 ? 0x400000u : uint32_t{p[g]} << 23);
  return s;
}

// Each of the `groups` scales in 16 / groups neighbouring lanes.
template <int groups>
inline Lanes spread(Scales s) {
  return each([&](int i) { return s.v[i * groups / 16]; });
}

}  // namespace lme::cpu::scalar
