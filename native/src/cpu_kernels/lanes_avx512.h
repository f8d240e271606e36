// Sixteen lanes in one 512-bit register.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace lme::cpu::avx512 {

// Rows and tokens of weights that are multiplied at a time: what 32 registers hold.
constexpr int kRowsAtOnce = 2;
constexpr int kTokensAtOnce = 4;

struct Lanes {
  __m512 v;
};
struct Words {
  __m512i v;
};

inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes broadcast(float f) { return {_mm512_set1_ps(f)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
// Keeps GCC from loading it again for every use.
inline Lanes load_once(const float* p) {
  __m512 v = _mm512_loadu_ps(p);
  __asm__("" : "+v"(v));
  return {v};
}
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes load_bfloat16(const uint8_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}

inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes divide(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fused(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes at_most(Lanes a, Lanes b) { return {_mm512_min_ps(b.v, a.v)}; }
inline Lanes at_least(Lanes a, Lanes b) { return {_mm512_max_ps(b.v, a.v)}; }
inline Lanes add_to_exponent(Lanes a, Lanes n) {
  return {_mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(_mm512_castps_si512(n.v), 23)))};
}
inline Lanes zero_where_infinite(Lanes a, Lanes where) {
  const __mmask16 finite = _mm512_cmp_ps_mask(where.v, _mm512_set1_ps(-__builtin_inff()), _CMP_NEQ_UQ);
  return {_mm512_maskz_mov_ps(finite, a.v)};
}
inline float sum(Lanes a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Words load_words(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }

// Digit j of each word as a float.
template <int j>
inline Lanes nibble(Words w) {
  // A permutation takes the lowest four bits of an index: no mask is needed.
  const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(w.v, 4 * j), table)};
}
template <int j>
inline Lanes e2m1(Words w) {
  const __m512 table =
      _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6);
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(w.v, 4 * j), table)};
}
template <int j>
inline Lanes byte(Words w) {
  __m512i digit = _mm512_srli_epi32(w.v, 8 * j);
  if constexpr (j < 3) digit = _mm512_and_si512(digit, _mm512_set1_epi32(255));
  return {_mm512_cvtepi32_ps(digit)};
}

#include "scales_x86.inc"

// Each of the `groups` scales in 16 / groups neighbouring lanes.
template <int groups>
inline Lanes spread(Scales s) {
  if constexpr (groups == 1) return {_mm512_broadcastss_ps(_mm_castsi128_ps(s.v))};
  const __m512i place = groups == 2 ? _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
                                    : _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return {_mm512_permutexvar_ps(place, _mm512_castps128_ps512(_mm_castsi128_ps(s.v)))};
}

}  // namespace lme::cpu::avx512
