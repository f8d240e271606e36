// The products as lazy MLX operations on the CPU stream. The weights are no inputs of the graph: a product
// holds them, evaluated, from its construction on.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "mlx/mlx.h"
#include "products.h"
#include "weight_arrays.h"

namespace lme {

// A weight matrix, dense: x [..., columns] float32 → [..., rows] float32.
class DenseProduct {
 public:
  // weight is [1, rows, …]. `threads` 0: one per CPU of the process's affinity mask.
  DenseProduct(WeightArrays weight, int threads, const std::string& kernels);

  mlx::core::array operator()(const mlx::core::array& x) const;
  size_t threads() const { return held_->threads; }
  const char* kernels() const { return held_->kernels->name; }

  struct Held {
    WeightArrays arrays;
    cpu::PackedMatrix matrix;
    const cpu::Kernels* kernels;
    size_t threads;
  };

 private:
  std::shared_ptr<const Held> held_;
};

// A layer's routed experts.
class ExpertProduct {
 public:
  ExpertProduct(WeightArrays gate, WeightArrays up, WeightArrays down, cpu::Activation activation, int threads,
                const std::string& kernels);

  // x [..., hidden] float32, slots [..., k] int32 or uint32, scores like slots, float32.
  mlx::core::array operator()(const mlx::core::array& x, const mlx::core::array& slots,
                              const std::optional<mlx::core::array>& scores) const;
  // `out` [tokens · k, rows] with the results of `routes` [r] in their rows: x [tokens, hidden], slots [r].
  mlx::core::array fill(const mlx::core::array& out, const mlx::core::array& x, const mlx::core::array& routes,
                        const mlx::core::array& slots) const;
  size_t slots() const { return held_->experts.gate.slots; }
  size_t bytes_per_slot() const;
  size_t threads() const { return held_->threads; }
  const char* kernels() const { return held_->kernels->name; }

  struct Held {
    WeightArrays gate, up, down;
    cpu::ExpertMatrices experts;
    const cpu::Kernels* kernels;
    size_t threads;
    // This module's own, for other modules: they then share its crew of threads instead of having one more.
    void (*multiply)(const cpu::ExpertCall&);
  };
  const std::shared_ptr<const Held>& held() const { return held_; }

 private:
  std::shared_ptr<const Held> held_;
};

}  // namespace lme
