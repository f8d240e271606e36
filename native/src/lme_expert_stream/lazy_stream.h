// The stream as a lazy MLX operation on the CPU stream: arrays as pools, and a layer's routed experts as a function
// of activations and routed ids. Owns the checks of arrays and shapes; the rest is expert_stream's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "expert_stream.h"
#include "lazy_products.h"
#include "mlx/mlx.h"
#include "scatter_plan.h"

namespace lme::stream {

// One layer of a stream, with its arithmetic.
class StreamedLayer {
 public:
  // Throws std::invalid_argument when the product's slots are not those of the layer's pool.
  StreamedLayer(std::shared_ptr<ExpertStream> stream, size_t layer, const ExpertProduct& product);

  // x [..., hidden] float32, ids [..., k] int32 or uint32 → [..., k, hidden]. The pass's record has `mark`.
  // `scores` [..., experts] float32 foretell the next layer's choice: the higher the likelier.
  mlx::core::array operator()(const mlx::core::array& x, const mlx::core::array& ids, uint64_t mark,
                              const std::optional<mlx::core::array>& scores) const;

 private:
  std::shared_ptr<ExpertStream> stream_;
  size_t layer_;
  std::shared_ptr<const ExpertProduct::Held> product_;
};

}  // namespace lme::stream
