// A model's routed experts while most are on disk: passes look their experts up, read those that are missing and
// compute the others meanwhile, without asking anybody. Owns pools, layers, the turn of passes, and their log.
// Knows neither Python nor MLX, no arithmetic, and of policies no more than the order that they gave to a pool.
//
// One thread at a time runs passes; any other may drain and wait meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "batch.h"
#include "file_mark.h"
#include "pass_log.h"
#include "predictor.h"
#include "read_crew.h"
#include "reserve.h"
#include "slot_table.h"

namespace lme::stream {

// Where the experts of a layer lie on disk, as in Batch: one place per expert, or one per expert and segment.
struct LayerFiles {
  std::vector<int32_t> fds;
  std::vector<int64_t> offsets;
  std::vector<uint32_t> crcs;  // empty: unchecked
  std::map<int32_t, FileMark> marks = {};  // of unchecked files, when the layer was added
};

class ExpertStream {
 public:
  // Computes routes: `routes` are places in the pass's ids, and `slots` says where the expert of each lies.
  using Compute = std::function<void(std::span<const uint32_t> routes, std::span<const uint32_t> slots)>;

  // `threads` read besides the one that runs a pass.
  ExpertStream(size_t threads, bool direct) : direct_(direct), crew_(threads) {}

  // `memory` holds what the segments point into. No slot may be taken before `offer`. Throws as check_segments and
  // EvictionOrder.
  size_t add_pool(std::vector<Segment> segments, size_t slots, OrderRule rule, std::shared_ptr<const void> memory);
  // A pool's layers are added in the order in which a forward pass visits them. The descriptors stay open until nothing
  // is under way any more. Throws as Batch::check.
  size_t add_layer(size_t pool, size_t experts, LayerFiles files);
  size_t experts(size_t layer) const { return layers_.at(layer)->experts; }
  size_t slots(size_t layer) const { return pools_[layers_.at(layer)->pool]->table.slots(); }
  // The layer that the next pass will probably be of: the next one, and after the last the first.
  size_t after(size_t layer) const { return layer + 1 == layers_.size() ? 0 : layer + 1; }
  // For each expert the passes that asked for it, counted with relaxed atomics; lasts as long as this.
  uint64_t* uses(size_t layer) { return layers_.at(layer)->uses.data(); }
  size_t slots_of(size_t pool) const { return pools_.at(pool)->table.slots(); }
  size_t keys_of(size_t pool) const { return pools_.at(pool)->table.keys(); }
  // The key of a layer's first expert in its pool; the others follow.
  int32_t first_key(size_t layer) const { return layers_.at(layer)->first_key; }

  // --- for whoever queues passes ---

  // A pass is being queued. It counts as queued or running as long as the ticket lives: whoever queues it may drop it
  // without running it. The stream must outlive the ticket.
  std::shared_ptr<void> expect();
  // Waits until no pass is queued or running, and nothing is read.
  void wait();
  // While on, passes compute nothing and leave everything as it is: their results will be thrown away.
  void skip(bool on);

  // --- for the owner of the tables; what it changes goes for passes that begin afterwards ---

  // `key` was read into `slot` (kNothing: the slot was emptied, and is the caller's) by somebody else, while no pass
  // ran. Throws std::invalid_argument: it is in another.
  void set(size_t pool, int32_t slot, int32_t key);
  // Passes may take `slot`. Throws std::invalid_argument: it holds something, or they might before.
  void offer(size_t pool, int32_t slot);
  // Pinned slots are never taken.
  void pin(size_t pool, int32_t slot);
  void unpin_all();
  std::vector<int32_t> keys(size_t pool);  // by slot
  // Calls `change` with the order in which the pool's experts leave. Passes tell it of uses; the rest is the caller's.
  void order(size_t pool, const std::function<void(EvictionOrder&)>& change);
  // The keys that would leave next, in order.
  std::vector<int32_t> next(size_t pool, size_t count);

  // From now on experts are guessed and read ahead, where pools have a reserve. After the last add_layer, before any
  // pass. Throws as Predictor, and when layers differ in their number of experts.
  void prefetch();
  // The slots, which hold nothing and are nobody's, are kept for reads ahead, instead of those before. While no pass is
  // queued.
  void reserve(size_t pool, std::span<const int32_t> slots);

  // The log since the last call. The first failure stays, and every pass fails, until it is forgiven.
  Log drain();
  void forgive();

  // --- for the thread that computes ---

  enum class Outcome : uint8_t { kComputed, kSkipped, kFailed };

  // One pass: `ids` [tokens, k]; its record has `mark`. Calls `compute` for disjoint sets of routes, all together every
  // one. Otherwise the pass was to be skipped, or it failed and drain() says why; some routes may be missing then.
  // `foretold`: experts of the layer after it, distinct, the likeliest first; empty where nobody can tell.
  Outcome run(size_t layer, uint64_t mark, size_t k, std::span<const uint32_t> ids,
              std::span<const uint32_t> foretold, const Compute& compute);
  // The pass came to nothing before it was run: there was no memory for its arguments.
  Outcome no_memory(size_t layer);

 private:
  struct Pool {
    std::vector<Segment> segments;
    SlotTable table;
    uint64_t record_bytes;
    std::shared_ptr<const void> memory;
    Reserve reserve = {};
  };
  struct Layer {
    size_t pool, experts;
    int32_t first_key;
    LayerFiles files;
    std::vector<uint64_t> uses;
  };
  class Pass;

  void address(ReadOrder& order, const Layer& layer, size_t expert, int32_t slot) const;

  const bool direct_;
  std::mutex turn_;  // held by the thread that runs a pass, all the while; nobody else takes it
  std::optional<Predictor> predictor_;  // whose turn it is uses it

  std::mutex mutex_;  // all below; never held while anything is waited for, read or computed
  std::condition_variable idle_;
  std::vector<std::unique_ptr<Pool>> pools_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::list<PassRecord> passes_;
  std::optional<PassFailure> failure_;
  uint64_t serial_ = 0;
  size_t expected_ = 0;
  bool skipping_ = false;

  ReadCrew crew_;  // last: its threads end first
};

}  // namespace lme::stream
