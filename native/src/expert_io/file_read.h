// Positional reads that finish: interrupted and short reads are continued, and the kernel's limits on one
// call respected. Bytes are summed up piece by piece as they arrive, while a cache still holds them.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace lme {

struct ReadResult {
  size_t got;  // bytes that arrived, from the first one on
  int error;   // errno, or 0; with error == 0 fewer bytes than wanted mean that the file ended
};

// Fills `parts` in order from `offset`. Changes `parts`. `crc`, if given, is continued over the bytes that arrive.
ReadResult read_into(int fd, int64_t offset, std::span<iovec> parts, uint32_t* crc);

// The same for a descriptor opened with O_DIRECT: whole aligned blocks go into a buffer of the calling thread
// and from there into `parts`. The file may end anywhere after the last wanted byte.
ReadResult read_direct(int fd, int64_t offset, std::span<const iovec> parts, uint32_t* crc);

}  // namespace lme
