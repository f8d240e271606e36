// Everything that can be wrong with a batch before the first byte is written.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch.h"

namespace lme {
namespace {

constexpr int64_t kMaxOffset = std::numeric_limits<int64_t>::max();

std::string item(const char* list, size_t index) {
  return std::string(list) + "[" + std::to_string(index) + "]";
}

void check_targets(std::span<const int64_t> targets, size_t slots) {
  for (size_t job = 0; job < targets.size(); ++job) {
    if (targets[job] < 0 || static_cast<uint64_t>(targets[job]) >= slots) {
      throw std::out_of_range(item("slots", job) + " is " + std::to_string(targets[job]) +
                              ": the banks have slots 0 to " + std::to_string(slots - 1));
    }
  }
  // Two jobs for one slot would write it at the same time from two threads.
  std::vector<int64_t> sorted(targets.begin(), targets.end());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    throw std::invalid_argument("slot " + std::to_string(*twice) +
                                " is named twice: give every record a slot of its own");
  }
}

}  // namespace

size_t check_segments(std::span<const Segment> segments) {
  if (segments.empty()) throw std::invalid_argument("there are no segments: name at least one array");
  size_t total = 0;
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = segments[s];
    if (segment.nbytes == 0)
      throw std::invalid_argument(item("nbytes", s) + " is 0: leave empty segments out");
    if (segment.nbytes > static_cast<size_t>(kMaxOffset) / 2 - total) {
      throw std::invalid_argument(item("nbytes", s) + " is " + std::to_string(segment.nbytes) +
                                  ": too large for a file");
    }
    total += segment.nbytes;
    if (segment.widen && segment.nbytes % 2 != 0) {
      throw std::invalid_argument(item("nbytes", s) + " is " + std::to_string(segment.nbytes) +
                                  ": bfloat16 to be widened takes an even number of bytes");
    }
    const size_t stride = segment.widen ? 2 * segment.nbytes : segment.nbytes;
    if (segment.stride != stride) {
      throw std::invalid_argument("a slot of " + item("arrays", s) + " is " + std::to_string(segment.stride) +
                                  " bytes, but " + std::to_string(segment.nbytes) + " bytes on disk" +
                                  (segment.widen ? ", widened," : "") + " fill " + std::to_string(stride));
    }
  }
  return total;
}

void Batch::check() const {
  const size_t record = check_segments(segments);
  const size_t jobs = targets.size();
  if (fds.size() != offsets.size() || (fds.size() != jobs && fds.size() != jobs * segments.size())) {
    throw std::invalid_argument("there are " + std::to_string(jobs) + " slots of " +
                                std::to_string(segments.size()) + " segments, " + std::to_string(fds.size()) +
                                " fds and " + std::to_string(offsets.size()) +
                                " offsets: give one fd and one offset per slot, or per slot and segment");
  }
  if (crcs && crcs->size() != jobs) {
    throw std::invalid_argument("there are " + std::to_string(jobs) + " slots and " +
                                std::to_string(crcs->size()) + " crcs: give one per slot, or None");
  }
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("threads is " + std::to_string(threads) + ": it must be from 1 to " +
                                std::to_string(kMaxThreads));
  }
  for (size_t i = 0; i < fds.size(); ++i) {
    if (fds[i] < 0) {
      throw std::invalid_argument(item("fds", i) + " is " + std::to_string(fds[i]) +
                                  ": give the number of an open file descriptor");
    }
    if (offsets[i] < 0 || offsets[i] > kMaxOffset - static_cast<int64_t>(record)) {
      throw std::invalid_argument(item("offsets", i) + " is " + std::to_string(offsets[i]) +
                                  ": an offset is at least 0, and offset + record must fit in 63 bits");
    }
  }
  check_targets(targets, slots);
}

}  // namespace lme
