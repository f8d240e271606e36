#include "slot_table.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>

namespace lme::stream {

SlotTable::SlotTable(size_t slots, OrderRule rule)
    : order_(std::move(rule)),
      key_in_(slots, kNothing),
      used_(slots, 0),
      pinned_(slots, false),
      is_free_(slots, false) {}

int32_t SlotTable::add_layer(size_t experts) {
  const int32_t first = order_.add_layer(experts);
  slot_of_.resize(order_.keys(), kNothing);
  return first;
}

void SlotTable::put(int32_t key, int32_t slot, uint64_t serial) {
  assert(key_in(slot) == kNothing && slot_of(key) == kNothing && !is_free(slot));
  slot_of_[static_cast<size_t>(key)] = slot;
  key_in_[static_cast<size_t>(slot)] = key;
  used_[static_cast<size_t>(slot)] = serial;
  order_.enter(key);
}

void SlotTable::clear(int32_t slot) {
  if (is_free(slot)) {
    is_free_[static_cast<size_t>(slot)] = false;
    // Whoever takes free slots begins with the last, too.
    free_.erase(std::prev(std::find(free_.rbegin(), free_.rend(), slot).base()));
  }
  int32_t& key = key_in_[static_cast<size_t>(slot)];
  if (key == kNothing) return;
  order_.leave(key);
  slot_of_[static_cast<size_t>(key)] = kNothing;
  key = kNothing;
}

void SlotTable::offer(int32_t slot) {
  assert(key_in(slot) == kNothing && !is_free(slot));
  is_free_[static_cast<size_t>(slot)] = true;
  free_.push_back(slot);
}

void SlotTable::touch(int32_t slot, uint64_t serial) {
  used_[static_cast<size_t>(slot)] = serial;
  order_.use(key_in(slot));
}

std::vector<SlotTable::Taken> SlotTable::take(size_t count, uint64_t serial) {
  std::vector<Taken> taken;
  taken.reserve(count);
  while (taken.size() < count && !free_.empty()) {
    const int32_t slot = free_.back();
    free_.pop_back();
    is_free_[static_cast<size_t>(slot)] = false;
    taken.push_back({slot, kNothing});
  }
  if (taken.size() == count) return taken;
  for (const int32_t key : next(count - taken.size(), serial)) {
    const int32_t slot = slot_of(key);
    clear(slot);
    taken.push_back({slot, key});
  }
  return taken;
}

std::vector<int32_t> SlotTable::next(size_t count, uint64_t serial) {
  return order_.choose(count, [&](int32_t key) {
    const auto slot = static_cast<size_t>(slot_of(key));
    return !pinned_[slot] && used_[slot] < serial;
  });
}

}  // namespace lme::stream
