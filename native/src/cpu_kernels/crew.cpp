#include "crew.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace lme::cpu {
namespace {

inline void breathe() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long a helper watches for the next job before it sleeps. Longer gains nothing measurable and takes the
// CPU from whoever prepares that job.
constexpr auto kWatch = std::chrono::microseconds(20);
constexpr int kLooksPerClock = 64;

}  // namespace

size_t available_threads() {
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) return std::max(1, CPU_COUNT(&mask));
#elif defined(__APPLE__)
  // Performance cores: a product is as slow as its slowest share.
  int cores = 0;
  size_t size = sizeof cores;
  if (sysctlbyname("hw.perflevel0.logicalcpu", &cores, &size, nullptr, 0) == 0 && cores > 0) {
    return static_cast<size_t>(cores);
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

Crew::Crew() : pid_(::getpid()) {}

Crew& Crew::of_this_process() {
  // Never destroyed: helpers sleep in it until the process ends.
  static std::atomic<Crew*> current{nullptr};
  Crew* crew = current.load(std::memory_order_acquire);
  if (crew != nullptr && crew->pid_ == ::getpid()) return *crew;
  // First use, or a forked child: the parent's crew is left alone, its threads are not here.
  Crew* fresh = new Crew;
  if (current.compare_exchange_strong(crew, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread of this process was first; no helper has started in ours
  return *crew;
}

void Crew::take_items(Job& job) {
  for (size_t item; (item = job.next.fetch_add(1, std::memory_order_relaxed)) < job.items;) {
    job.call(job.context, item);
    job.done.fetch_add(1, std::memory_order_release);
  }
}

void Crew::run_together(size_t items, size_t threads, Call call, const void* context) {
  std::unique_lock owner(owner_, std::try_to_lock);
  if (!owner.owns_lock()) {
    for (size_t i = 0; i < items; ++i) call(context, i);
    return;
  }
  const size_t helpers = std::min({threads, items, kMostThreads}) - 1;
  grow(helpers);
  Job job{.call = call, .context = context, .items = items, .places = helpers};
  job_.store(&job);
  number_.fetch_add(1);
  if (sleepers_.load() > 0) number_.notify_all();
  take_items(job);
  // Nobody else may find the job now, and those who have found it are waited for: it lies on this stack.
  job_.store(nullptr);
  int looks = 0;
  while (job.done.load(std::memory_order_acquire) < items || visitors_.load() > 0) {
    if (++looks % 4096 == 0) std::this_thread::yield();
    breathe();
  }
}

void Crew::grow(size_t helpers) {
  if (helpers_ >= helpers) return;
  // A new thread inherits the signal mask: signals belong to the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (; helpers_ < helpers; ++helpers_) std::thread([this] { serve(); }).detach();
  } catch (const std::exception&) {
    // No more threads, or no memory for them: those that are there do the work.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Crew::serve() {
  uint32_t seen = 0;
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + kWatch;
    uint32_t number = number_.load();
    for (int looks = 1; number == seen; ++looks, number = number_.load()) {
      breathe();
      if (looks % kLooksPerClock != 0 || std::chrono::steady_clock::now() < until) continue;
      sleepers_.fetch_add(1);
      number_.wait(seen);
      sleepers_.fetch_sub(1);
    }
    seen = number;
    // Announced before the job is looked at: whoever withdraws it afterwards waits for this thread.
    visitors_.fetch_add(1);
    if (Job* job = job_.load(); job != nullptr && job->joined.fetch_add(1) < job->places) take_items(*job);
    visitors_.fetch_sub(1);
  }
}

}  // namespace lme::cpu
