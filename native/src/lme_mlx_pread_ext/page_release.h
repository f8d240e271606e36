// Memory of an array's last rows, given back to the system while the array lives on.
#pragma once

#include <cstdint>

#include "mlx/mlx.h"

namespace lme {

// Gives back the whole pages behind the first `rows` rows and returns their bytes. They read as zeros until they
// are written again, which takes memory anew. Throws std::invalid_argument for an array that is lazy, strided or
// has fewer rows, std::system_error where the system refuses or has no such thing.
uint64_t release_rows(const mlx::core::array& array, int64_t rows);

}  // namespace lme
