// Arrays of MLX as banks. Owns the checks of the arrays and keeps them alive; the reading is expert_io's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "batch.h"
#include "mlx/mlx.h"

namespace lme {

class ScatterPlan {
 public:
  // Throws std::invalid_argument when an array cannot be written in place.
  ScatterPlan(std::vector<mlx::core::array> arrays, const std::vector<int64_t>& nbytes,
              const std::vector<bool>& widen);

  const std::vector<Segment>& segments() const { return segments_; }
  size_t slots() const { return slots_; }
  size_t record_bytes() const { return record_bytes_; }

 private:
  std::vector<mlx::core::array> arrays_;  // holds the memory that segments_ points into
  std::vector<Segment> segments_;
  size_t slots_ = 0;
  size_t record_bytes_ = 0;
};

}  // namespace lme
