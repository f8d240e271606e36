// A process's reading threads: started when first wanted, kept, and shared by all batches. Knows nothing of
// files.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>

namespace lme {

class Workers {
 public:
  // The pool of the process that asks: after a fork the child gets a new one, because threads do not survive
  // a fork.
  static Workers& of_this_process();

  // Runs `work` in the calling thread and at the same time in up to `helpers` others; returns when all have
  // returned. Never waits for a helper that has not begun, so a busy pool costs speed and cannot deadlock.
  // `work` must not throw.
  void run(size_t helpers, const std::function<void()>& work);

 private:
  struct Order {
    const std::function<void()>* work;
    size_t wanted;   // helpers that may still join
    size_t running;  // helpers that have joined and not finished
  };

  Workers();
  void grow(size_t helpers);
  void serve();

  const pid_t pid_;
  std::mutex mutex_;
  std::condition_variable ordered_;
  std::condition_variable finished_;
  std::deque<Order*> orders_;
  size_t threads_ = 0;
};

}  // namespace lme
