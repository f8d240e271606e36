#include "slot_table.h"

#include <cassert>
#include <utility>

namespace lme::stream {

SlotTable::SlotTable(size_t slots) : key_in_(slots, kNothing), used_(slots, 0), pinned_(slots, false) {}

int32_t SlotTable::add_keys(size_t count) {
  const size_t first = slot_of_.size();
  slot_of_.resize(first + count, kNothing);
  return static_cast<int32_t>(first);
}

void SlotTable::put(int32_t key, int32_t slot, uint64_t serial) {
  assert(key_in(slot) == kNothing && slot_of(key) == kNothing);
  slot_of_[static_cast<size_t>(key)] = slot;
  key_in_[static_cast<size_t>(slot)] = key;
  touch(slot, serial);
}

void SlotTable::clear(int32_t slot) {
  int32_t& key = key_in_[static_cast<size_t>(slot)];
  if (key != kNothing) slot_of_[static_cast<size_t>(key)] = kNothing;
  key = kNothing;
}

void SlotTable::deal(std::vector<Candidate> hand, uint64_t serial) {
  hand_ = std::move(hand);
  next_ = 0;
  dealt_at_ = serial;
}

std::optional<SlotTable::Taken> SlotTable::take(uint64_t serial) {
  while (next_ < hand_.size()) {
    const Candidate candidate = hand_[next_++];
    if (valid(candidate)) return empty(candidate.slot, serial);
  }
  int32_t oldest = kNothing;
  for (size_t slot = 0; slot < key_in_.size(); ++slot) {
    // An empty slot that was not dealt is somebody else's.
    if (key_in_[slot] == kNothing || pinned_[slot] || used_[slot] >= serial) continue;
    if (oldest == kNothing || used_[slot] < used_[static_cast<size_t>(oldest)]) oldest = static_cast<int32_t>(slot);
  }
  if (oldest == kNothing) return std::nullopt;
  return empty(oldest, serial);
}

bool SlotTable::valid(const Candidate& candidate) const {
  const auto slot = static_cast<size_t>(candidate.slot);
  return key_in_[slot] == candidate.key && used_[slot] <= dealt_at_ && !pinned_[slot];
}

SlotTable::Taken SlotTable::empty(int32_t slot, uint64_t serial) {
  const int32_t evicted = key_in(slot);
  clear(slot);
  touch(slot, serial);
  return {slot, evicted};
}

}  // namespace lme::stream
