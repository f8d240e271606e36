// Sixteen lanes in two 256-bit registers.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace lme::cpu::avx2 {

// What 16 registers hold.
constexpr int kRowsAtOnce = 1;
constexpr int kTokensAtOnce = 2;

struct Lanes {
  __m256 low, high;
};
struct Words {
  __m256i low, high;
};

inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes broadcast(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Lanes load_once(const float* p) { return load(p); }
inline void store(float* p, Lanes a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline __m256 widen_eight(const uint8_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline Lanes load_bfloat16(const uint8_t* p) { return {widen_eight(p), widen_eight(p + 16)}; }

inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes multiply(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes divide(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Lanes fused(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes at_most(Lanes a, Lanes b) {
  return {_mm256_min_ps(b.low, a.low), _mm256_min_ps(b.high, a.high)};
}
inline Lanes at_least(Lanes a, Lanes b) {
  return {_mm256_max_ps(b.low, a.low), _mm256_max_ps(b.high, a.high)};
}
inline __m256 add_to_exponent(__m256 a, __m256 n) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
inline Lanes add_to_exponent(Lanes a, Lanes n) {
  return {add_to_exponent(a.low, n.low), add_to_exponent(a.high, n.high)};
}
inline __m256 zero_where_infinite(__m256 a, __m256 where) {
  return _mm256_and_ps(a, _mm256_cmp_ps(where, _mm256_set1_ps(-__builtin_inff()), _CMP_NEQ_UQ));
}
inline Lanes zero_where_infinite(Lanes a, Lanes where) {
  return {zero_where_infinite(a.low, where.low), zero_where_infinite(a.high, where.high)};
}
inline float sum(Lanes a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Words load_words(const uint8_t* p) {
  const auto* at = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}

// Digit j of each word as a float.
template <int j, int bits>
inline __m256 digit(__m256i w) {
  __m256i value = _mm256_srli_epi32(w, bits * j);
  if constexpr (bits * (j + 1) < 32) value = _mm256_and_si256(value, _mm256_set1_epi32((1 << bits) - 1));
  return _mm256_cvtepi32_ps(value);
}
template <int j>
inline Lanes nibble(Words w) {
  return {digit<j, 4>(w.low), digit<j, 4>(w.high)};
}
template <int j>
inline Lanes byte(Words w) {
  return {digit<j, 8>(w.low), digit<j, 8>(w.high)};
}
template <int j>
inline __m256 e2m1(__m256i w) {
  // The permutation takes the lowest three bits of an index; the fourth is the sign.
  const __m256 table = _mm256_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6);
  const __m256 size = _mm256_permutevar8x32_ps(table, _mm256_srli_epi32(w, 4 * j));
  const __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(w, 28 - 4 * j));
  return _mm256_or_ps(size, _mm256_and_ps(sign, _mm256_set1_ps(-0.f)));
}
template <int j>
inline Lanes e2m1(Words w) {
  return {e2m1<j>(w.low), e2m1<j>(w.high)};
}

#include "scales_x86.inc"

// Each of the `groups` scales in 16 / groups neighbouring lanes.
template <int groups>
inline Lanes spread(Scales s) {
  const __m128 four = _mm_castsi128_ps(s.v);
  if constexpr (groups == 1) return {_mm256_broadcastss_ps(four), _mm256_broadcastss_ps(four)};
  if constexpr (groups == 2) {
    return {_mm256_broadcastss_ps(four), _mm256_broadcastss_ps(_mm_movehdup_ps(four))};
  }
  const __m256 all = _mm256_castps128_ps256(four);
  return {_mm256_permutevar8x32_ps(all, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)),
          _mm256_permutevar8x32_ps(all, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3))};
}

}  // namespace lme::cpu::avx2
