// Experts that are read because the next layer will probably need them, and the slots of a pool kept for that. Nobody
// leaves the pool for a guess: one that is needed changes places with the expert that would have left anyway.
// Knows neither how guesses are made nor when. Not locked: its owner is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "read_crew.h"
#include "slot_table.h"

namespace lme::stream {

// One slot of the reserve, and the expert that is being read or lies there, if any.
struct Prefetched {
  int32_t slot;
  int32_t key = SlotTable::kNothing;
  size_t layer = 0;
  bool told = false;    // some pass's record counts it
  uint64_t begun = 0;   // by the serial number of the pass that asked for it
  std::unique_ptr<ReadOrder> order = std::make_unique<ReadOrder>();
};

class Reserve {
 public:
  // Replaces the slots. No read is queued or under way.
  void keep(std::span<const int32_t> slots);
  size_t slots() const { return held_.size(); }

  // What lies or is read for `key`, or null. A failed read is nothing.
  Prefetched* find(int32_t key, const ReadCrew& crew);
  // A slot in which nothing is queued or read, nor about to be for the pass `serial`: an empty one, or else the one
  // whose expert was asked for longest ago. Null when there is none.
  Prefetched* room(uint64_t serial, const ReadCrew& crew);

  std::vector<Prefetched>& held() { return held_; }
  // Reads that may be queued or under way.
  std::vector<ReadOrder*> orders() const;

 private:
  std::vector<Prefetched> held_;
};

}  // namespace lme::stream
