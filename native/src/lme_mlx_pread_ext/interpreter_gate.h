// Keeps a thread that returns from a read from meeting an interpreter that is being torn down. Up to
// Python 3.13 taking the GIL then ends the thread by unwinding it, and unwinding through C++ that may not
// throw ends the process. So at exit the gate closes, and the interpreter waits for those who are inside.
#pragma once

#include <nanobind/nanobind.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

namespace lme {

class InterpreterGate {
 public:
  // Runs `work` without the GIL.
  template <typename Work>
  static auto pass(Work&& work) {
    const Visit visit;
    const nanobind::gil_scoped_release unlocked;
    return work();
  }

  // Called by Python's atexit, when threads that are not daemons have ended. Holds the GIL.
  static void close() {
    closed_ = true;
    const nanobind::gil_scoped_release unlocked;
    while (inside_.load() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  // The threads that were inside at a fork are not in the child.
  static void install() {
    pthread_atfork(nullptr, nullptr, [] { inside_ = 0; });
    nanobind::module_::import_("atexit").attr("register")(nanobind::cpp_function(&close));
  }

 private:
  // Made and destroyed while the GIL is held.
  struct Visit {
    Visit() {
      if (closed_)
        throw std::runtime_error("the interpreter is shutting down: end reading threads before exit");
      ++inside_;
    }
    ~Visit() { --inside_; }
  };

  static inline std::atomic<bool> closed_{false};
  static inline std::atomic<int> inside_{0};
};

}  // namespace lme
