// bfloat16 to float32, bit for bit: a bfloat16 is the upper half of the float32 of the same value, NaNs
// included.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lme {

// Writes nbytes / 2 float32 to `to` from nbytes of bfloat16 at `from`. The two may not overlap, with one
// exception, which is how a bank is filled without a scratch buffer: from == to + nbytes, the upper half of
// the room for the result.
void widen_bfloat16(uint8_t* to, const uint8_t* from, size_t nbytes);

}  // namespace lme
