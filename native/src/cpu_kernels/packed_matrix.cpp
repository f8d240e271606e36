#include "packed_matrix.h"

#include <cstring>

namespace lme::cpu {
namespace {

// The sums are added digit by digit: their bits must not depend on who packs.
template <size_t kDigits>
void pack_block(const float* from, float* to) {
  for (size_t j = 0; j < kDigits; ++j) {
    for (size_t i = 0; i < kLanes; ++i) to[j * kLanes + i] = from[i * kDigits + j];
  }
  float* sums = to + kDigits * kLanes;
  std::memcpy(sums, to, kLanes * sizeof(float));
  for (size_t j = 1; j < kDigits; ++j) {
    for (size_t i = 0; i < kLanes; ++i) sums[i] += to[j * kLanes + i];
  }
}

template <size_t kDigits>
void pack_blocks(const float* from, size_t columns, float* to) {
  constexpr size_t kColumns = kLanes * kDigits;
  for (; columns >= kColumns; columns -= kColumns, from += kColumns, to += kLanes * (kDigits + 1)) {
    pack_block<kDigits>(from, to);
  }
  if (columns > 0) {
    float last[kColumns] = {};
    std::memcpy(last, from, columns * sizeof(float));
    pack_block<kDigits>(last, to);
  }
}

}  // namespace

void pack_activations(Layout layout, const float* from, size_t columns, float* to) {
  switch (layout) {
    case Layout::kNibbles: return pack_blocks<8>(from, columns, to);
    case Layout::kBytes: return pack_blocks<4>(from, columns, to);
    case Layout::kPlain:
      std::memcpy(to, from, columns * sizeof(float));
      std::memset(to + columns, 0, (packed_floats(layout, columns) - columns) * sizeof(float));
  }
}

}  // namespace lme::cpu
