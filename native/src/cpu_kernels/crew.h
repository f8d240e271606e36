// The threads that share a product. Knows nothing of matrices.
//
// A product takes tens of microseconds and the next follows soon, so helpers watch for a while after each
// before they sleep: waking one costs as much as a product.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace lme::cpu {

// CPUs that this process may run on (its affinity mask); at least 1.
size_t available_threads();

class Crew {
 public:
  static constexpr size_t kMostThreads = 64;

  // The crew of the process that asks. A forked child gets one of its own.
  static Crew& of_this_process();

  // Calls work(item) once for each item below `items`, from the calling thread and up to `threads` - 1 others;
  // returns when all are done. Never waits for a helper that has not begun, and while another thread is in
  // here the caller works alone: a busy machine costs speed only. `work` must not throw.
  template <typename Work>
  void run(size_t items, size_t threads, const Work& work) {
    if (threads <= 1 || items <= 1) {
      for (size_t i = 0; i < items; ++i) work(i);
      return;
    }
    run_together(items, threads, [](const void* context, size_t i) { (*static_cast<const Work*>(context))(i); },
                 &work);
  }

 private:
  using Call = void (*)(const void* context, size_t item);
  struct Job {
    Call call;
    const void* context;
    size_t items;
    size_t places;  // helpers that may join
    std::atomic<size_t> joined{0};
    std::atomic<size_t> next{0};
    std::atomic<size_t> done{0};
  };

  Crew();
  void run_together(size_t items, size_t threads, Call call, const void* context);
  static void take_items(Job& job);
  void grow(size_t helpers);
  void serve();

  const pid_t pid_;
  std::mutex owner_;                  // whoever has it publishes jobs
  std::atomic<Job*> job_{nullptr};    // the job that may be joined
  std::atomic<uint32_t> number_{0};   // counts the jobs published
  std::atomic<size_t> visitors_{0};   // helpers that may hold a job's address
  std::atomic<size_t> sleepers_{0};
  size_t helpers_ = 0;
};

}  // namespace lme::cpu
