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

void ReadCrew::submit_idle(std::span<ReadOrder* const> orders) {
  if (orders.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    start_threads();
    if (threads_.empty()) return;  // nobody is ever idle
    for (ReadOrder* order : orders) {
      order->state = ReadOrder::State::kQueued;
      order->failure.reset();
      idle_queue_.push_back(order);
    }
    if (!idle_turn()) return;  // whoever ends the last urgent read goes on with these
  }
  queued_.notify_one();
}

ReadOrder::State ReadCrew::state(const ReadOrder& order) const {
  const std::lock_guard lock(mutex_);
  return order.state;
}

ReadOrder::State ReadCrew::withdraw(ReadOrder& order) {
  const std::lock_guard lock(mutex_);
  take_off(order);
  return order.state;
}

// Under the lock: whether the order was queued; it is idle now.
bool ReadCrew::take_off(ReadOrder& order) {
  if (order.state != ReadOrder::State::kQueued) return false;
  std::erase(queue_, &order);
  std::erase(idle_queue_, &order);
  order.state = ReadOrder::State::kIdle;
  return true;
}

void ReadCrew::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    queued_.wait(lock, [&] { return closing_ || !queue_.empty() || idle_turn(); });
    if (closing_) return;
    const bool urgent = !queue_.empty();
    std::deque<ReadOrder*>& from = urgent ? queue_ : idle_queue_;
    ReadOrder* order = from.front();
    from.pop_front();
    order->state = ReadOrder::State::kReading;
    if (urgent) {
      ++urgent_;
    } else {
      idling_ = true;
    }
    lock.unlock();
    read(*order);
    lock.lock();
    order->state = ReadOrder::State::kFinished;
    if (urgent) {
      --urgent_;
    } else {
      idling_ = false;
    }
    finished_.notify_all();
  }
}

std::vector<ReadOrder*> ReadCrew::finished(std::vector<ReadOrder*>& orders) {
  const std::lock_guard lock(mutex_);
  return take_finished(orders);
}

// Under the lock.
std::vector<ReadOrder*> ReadCrew::take_finished(std::vector<ReadOrder*>& orders) {
  const auto rest = std::stable_partition(
      orders.begin(), orders.end(), [](const ReadOrder* o) { return o->state != ReadOrder::State::kFinished; });
  std::vector<ReadOrder*> done(rest, orders.end());
  orders.erase(rest, orders.end());
  return done;
}

std::vector<ReadOrder*> ReadCrew::await(std::vector<ReadOrder*>& orders) {
  std::unique_lock lock(mutex_);
  for (;;) {
    std::vector<ReadOrder*> done = take_finished(orders);
    if (!done.empty() || orders.empty()) return done;
    const auto waiting = std::find_if(orders.begin(), orders.end(),
                                      [](const ReadOrder* o) { return o->state == ReadOrder::State::kQueued; });
    if (waiting == orders.end()) {
      finished_.wait(lock);
      continue;
    }
    ReadOrder* order = *waiting;
    take_off(*order);
    order->state = ReadOrder::State::kReading;
    ++urgent_;
    lock.unlock();
    read(*order);
    lock.lock();
    order->state = ReadOrder::State::kFinished;
    --urgent_;
    if (idle_turn()) queued_.notify_one();
  }
}

void ReadCrew::settle(std::span<ReadOrder* const> orders) {
  std::unique_lock lock(mutex_);
  for (ReadOrder* order : orders) take_off(*order);
  finished_.wait(lock, [&] {
    return std::none_of(orders.begin(), orders.end(),
                        [](const ReadOrder* o) { return o->state == ReadOrder::State::kReading; });
  });
}

}  // namespace lme::stream
