#include "read_crew.h"

#include <signal.h>

#include <algorithm>
#include <exception>

namespace lme::stream {

ReadCrew::ReadCrew(size_t threads) : wanted_(threads) {}

ReadCrew::~ReadCrew() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  queued_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReadCrew::start_threads() {
  if (!threads_.empty()) return;
  // A new thread inherits the signal mask: signals belong to the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    while (threads_.size() < wanted_) threads_.emplace_back([this] { serve(); });
  } catch (const std::exception&) {
    // No more threads, or no memory for them: whoever awaits reads too, so it is only slower.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ReadCrew::submit(std::span<ReadOrder* const> orders, bool stays) {
  {
    const std::lock_guard lock(mutex_);
    start_threads();
    for (ReadOrder* order : orders) {
      order->state = ReadOrder::State::kQueued;
      order->failure.reset();
      queue_.push_back(order);
    }
  }
  const size_t helpers = std::min(orders.size() - (stays ? 1 : 0), wanted_);
  for (size_t i = 0; i < helpers; ++i) queued_.notify_one();
}

void ReadCrew::read(ReadOrder& order) noexcept {
  const Batch batch{.segments = order.segments,
                    .slots = order.slots,
                    .targets = {&order.slot, 1},
                    .fds = order.fds,
                    .offsets = order.offsets,
                    .crcs = order.crc ? std::optional(std::span<const uint32_t>(&*order.crc, 1)) : std::nullopt,
                    .threads = 1,
                    .direct = order.direct};
  order.failure = lme::read(batch).failure;  // one thread: takes no locks, and reports a lack of memory itself
  order.finished = Clock::now();
}

void ReadCrew::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    queued_.wait(lock, [&] { return closing_ || !queue_.empty(); });
    if (closing_) return;
    ReadOrder* order = queue_.front();
    queue_.pop_front();
    order->state = ReadOrder::State::kReading;
    lock.unlock();
    read(*order);
    lock.lock();
    order->state = ReadOrder::State::kFinished;
    finished_.notify_all();
  }
}

std::vector<ReadOrder*> ReadCrew::await(std::vector<ReadOrder*>& orders) {
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto rest = std::stable_partition(
        orders.begin(), orders.end(), [](const ReadOrder* o) { return o->state != ReadOrder::State::kFinished; });
    if (rest != orders.end() || orders.empty()) {
      std::vector<ReadOrder*> done(rest, orders.end());
      orders.erase(rest, orders.end());
      return done;
    }
    const auto waiting = std::find_if(orders.begin(), orders.end(),
                                      [](const ReadOrder* o) { return o->state == ReadOrder::State::kQueued; });
    if (waiting == orders.end()) {
      finished_.wait(lock);
      continue;
    }
    ReadOrder* order = *waiting;
    std::erase(queue_, order);
    order->state = ReadOrder::State::kReading;
    lock.unlock();
    read(*order);
    lock.lock();
    order->state = ReadOrder::State::kFinished;
  }
}

void ReadCrew::settle(std::span<ReadOrder* const> orders) {
  std::unique_lock lock(mutex_);
  for (ReadOrder* order : orders) {
    if (order->state != ReadOrder::State::kQueued) continue;
    std::erase(queue_, order);
    order->state = ReadOrder::State::kIdle;
  }
  finished_.wait(lock, [&] {
    return std::none_of(orders.begin(), orders.end(),
                        [](const ReadOrder* o) { return o->state == ReadOrder::State::kReading; });
  });
}

}  // namespace lme::stream
