// What passes did, for whoever keeps the tables that policies decide by. Data only.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "batch.h"

namespace lme::stream {

// One expert that was not in its pool when a pass asked for it.
struct Arrival {
  int32_t expert;
  int32_t slot;     // it is there now; after a failed read the slot is empty
  int32_t taken;    // the slot that was given up for it: the same, or one that now belongs to the reserve in place of it
  int32_t evicted;  // the key that had to leave that slot, or SlotTable::kNothing
  bool failed;
};

// One layer's part in one forward pass.
struct PassRecord {
  uint64_t mark = 0;  // the caller's own
  size_t layer = 0;  // as numbered by ExpertStream::add_layer
  size_t k = 0;
  std::vector<uint32_t> routes;    // [tokens, k]
  std::vector<int32_t> hits;       // distinct experts, ascending
  std::vector<Arrival> arrivals;   // in the order of their placing
  size_t prefetched = 0;           // experts of this layer whose read was begun on a guess, needed or not
  size_t prefetch_used = 0;        // arrivals whose read had been begun on a guess
  uint64_t bytes = 0;              // read from disk
  double read_seconds = 0;         // from the first read's beginning to the last one's end
  double wait_seconds = 0;         // in which nothing was computed because of them
};

// Instead of an errno: the file has no checksums, and was written to since its layer was added.
constexpr int kFileChanged = -1;

// Why a pass came to nothing.
struct PassFailure {
  enum Kind { kRead, kRoute, kSlots, kMemory } kind;
  size_t layer;
  uint32_t expert = 0;           // kRead
  std::optional<Failure> read;   // kRead
  std::vector<uint32_t> routes;  // kRoute: the distinct ids, ascending
};

struct Log {
  std::list<PassRecord> passes;
  std::optional<PassFailure> failure;
};

}  // namespace lme::stream
