#include "batch.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <new>
#include <vector>

#include "file_read.h"
#include "widen.h"
#include "workers.h"

namespace lme {
namespace {

#if defined(__APPLE__)
// A descriptor with F_NOCACHE takes any address, offset and length.
constexpr bool kDirectNeedsBlocks = false;
#else
constexpr bool kDirectNeedsBlocks = true;
#endif

// Reads jobs one after the other. One per thread and batch.
class RecordReader {
 public:
  explicit RecordReader(const Batch& batch)
      : batch_(batch), scattered_(batch.fds.size() != batch.targets.size()), parts_(batch.segments.size()) {}

  std::optional<Failure> read(size_t job) {
    const size_t count = batch_.segments.size();
    crc_ = 0;
    if (scattered_) {
      for (size_t s = 0; s < count; ++s) {
        if (auto failure = read_run(job, s, 1, job * count + s)) return failure;
      }
    } else if (auto failure = read_run(job, 0, count, job)) {
      return failure;
    }
    if (batch_.crcs) {
      if (const uint32_t expected = (*batch_.crcs)[job]; crc_ != expected) {
        return Failure{.kind = Failure::kChecksum, .job = job, .expected = expected, .actual = crc_};
      }
    }
    for (const Segment& segment : batch_.segments) {
      if (segment.widen) widen_bfloat16(slot_of(segment, job), landing_of(segment, job), segment.nbytes);
    }
    return std::nullopt;
  }

 private:
  uint8_t* slot_of(const Segment& segment, size_t job) const {
    return segment.base + static_cast<size_t>(batch_.targets[job]) * segment.stride;
  }

  // Where the bytes from disk go. Those that will be widened land in the upper half of their slot, and are
  // widened from there towards its beginning: see widen.h.
  uint8_t* landing_of(const Segment& segment, size_t job) const {
    return slot_of(segment, job) + (segment.stride - segment.nbytes);
  }

  // `count` segments from `first` on, which follow each other in the file at place `at` of the batch's lists.
  std::optional<Failure> read_run(size_t job, size_t first, size_t count, size_t at) {
    size_t wanted = 0;
    for (size_t s = 0; s < count; ++s) {
      const Segment& segment = batch_.segments[first + s];
      parts_[s] = {landing_of(segment, job), segment.nbytes};
      wanted += segment.nbytes;
    }
    const std::span<iovec> parts(parts_.data(), count);
    const int fd = batch_.fds[at];
    const int64_t offset = batch_.offsets[at];
    const bool blocks = batch_.direct && kDirectNeedsBlocks;
    uint32_t* const crc = batch_.crcs ? &crc_ : nullptr;
    const ReadResult result = blocks ? read_direct(fd, offset, parts, crc) : read_into(fd, offset, parts, crc);
    if (result.got == wanted) return std::nullopt;

    Failure failure{.kind = Failure::kRead, .job = job, .error = result.error};
    uint64_t before = 0;
    failure.segment = first;
    while (before + batch_.segments[failure.segment].nbytes <= result.got) {
      before += batch_.segments[failure.segment++].nbytes;
    }
    failure.offset = static_cast<uint64_t>(offset) + before;
    failure.wanted = batch_.segments[failure.segment].nbytes;
    failure.got = result.got - before;
    return failure;
  }

  const Batch& batch_;
  const bool scattered_;
  std::vector<iovec> parts_;
  uint32_t crc_ = 0;  // of the job's bytes so far
};

// Jobs are taken in order and every job taken is finished, so the first bad job is found whatever the threads
// do.
class Work {
 public:
  explicit Work(const Batch& batch) : batch_(batch) {}

  void run() noexcept {
    try {
      RecordReader reader(batch_);
      for (size_t job; (job = next_.fetch_add(1, std::memory_order_relaxed)) < batch_.targets.size();) {
        if (auto failure = reader.read(job)) report(*failure);
        if (failed_.load(std::memory_order_relaxed)) return;
      }
    } catch (const std::bad_alloc&) {
      report({.kind = Failure::kRead, .job = 0, .error = ENOMEM});
    }
  }

  const std::optional<Failure>& first_failure() const { return first_; }

 private:
  void report(const Failure& failure) noexcept {
    const std::lock_guard lock(mutex_);
    if (!first_ || failure.job < first_->job) first_ = failure;
    failed_.store(true, std::memory_order_relaxed);
  }

  const Batch& batch_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::optional<Failure> first_;
};

}  // namespace

Outcome read(const Batch& batch) {
  const size_t jobs = batch.targets.size();
  if (jobs == 0) return {0, std::nullopt};
  Work work(batch);
  const size_t threads = std::min(static_cast<size_t>(batch.threads), jobs);
  Workers::of_this_process().run(threads - 1, [&work] { work.run(); });
  if (work.first_failure()) return {0, work.first_failure()};
  uint64_t record = 0;
  for (const Segment& segment : batch.segments) record += segment.nbytes;
  return {record * jobs, std::nullopt};
}

}  // namespace lme
