#include "widen.h"

#include <cstring>

namespace lme {
namespace {

constexpr size_t kBlock = 32;

// Each block is loaded whole before any of it is stored. That makes from == to + nbytes correct: after
// element i the stores have reached 4(i+1), and the next unread element lies at nbytes + 2(i+1), never below
// it.
template <size_t kCount>
void widen_block(uint8_t* to, const uint8_t* from) {
  uint16_t narrow[kCount];
  uint32_t wide[kCount];
  std::memcpy(narrow, from, sizeof narrow);
  for (size_t i = 0; i < kCount; ++i) wide[i] = static_cast<uint32_t>(narrow[i]) << 16;
  std::memcpy(to, wide, sizeof wide);
}

}  // namespace

void widen_bfloat16(uint8_t* to, const uint8_t* from, size_t nbytes) {
  size_t left = nbytes / 2;
  for (; left >= kBlock; left -= kBlock, from += 2 * kBlock, to += 4 * kBlock) widen_block<kBlock>(to, from);
  for (; left > 0; --left, from += 2, to += 4) widen_block<1>(to, from);
}

}  // namespace lme
