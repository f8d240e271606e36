// Memory of a fresh array in huge pages, where the system gives them on request.
#pragma once

#include <cstdint>

#include "mlx/mlx.h"

namespace lme {

// Has the array's memory put into huge pages, as far as it fills them, and returns the bytes of the pages that were
// asked for: 0 where the array is smaller than two huge pages, or the system has none. Its values become zeros.
// Throws std::invalid_argument for an array that is lazy or strided, std::system_error where memory cannot be had.
uint64_t use_huge_pages(const mlx::core::array& array);

}  // namespace lme
