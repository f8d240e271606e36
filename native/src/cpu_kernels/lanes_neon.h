// Sixteen lanes in four 128-bit registers of arm64.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace lme::cpu::neon {

// What 32 registers hold: sixteen for the weights of half a block, four per sum.
constexpr int kRowsAtOnce = 1;
constexpr int kTokensAtOnce = 2;

struct Lanes {
  float32x4_t q[4];
};
struct Words {
  uint32x4_t q[4];
};

template <typename F>
inline Lanes each(F&& f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline Lanes broadcast(float f) {
  return each([=](int) { return vdupq_n_f32(f); });
}
inline Lanes zero() { return broadcast(0); }
inline Lanes load(const float* p) {
  return each([=](int i) { return vld1q_f32(p + 4 * i); });
}
inline Lanes load_once(const float* p) { return load(p); }
inline void store(float* p, Lanes a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.q[i]);
}
inline Lanes load_bfloat16(const uint8_t* p) {
  return each([=](int i) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p + 8 * i)), 16));
  });
}

inline Lanes add(Lanes a, Lanes b) {
  return each([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
}
inline Lanes multiply(Lanes a, Lanes b) {
  return each([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
}
inline Lanes divide(Lanes a, Lanes b) {
  return each([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
}
inline Lanes fused(Lanes a, Lanes b, Lanes c) {
  return each([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
// As x86's minimum and maximum: of a number that is none, `a`.
inline Lanes at_most(Lanes a, Lanes b) {
  return each([&](int i) { return vbslq_f32(vcltq_f32(b.q[i], a.q[i]), b.q[i], a.q[i]); });
}
inline Lanes at_least(Lanes a, Lanes b) {
  return each([&](int i) { return vbslq_f32(vcgtq_f32(b.q[i], a.q[i]), b.q[i], a.q[i]); });
}
inline Lanes add_to_exponent(Lanes a, Lanes n) {
  return each([&](int i) {
    return vreinterpretq_f32_u32(
        vaddq_u32(vreinterpretq_u32_f32(a.q[i]), vshlq_n_u32(vreinterpretq_u32_f32(n.q[i]), 23)));
  });
}
inline Lanes zero_where_infinite(Lanes a, Lanes where) {
  return each([&](int i) {
    const uint32x4_t infinite = vceqq_f32(where.q[i], vdupq_n_f32(-__builtin_inff()));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a.q[i]), infinite));
  });
}
inline float sum(Lanes a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

inline Words load_words(const uint8_t* p) {
  Words w;
  for (int i = 0; i < 4; ++i) w.q[i] = vreinterpretq_u32_u8(vld1q_u8(p + 16 * i));
  return w;
}

// Digit j of each word as a float.
template <int j, int bits>
inline Lanes digit(const Words& w) {
  return each([&](int i) {
    uint32x4_t value = w.q[i];
    if constexpr (j > 0) value = vshrq_n_u32(value, bits * j);
    if constexpr (bits * (j + 1) < 32) value = vandq_u32(value, vdupq_n_u32((1u << bits) - 1));
    return vcvtq_f32_u32(value);
  });
}
template <int j>
inline Lanes nibble(Words w) {
  return digit<j, 4>(w);
}
template <int j>
inline Lanes byte(Words w) {
  return digit<j, 8>(w);
}
template <int j>
inline Lanes e2m1(Words w) {
  // Twice the value as a signed byte; the conversion takes it as a fixed-point number with 25 binary places.
  static constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const uint8x16_t table = vreinterpretq_u8_s8(vld1q_s8(kTwice));
  return each([&](int i) {
    uint32x4_t value = w.q[i];
    if constexpr (j > 0) value = vshrq_n_u32(value, 4 * j);
    value = vandq_u32(value, vdupq_n_u32(15));
    const uint32x4_t found = vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(value)));
    return vcvtq_n_f32_s32(vreinterpretq_s32_u32(vshlq_n_u32(found, 24)), 25);
  });
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
  uint16_t raw[groups];
  __builtin_memcpy(raw, p, sizeof raw);
  Scales s{};
  for (int g = 0; g < groups; ++g) {
    const uint32_t bits = static_cast<uint32_t>(raw[g]) << 16;
    __builtin_memcpy(&s.v[g], &bits, sizeof bits);
  }
  return s;
}
// 2^(e - 127); e = 0 is the subnormal 2^-127.
template <int groups>
inline Scales exponent_scales(const uint8_t* p) {
  Scales s{};
  for (int g = 0; g < groups; ++g) {
    const uint32_t bits = p[g] == 0 ? 0x400000u : static_cast<uint32_t>(p[g]) << 23;
    __builtin_memcpy(&s.v[g], &bits, sizeof bits);
  }
  return s;
}

// Each of the `groups` scales in 16 / groups neighbouring lanes.
template <int groups>
inline Lanes spread(Scales s) {
  return each([&](int i) { return vdupq_n_f32(s.v[i * groups / 4]); });
}

}  // namespace lme::cpu::neon
