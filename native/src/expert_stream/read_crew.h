// Reads of single records that go on while somebody computes. Owns the reading threads and the queue; the reading
// itself is expert_io's. Knows nothing of experts or slots' contents.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "batch.h"

namespace lme::stream {

using Clock = std::chrono::steady_clock;

// One record and the slot it goes into. Whoever submits it keeps it where it is until it is finished or withdrawn.
struct ReadOrder {
  std::span<const Segment> segments;
  size_t slots = 0;
  int64_t slot = 0;
  std::span<const int32_t> fds;      // one, or one per segment
  std::span<const int64_t> offsets;  // as many
  std::optional<uint32_t> crc;
  bool direct = false;

  enum class State : uint8_t { kIdle, kQueued, kReading, kFinished };
  State state = State::kIdle;  // the crew's, under its lock
  // Once finished:
  std::optional<Failure> failure;
  Clock::time_point finished;
};

class ReadCrew {
 public:
  // Threads are started when the first order comes.
  explicit ReadCrew(size_t threads);
  // Nobody may be waiting for an order.
  ~ReadCrew();
  ReadCrew(const ReadCrew&) = delete;
  ReadCrew& operator=(const ReadCrew&) = delete;

  // Begins reading. `stays`: the caller will come to `await` at once, and then reads too.
  void submit(std::span<ReadOrder* const> orders, bool stays);

  // Reads them when nothing else is to be read, one after the other: one keeps a disk busy, and all at once would come
  // in the way of what is needed next. Whoever needs one waits for it by `await`, if it has been begun.
  void submit_idle(std::span<ReadOrder* const> orders);

  ReadOrder::State state(const ReadOrder& order) const;
  // Takes the order out of the queue if nobody has begun it; its state then.
  ReadOrder::State withdraw(ReadOrder& order);

  // Takes the finished ones out of `orders` and returns them. When none is finished the caller reads one that
  // nobody has begun, or sleeps until one is.
  std::vector<ReadOrder*> await(std::vector<ReadOrder*>& orders);
  // The same without reading or sleeping: perhaps none.
  std::vector<ReadOrder*> finished(std::vector<ReadOrder*>& orders);

  // Takes orders that nobody has begun out of the queue, and waits for the others. All are finished or idle then.
  void settle(std::span<ReadOrder* const> orders);

 private:
  void serve();
  void start_threads();
  bool take_off(ReadOrder& order);
  static std::vector<ReadOrder*> take_finished(std::vector<ReadOrder*>& orders);
  bool idle_turn() const { return !idle_queue_.empty() && queue_.empty() && urgent_ == 0 && !idling_; }
  static void read(ReadOrder& order) noexcept;

  const size_t wanted_;
  mutable std::mutex mutex_;
  std::condition_variable queued_, finished_;
  std::deque<ReadOrder*> queue_, idle_queue_;
  size_t urgent_ = 0;  // reads under way of orders that were not submitted as idle
  bool idling_ = false;  // one of those that were is being read
  std::vector<std::thread> threads_;
  bool closing_ = false;
};

}  // namespace lme::stream
