// A batch: which records of which files go into which slots of which banks. Owns the checks and the reading;
// knows neither Python nor MLX nor the format of the files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace lme {

constexpr int kMaxThreads = 64;

// One component of a record, and the bank (slot after slot) that it goes into.
struct Segment {
  uint8_t* base;
  size_t stride;  // bytes from slot to slot: nbytes, or 2 * nbytes when widened
  size_t nbytes;  // bytes on disk
  bool widen;     // bfloat16 on disk, float32 in the bank
};

struct Batch {
  std::span<const Segment> segments;
  size_t slots;  // of every bank
  // One per job. A job is one record and its slot.
  std::span<const int64_t> targets;
  // One per job (its segments follow each other), or one per job and segment, job after job.
  std::span<const int32_t> fds;
  std::span<const int64_t> offsets;
  // One per job, over the record's bytes as they are on disk; unchecked when absent.
  std::optional<std::span<const uint32_t>> crcs;
  int64_t threads;
  bool direct;

  // Throws std::invalid_argument or std::out_of_range, whose message names the bad value. Nothing has been
  // written then.
  void check() const;
};

struct Failure {
  enum Kind { kRead, kChecksum } kind;
  size_t job;
  // kRead: the segment in which it happened, its place in the file, its length, and how much of it arrived.
  size_t segment = 0;
  int error = 0;  // errno; 0 when the file ended
  uint64_t offset = 0, wanted = 0, got = 0;
  // kChecksum
  uint32_t expected = 0, actual = 0;
};

struct Outcome {
  uint64_t bytes;                  // read from disk and wanted
  std::optional<Failure> failure;  // of the first bad job, whatever the number of threads
};

// Fills the slots. Call check() first. After a failure the contents of every slot of the batch are
// unspecified.
Outcome read(const Batch& batch);

// Sum of the segments' bytes on disk. Throws as Batch::check does.
size_t check_segments(std::span<const Segment> segments);

}  // namespace lme
