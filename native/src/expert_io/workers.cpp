#include "workers.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

namespace lme {

Workers::Workers() : pid_(::getpid()) {}

Workers& Workers::of_this_process() {
  // Never destroyed: helpers sleep in it until the process ends, and at exit nothing tells when the last one
  // is gone.
  static std::atomic<Workers*> current{nullptr};
  Workers* pool = current.load(std::memory_order_acquire);
  if (pool != nullptr && pool->pid_ == ::getpid()) return *pool;
  // First use, or a forked child. The parent's pool is left alone: its mutex may be held by a thread that is
  // not here.
  Workers* fresh = new Workers;
  if (current.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread of this process was first; no helper has started in ours
  return *pool;
}

void Workers::run(size_t helpers, const std::function<void()>& work) {
  if (helpers == 0) {
    work();
    return;
  }
  Order order{&work, helpers, 0};
  {
    std::lock_guard lock(mutex_);
    grow(helpers);
    orders_.push_back(&order);
  }
  for (size_t i = 0; i < helpers; ++i) ordered_.notify_one();
  work();
  // `order` lives on this stack: nobody may hold it when this returns.
  std::unique_lock lock(mutex_);
  std::erase(orders_, &order);
  finished_.wait(lock, [&] { return order.running == 0; });
}

void Workers::grow(size_t helpers) {
  if (threads_ >= helpers) return;
  // A new thread inherits the signal mask: signals belong to the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (; threads_ < helpers; ++threads_) std::thread([this] { serve(); }).detach();
  } catch (const std::exception&) {
    // No more threads, or no memory for them: the caller works too, so the batch is only slower.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Workers::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ordered_.wait(lock, [&] { return !orders_.empty(); });
    Order* order = orders_.front();
    if (--order->wanted == 0) orders_.pop_front();
    ++order->running;
    lock.unlock();
    (*order->work)();
    lock.lock();
    if (--order->running == 0) finished_.notify_all();
  }
}

}  // namespace lme
