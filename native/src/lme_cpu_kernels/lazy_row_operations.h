// Normalisation, rotary positions and attention as lazy MLX operations on the CPU stream.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mlx/mlx.h"
#include "row_operations.h"

namespace lme {

// x [..., width] float32 → the same shape, normalised over the last extent.
class RmsNorm {
 public:
  RmsNorm(std::optional<mlx::core::array> weight, float eps, int threads, const std::string& kernels);
  mlx::core::array operator()(const mlx::core::array& x) const;

  struct Held {
    std::optional<mlx::core::array> weight;
    float eps;
    const cpu::Kernels* kernels;
    size_t threads;
  };

 private:
  std::shared_ptr<const Held> held_;
};

// x [..., length, width] float32 → the same shape, rotated by positions offset … offset + length - 1.
class Rotary {
 public:
  Rotary(int dims, bool traditional, double base, float scale, int threads);
  mlx::core::array operator()(const mlx::core::array& x, int64_t offset) const;

  struct Held {
    size_t dims;
    bool traditional;
    float scale;
    std::vector<float> frequencies;
    size_t threads;
  };

 private:
  std::shared_ptr<const Held> held_;
};

// As mx.fast.scaled_dot_product_attention for float32. `mask` is "", "causal" or an array.
mlx::core::array attention(const mlx::core::array& q, const mlx::core::array& k, const mlx::core::array& v,
                           float scale, const std::string& mask_mode, const std::optional<mlx::core::array>& mask,
                           const std::optional<mlx::core::array>& sinks, int threads, const std::string& kernels);

}  // namespace lme
