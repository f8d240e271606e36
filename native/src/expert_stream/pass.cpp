#include "expert_stream.h"

#include <algorithm>
#include <array>
#include <new>
#include <numeric>
#include <utility>

#include "file_mark.h"

namespace lme::stream {
namespace {

double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// Unwinds a pass; never leaves this file.
struct Failed {
  PassFailure why;
};

}  // namespace

// One run of a layer, from its ids to its last route.
class ExpertStream::Pass {
 public:
  Pass(ExpertStream& stream, size_t layer, uint64_t mark, size_t k, std::span<const uint32_t> ids,
       const Compute& compute)
      : stream_(stream),
        layer_(*stream.layers_[layer]),
        pool_(*stream.pools_[layer_.pool]),
        compute_(compute) {
    record_.layer = layer;
    record_.mark = mark;
    record_.k = k;
    sort_routes(ids);
    record_.routes.assign(ids.begin(), ids.end());
  }

  // Nobody reads into memory that an unwound stack held, and no slot stays claimed.
  ~Pass() {
    stream_.crew_.settle(reading_);
    const std::lock_guard lock(stream_.mutex_);
    for (Need& need : needs_) {
      if (need.stage == Stage::kReading) end_read(need, true);
    }
    stream_.passes_.splice(stream_.passes_.end(), record_in_);  // never throws
  }

  void run(std::span<const uint32_t> foretold) {
    look_up();
    submit_placed();
    prefetch(foretold);
    compute_resident();
    while (!reading_.empty() || unplaced_ > 0) {
      if (reading_.empty()) place_in_spent();
      take_arrived();
    }
  }

 private:
  enum class Stage : uint8_t { kResident, kUnplaced, kReading, kReadable, kDone, kFailed };
  struct Need {
    uint32_t expert;
    size_t first, count;  // in order_
    Stage stage = Stage::kUnplaced;
    int32_t slot = SlotTable::kNothing;
    size_t arrival = 0;  // in record_.arrivals
    bool counted = false;  // an earlier pass's record has the bytes
    std::unique_ptr<ReadOrder> order;
  };

  int32_t key_of(const Need& need) const { return layer_.first_key + static_cast<int32_t>(need.expert); }

  void sort_routes(std::span<const uint32_t> ids) {
    order_.resize(ids.size());
    std::iota(order_.begin(), order_.end(), 0u);
    std::sort(order_.begin(), order_.end(),
              [&](uint32_t a, uint32_t b) { return ids[a] != ids[b] ? ids[a] < ids[b] : a < b; });
    for (size_t i = 0; i < order_.size(); ++i) {
      const uint32_t expert = ids[order_[i]];
      if (needs_.empty() || needs_.back().expert != expert) {
        needs_.emplace_back();
        needs_.back().expert = expert;
        needs_.back().first = i;
        needs_.back().count = 0;
      }
      ++needs_.back().count;
    }
  }

  void look_up() {
    const std::lock_guard lock(stream_.mutex_);
    if (needs_.back().expert >= layer_.experts) {
      PassFailure failure{.kind = PassFailure::kRoute, .layer = record_.layer, .expert = 0, .read = {}, .routes = {}};
      for (const Need& need : needs_) failure.routes.push_back(need.expert);
      needs_.clear();
      serial_ = ++stream_.serial_;
      throw Failed{std::move(failure)};
    }
    serial_ = ++stream_.serial_;
    // Hits first: a slot that this pass uses is not given up in it.
    for (Need& need : needs_) {
      std::atomic_ref(layer_.uses[need.expert]).fetch_add(1, std::memory_order_relaxed);
      const int32_t slot = pool_.table.slot_of(key_of(need));
      if (slot == SlotTable::kNothing) continue;
      pool_.table.touch(slot, serial_);
      need.slot = slot;
      need.stage = Stage::kResident;
      record_.hits.push_back(static_cast<int32_t>(need.expert));
    }
    place_missing();
    count_guesses();
  }

  // Under the stream's lock, as all to the end of count_guesses.
  void place_missing() {
    unplaced_ = needs_.size() - record_.hits.size();
    if (unplaced_ == 0) return;
    record_.arrivals.reserve(unplaced_);
    starting_.reserve(unplaced_);
    const std::vector<SlotTable::Taken> taken = pool_.table.take(unplaced_, serial_);
    auto next = taken.begin();
    for (Need& need : needs_) {
      if (next == taken.end()) break;
      if (need.stage != Stage::kUnplaced) continue;
      if (Prefetched* ahead = begun_ahead(need)) {
        adopt(need, *ahead, *next++);
      } else {
        place(need, *next++);
      }
    }
    unplaced_ -= taken.size();
  }

  // The read of `need` that a guess has begun.
  Prefetched* begun_ahead(const Need& need) {
    Prefetched* const ahead = pool_.reserve.find(key_of(need), stream_.crew_);
    if (ahead == nullptr) return nullptr;
    // What nobody has begun is read like any other.
    return stream_.crew_.withdraw(*ahead->order) == ReadOrder::State::kIdle ? nullptr : ahead;
  }

  // The expert stays in the slot that it was read into; the slot that it would have got is the reserve's now.
  void adopt(Need& need, Prefetched& ahead, SlotTable::Taken taken) {
    need.slot = std::exchange(ahead.slot, taken.slot);
    need.stage = Stage::kReading;
    need.arrival = record_.arrivals.size();
    need.counted = std::exchange(ahead.told, false);
    need.order = std::exchange(ahead.order, std::make_unique<ReadOrder>());
    ahead.key = SlotTable::kNothing;
    pool_.table.order().use(key_of(need));
    record_.arrivals.push_back({static_cast<int32_t>(need.expert), need.slot, taken.slot, taken.evicted, false});
    record_.prefetched += !need.counted;
    ++record_.prefetch_used;
    if (reading_.empty()) began_ = Clock::now();
    reading_.push_back(need.order.get());
  }

  // The guesses for this layer that were wrong.
  void count_guesses() {
    for (Prefetched& ahead : pool_.reserve.held()) {
      if (ahead.key == SlotTable::kNothing || ahead.layer != record_.layer || ahead.told) continue;
      const ReadOrder::State state = stream_.crew_.withdraw(*ahead.order);
      if (state == ReadOrder::State::kIdle) continue;
      ahead.told = true;
      ++record_.prefetched;
      // What fails later counts as read: nobody waits for it to find out.
      if (state == ReadOrder::State::kReading || !ahead.order->failure) record_.bytes += pool_.record_bytes;
    }
  }

  // Under the stream's lock. The use counts from now on: the order of uses must not depend on the disk.
  void place(Need& need, SlotTable::Taken taken) {
    need.slot = taken.slot;
    need.stage = Stage::kReading;
    need.arrival = record_.arrivals.size();
    record_.arrivals.push_back({static_cast<int32_t>(need.expert), taken.slot, taken.slot, taken.evicted, false});
    pool_.table.order().use(key_of(need));
    need.order = std::make_unique<ReadOrder>();
    stream_.address(*need.order, layer_, need.expert, taken.slot);
    starting_.push_back(need.order.get());
  }

  void submit_placed() {
    if (starting_.empty()) return;
    if (reading_.empty()) began_ = Clock::now();
    stream_.crew_.submit(starting_, record_.hits.empty());
    reading_.insert(reading_.end(), starting_.begin(), starting_.end());
    starting_.clear();
  }

  // Begins reading what the next layer will probably need.
  void prefetch(std::span<const uint32_t> foretold) {
    if (!stream_.predictor_) return;
    Predictor& predictor = *stream_.predictor_;
    std::vector<uint32_t> asked;
    for (const Need& need : needs_) asked.push_back(need.expert);
    const auto here = static_cast<uint32_t>(record_.layer);
    predictor.observe(here, asked);
    const size_t next = stream_.after(record_.layer);
    Layer& layer = *stream_.layers_[next];
    Pool& pool = *stream_.pools_[layer.pool];
    std::vector<ReadOrder*> orders;
    {
      const std::lock_guard lock(stream_.mutex_);
      if (pool.reserve.slots() == 0) return;
      std::vector<uint8_t> present(layer.experts);
      for (size_t e = 0; e < layer.experts; ++e) {
        present[e] = pool.table.slot_of(layer.first_key + static_cast<int32_t>(e)) != SlotTable::kNothing;
      }
      for (const Prefetched& ahead : pool.reserve.held()) {
        const int32_t e = ahead.key - layer.first_key;
        if (ahead.layer == next && e >= 0 && pool.reserve.find(ahead.key, stream_.crew_) == &ahead) {
          present[static_cast<size_t>(e)] = 1;
        }
      }
      std::array<uint32_t, Predictor::kCandidates> guesses;
      const std::span<uint32_t> out = std::span(guesses).first(std::min(guesses.size(), pool.reserve.slots()));
      const size_t count = predictor.guess(here, asked, foretold, present, out);
      for (const uint32_t expert : out.first(count)) {
        Prefetched* const ahead = pool.reserve.room(serial_, stream_.crew_);
        if (ahead == nullptr) break;
        ahead->key = layer.first_key + static_cast<int32_t>(expert);
        ahead->layer = next;
        ahead->told = false;
        ahead->begun = serial_;
        stream_.address(*ahead->order, layer, expert, ahead->slot);
        orders.push_back(ahead->order.get());
      }
    }
    stream_.crew_.submit_idle(orders);
  }

  void compute_resident() {
    for (Need& need : needs_) {
      if (need.stage == Stage::kResident) need.stage = Stage::kReadable;
    }
    land(stream_.crew_.finished(reading_));  // what was read ahead
    compute_readable();
  }

  // More experts than slots that may be given up: those that have been computed make room for the rest.
  void place_in_spent() {
    {
      const std::lock_guard lock(stream_.mutex_);
      for (Need& need : needs_) {
        if (need.stage != Stage::kUnplaced) continue;
        const auto spent = std::find_if(needs_.rbegin(), needs_.rend(), [&](const Need& n) {
          return n.stage == Stage::kDone && n.slot != SlotTable::kNothing && !pool_.table.pinned(n.slot);
        });
        if (spent == needs_.rend()) break;
        pool_.table.clear(spent->slot);
        place(need, {std::exchange(spent->slot, SlotTable::kNothing), key_of(*spent)});
        --unplaced_;
      }
      if (starting_.empty()) {
        unplaced_ = 0;
        throw Failed{{.kind = PassFailure::kSlots, .layer = record_.layer, .expert = 0, .read = {}, .routes = {}}};
      }
    }
    submit_placed();
  }

  void take_arrived() {
    const auto stood = Clock::now();
    const std::vector<ReadOrder*> done = stream_.crew_.await(reading_);
    record_.wait_seconds += seconds(Clock::now() - stood);
    land(done);
    compute_readable();
  }

  // These reads have ended.
  void land(const std::vector<ReadOrder*>& done) {
    if (done.empty()) return;
    for (ReadOrder* order : done) check_files(*order);
    {
      const std::lock_guard lock(stream_.mutex_);
      for (Need& need : needs_) {
        if (std::find(done.begin(), done.end(), need.order.get()) == done.end()) continue;
        ended_ = std::max(ended_, need.order->finished);
        end_read(need, need.order->failure.has_value());
      }
      if (reading_.empty()) record_.read_seconds += seconds(std::max(ended_, began_) - began_);
    }
    if (failed_ != nullptr) fail();
  }

  [[noreturn]] void fail() {
    // What is under way ends, what has not begun is left; then the first bad expert is told.
    stream_.crew_.settle(reading_);
    const std::lock_guard lock(stream_.mutex_);
    for (Need& need : needs_) {
      if (need.stage != Stage::kReading) continue;
      const bool arrived = need.order->state == ReadOrder::State::kFinished;
      if (arrived) check_files(*need.order);
      end_read(need, !arrived || need.order->failure.has_value());
    }
    reading_.clear();
    record_.read_seconds += seconds(Clock::now() - began_);
    PassFailure failure{.kind = PassFailure::kRead,
                        .layer = record_.layer,
                        .expert = failed_->expert,
                        .read = failed_->order->failure,
                        .routes = {}};
    throw Failed{std::move(failure)};
  }

  // Bytes without a checksum are those that were opened only as long as nobody writes to the file.
  void check_files(ReadOrder& order) const {
    if (order.failure || order.crc) return;
    for (size_t i = 0; i < order.fds.size(); ++i) {
      if (file_mark(order.fds[i]) == layer_.files.marks.at(order.fds[i])) continue;
      order.failure = Failure{.kind = Failure::kRead, .job = 0, .segment = i, .error = kFileChanged};
      return;
    }
  }

  // Under the stream's lock: the expert is in its slot, or the slot is empty.
  void end_read(Need& need, bool failed) {
    if (failed) {
      need.stage = Stage::kFailed;
      record_.arrivals[need.arrival].failed = true;
      pool_.table.offer(need.slot);
      if (need.order->failure && (failed_ == nullptr || need.expert < failed_->expert)) failed_ = &need;
      return;
    }
    pool_.table.put(key_of(need), need.slot, serial_);
    if (!need.counted) record_.bytes += pool_.record_bytes;
    need.stage = Stage::kReadable;
  }

  void compute_readable() {
    routes_.clear();
    slots_.clear();
    for (Need& need : needs_) {
      if (need.stage != Stage::kReadable) continue;
      for (size_t i = need.first; i < need.first + need.count; ++i) {
        routes_.push_back(order_[i]);
        slots_.push_back(static_cast<uint32_t>(need.slot));
      }
    }
    if (!routes_.empty()) compute_(routes_, slots_);
    for (Need& need : needs_) {
      if (need.stage == Stage::kReadable) need.stage = Stage::kDone;
    }
  }

  ExpertStream& stream_;
  Layer& layer_;
  Pool& pool_;
  const Compute& compute_;
  std::list<PassRecord> record_in_ = std::list<PassRecord>(1);
  PassRecord& record_ = record_in_.front();
  uint64_t serial_ = 0;
  std::vector<uint32_t> order_;   // routes by expert
  std::vector<uint32_t> routes_, slots_;  // to compute next
  std::vector<Need> needs_;       // by expert, ascending; not moved once orders are placed
  std::vector<ReadOrder*> starting_, reading_;
  size_t unplaced_ = 0;
  const Need* failed_ = nullptr;
  Clock::time_point began_{}, ended_{};
};

ExpertStream::Outcome ExpertStream::run(size_t layer, uint64_t mark, size_t k, std::span<const uint32_t> ids,
                                        std::span<const uint32_t> foretold, const Compute& compute) {
  const std::lock_guard turn(turn_);
  std::optional<Outcome> none;
  {
    const std::lock_guard lock(mutex_);
    if (skipping_) {
      none = Outcome::kSkipped;
    } else if (failure_) {
      none = Outcome::kFailed;
    }
  }
  if (none) {
    if (predictor_) predictor_->forget_pass();
    return *none;
  }
  try {
    Pass(*this, layer, mark, k, ids, compute).run(foretold);
    return Outcome::kComputed;
  } catch (Failed& failed) {
    const std::lock_guard lock(mutex_);
    failure_ = std::move(failed.why);
  } catch (const std::bad_alloc&) {
    no_memory(layer);
  }
  if (predictor_) predictor_->forget_pass();
  return Outcome::kFailed;
}

ExpertStream::Outcome ExpertStream::no_memory(size_t layer) {
  const std::lock_guard lock(mutex_);
  if (!failure_) {
    failure_ = PassFailure{.kind = PassFailure::kMemory, .layer = layer, .expert = 0, .read = {}, .routes = {}};
  }
  return Outcome::kFailed;
}

}  // namespace lme::stream
