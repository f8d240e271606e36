// Which expert lies in which slot of a pool, and which slot is given up next. Knows no files, threads or policies:
// the order in which experts leave comes from outside, as a hand of candidates. Not locked: its owner is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace lme::stream {

// A slot that may be taken, and what was in it when it was dealt (kNothing: it was empty).
struct Candidate {
  int32_t slot;
  int32_t key;
};

// Experts are named by keys, 0 to keys - 1. Uses are stamped with serial numbers that only grow.
class SlotTable {
 public:
  static constexpr int32_t kNothing = -1;

  explicit SlotTable(size_t slots);

  // Room for `count` more keys; returns the first of them.
  int32_t add_keys(size_t count);
  size_t keys() const { return slot_of_.size(); }
  size_t slots() const { return key_in_.size(); }

  int32_t slot_of(int32_t key) const { return slot_of_[static_cast<size_t>(key)]; }
  int32_t key_in(int32_t slot) const { return key_in_[static_cast<size_t>(slot)]; }

  // `key` is readable in `slot`, which held nothing.
  void put(int32_t key, int32_t slot, uint64_t serial);
  // The slot holds nothing any more.
  void clear(int32_t slot);
  void touch(int32_t slot, uint64_t serial) { used_[static_cast<size_t>(slot)] = serial; }
  // Pinned slots are never taken.
  void pin(int32_t slot) { pinned_[static_cast<size_t>(slot)] = true; }
  bool pinned(int32_t slot) const { return pinned_[static_cast<size_t>(slot)]; }
  void unpin_all() { pinned_.assign(pinned_.size(), false); }

  // Replaces the hand. A candidate that was used, emptied or filled after `serial` is passed over when its turn
  // comes.
  void deal(std::vector<Candidate> hand, uint64_t serial);
  size_t dealt() const { return hand_.size() - next_; }

  struct Taken {
    int32_t slot;
    int32_t evicted;  // the key that was in it, or kNothing
  };
  // Empties a slot and gives it to the use stamped `serial`: the hand's next valid one, or when the hand is used
  // up the one used longest ago, never one used in `serial` itself. Nothing when there is no such slot.
  std::optional<Taken> take(uint64_t serial);

 private:
  bool valid(const Candidate& candidate) const;
  Taken empty(int32_t slot, uint64_t serial);

  std::vector<int32_t> slot_of_;  // by key
  std::vector<int32_t> key_in_;   // by slot
  std::vector<uint64_t> used_;    // by slot
  std::vector<bool> pinned_;      // by slot
  std::vector<Candidate> hand_;
  size_t next_ = 0;
  uint64_t dealt_at_ = 0;
};

}  // namespace lme::stream
