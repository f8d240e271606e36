// MLX arrays as packed matrices. Owns their checks, and keeps them alive.
#pragma once

#include <optional>
#include <string>

#include "mlx/mlx.h"
#include "packed_matrix.h"

namespace lme {

// A projection as Python describes it. `weight` is [slots, rows, words] or [slots, rows, columns].
struct WeightArrays {
  mlx::core::array weight;
  std::optional<mlx::core::array> scales, biases, bias;
  int group_size, bits;
  std::string mode;  // "affine", "mxfp4", or "" for plain floats

  // Throws std::invalid_argument, naming `name` and the component, for what the kernels cannot take: another
  // packing, dtype or shape, an array that is not evaluated or not contiguous.
  cpu::PackedMatrix check(const std::string& name) const;
};

}  // namespace lme
