// What stands between the products of a layer: normalisation, rotary positions, attention. Owns how the work is
// cut and shared; rows do not depend on the rows beside them, to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels.h"

namespace lme::cpu {

struct NormCall {
  std::span<const float* const> x;
  const float* weight;  // [width], or null
  float eps;
  size_t width;
  float* out;
  const Kernels* kernels;
  size_t threads;
};

void normalize(const NormCall& call);

// Rotary position embedding (Su et al., arXiv:2104.09864) of the first `dims` of `width` elements.
struct RotaryCall {
  std::span<const float* const> x;  // rows; row r is at position offset + r % length
  size_t length, width, dims;
  int64_t offset;
  float scale;  // of positions
  bool pairs_are_neighbours;
  std::span<const float> frequencies;  // [dims / 2]
  float* out;
  size_t threads;
};

std::vector<float> rotary_frequencies(size_t dims, double base);
void rotate(const RotaryCall& call);

// softmax(scale * q · kᵀ + mask) · v, with grouped heads. The last extent of k and v is contiguous.
struct AttentionCall {
  size_t batch, query_heads, key_heads, queries, keys, width, value_width;
  const float *q, *k, *v;
  int64_t q_strides[3], k_strides[3], v_strides[3];  // batch, head, position; in floats
  float scale;
  enum class Mask : uint8_t { kNone, kCausal, kBool, kAdded } mask;
  const void* mask_data;       // bool or float
  int64_t mask_strides[4];     // batch, head, query, key; in elements
  const float* sinks;          // [query_heads]: a score that is seen by every query and has no value; or null
  float* out;                  // [batch, query_heads, queries, value_width]
  const Kernels* kernels;
  size_t threads;
};

void attend(const AttentionCall& call);

}  // namespace lme::cpu
