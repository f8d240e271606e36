// Which expert lies in which slot of a pool, which slots are free, and which one is given up next. Knows no files or
// threads, and of policies the order alone. Not locked: its owner is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "eviction_order.h"

namespace lme::stream {

// Experts are named by keys, 0 to keys - 1. Passes are stamped with serial numbers that only grow.
class SlotTable {
 public:
  static constexpr int32_t kNothing = -1;

  // Every slot is the caller's at first.
  SlotTable(size_t slots, OrderRule rule);

  size_t slots() const { return key_in_.size(); }
  size_t keys() const { return slot_of_.size(); }
  // The order in which experts leave. `add_layer` is called here.
  EvictionOrder& order() { return order_; }
  // Room for the experts of one more layer; returns the key of the first.
  int32_t add_layer(size_t experts);

  int32_t slot_of(int32_t key) const { return slot_of_[static_cast<size_t>(key)]; }
  int32_t key_in(int32_t slot) const { return key_in_[static_cast<size_t>(slot)]; }
  bool is_free(int32_t slot) const { return is_free_[static_cast<size_t>(slot)]; }

  // `key` is readable in `slot`, which held nothing. It counts as used in `serial`, but nobody has used it.
  void put(int32_t key, int32_t slot, uint64_t serial);
  // The slot holds nothing any more, and is the caller's.
  void clear(int32_t slot);
  // The slot, which holds nothing, is nobody's any more: the next to be taken.
  void offer(int32_t slot);
  // The pass `serial` uses the expert in `slot`.
  void touch(int32_t slot, uint64_t serial);
  // Pinned slots are never taken.
  void pin(int32_t slot) { pinned_[static_cast<size_t>(slot)] = true; }
  bool pinned(int32_t slot) const { return pinned_[static_cast<size_t>(slot)]; }
  void unpin_all() { pinned_.assign(pinned_.size(), false); }

  struct Taken {
    int32_t slot;
    int32_t evicted;  // the key that was in it, or kNothing
  };
  // Empties up to `count` slots, which are the caller's then: free ones first, then those of the experts that leave
  // next, never one that `serial` has used. Fewer where there are no such slots.
  std::vector<Taken> take(size_t count, uint64_t serial);
  // The experts that would leave next, in order; Python's `EvictionPolicy.candidates`.
  std::vector<int32_t> next(size_t count, uint64_t serial);

 private:
  EvictionOrder order_;
  std::vector<int32_t> slot_of_;  // by key
  std::vector<int32_t> key_in_;   // by slot
  std::vector<uint64_t> used_;    // by slot: the last pass
  std::vector<bool> pinned_;      // by slot
  std::vector<bool> is_free_;     // by slot
  std::vector<int32_t> free_;     // the last is taken first
};

}  // namespace lme::stream
