// The products themselves: a matrix with activations, and a layer's routed experts. Owns how the work is cut
// and shared; the arithmetic is kernels.h's. Results do not depend on the cutting, to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels.h"
#include "packed_matrix.h"

namespace lme::cpu {

struct DenseCall {
  const PackedMatrix* matrix;    // one slot
  std::span<const float* const> x;  // rows of matrix->columns floats
  float* out;                    // [x.size(), matrix->rows]
  const Kernels* kernels;
  size_t threads;
};

void multiply(const DenseCall& call);

struct ExpertMatrices {
  PackedMatrix gate, up, down;
  Activation activation;
};

struct ExpertCall {
  const ExpertMatrices* experts;
  std::span<const float* const> x;   // rows of gate.columns floats
  std::span<const uint32_t> slots;   // [x.size(), k], each below the number of slots
  const float* scores;               // [x.size(), k], or null
  float* out;                        // [x.size(), k, down.rows], or with scores [x.size(), down.rows]
  // Where only a part of the results is wanted: which ones, distinct, each below x.size() · k. Then `slots` has
  // one entry for each of them, `scores` is null, and the rest of `out` is left alone.
  std::span<const uint32_t> routes = {};
  size_t k = 0;                      // only with `routes`
  const Kernels* kernels;
  size_t threads;
};

void multiply(const ExpertCall& call);

}  // namespace lme::cpu
