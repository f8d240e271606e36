#include "file_read.h"

#include <limits.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "crc32.h"

namespace lme {
namespace {

#if defined(IOV_MAX)
constexpr size_t kPartsPerCall = IOV_MAX;
#else
constexpr size_t kPartsPerCall = 1024;  // Linux and macOS
#endif
// macOS refuses more than INT_MAX bytes in one call; Linux cuts just below that.
constexpr size_t kBytesPerCall = size_t{1} << 30;

// Page size of x86-64; no disk in use has larger logical blocks. Offsets, lengths and memory of direct reads
// obey it.
constexpr size_t kAlignment = 4096;
// Bounds a thread's buffer whatever the record's size. One request to a disk takes more, but what is still to be
// copied and summed up when the last request of several threads has ended would keep the disk idle.
constexpr size_t kDirectBlock = size_t{1} << 20;
// What a core's own cache keeps between reading, copying and summing up.
constexpr size_t kPiece = size_t{256} << 10;
constexpr size_t kHugePage = size_t{2} << 20;

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { std::free(data_); }

  // At least `size` bytes, aligned to kAlignment and more; nullptr when there is no memory.
  uint8_t* reserve(size_t size) {
    if (size > size_) {
      std::free(data_);
      size = (size + kHugePage - 1) / kHugePage * kHugePage;
      data_ = static_cast<uint8_t*>(std::aligned_alloc(kHugePage, size));
      size_ = data_ != nullptr ? size : 0;
#if defined(MADV_HUGEPAGE)
      // A request to a disk has a limited number of memory segments, and every small page is one: 2 MiB in
      // huge pages are one request instead of several (measured: 0.8 ms instead of 1.3 ms). A refusal costs
      // only that.
      if (data_ != nullptr) ::madvise(data_, size, MADV_HUGEPAGE);
#endif
    }
    return data_;
  }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// At least `needed` bytes from an aligned offset into an aligned buffer of `room` bytes.
ReadResult read_block(int fd, int64_t offset, uint8_t* buffer, size_t needed, size_t room) {
  size_t got = 0;
  while (got < needed) {
    // A short direct read may stop inside a block, and the next one has to begin on a boundary: read the
    // broken block again. That it then brings nothing new is how the end of the file shows.
    const size_t start = got / kAlignment * kAlignment;
    const ssize_t n = ::pread(fd, buffer + start, room - start, offset + static_cast<int64_t>(start));
    if (n < 0) {
      if (errno == EINTR) continue;
      return {got, errno};
    }
    const size_t reached = start + static_cast<size_t>(n);
    if (reached <= got) break;
    got = reached;
  }
  return {got, 0};
}

}  // namespace

ReadResult read_into(int fd, int64_t offset, std::span<iovec> parts, uint32_t* crc) {
  const size_t most = crc != nullptr ? kPiece : kBytesPerCall;
  size_t got = 0;
  while (!parts.empty()) {
    size_t count = 0, bytes = 0;
    while (count < std::min(parts.size(), kPartsPerCall) && bytes + parts[count].iov_len <= most) {
      bytes += parts[count++].iov_len;
    }
    const int64_t at = offset + static_cast<int64_t>(got);
    const ssize_t n = count > 0 ? ::preadv(fd, parts.data(), static_cast<int>(count), at)
                                : ::pread(fd, parts[0].iov_base, most, at);
    if (n < 0) {
      if (errno == EINTR) continue;
      return {got, errno};
    }
    if (n == 0) break;
    got += static_cast<size_t>(n);
    size_t filled = static_cast<size_t>(n);
    while (!parts.empty() && filled >= parts[0].iov_len) {
      if (crc != nullptr) *crc = crc32(*crc, parts[0].iov_base, parts[0].iov_len);
      filled -= parts[0].iov_len;
      parts = parts.subspan(1);
    }
    if (filled > 0) {
      if (crc != nullptr) *crc = crc32(*crc, parts[0].iov_base, filled);
      parts[0].iov_base = static_cast<uint8_t*>(parts[0].iov_base) + filled;
      parts[0].iov_len -= filled;
    }
  }
  return {got, 0};
}

ReadResult read_direct(int fd, int64_t offset, std::span<const iovec> parts, uint32_t* crc) {
  static thread_local AlignedBuffer kept;
  size_t wanted = 0;
  for (const iovec& part : parts) wanted += part.iov_len;

  size_t skip = static_cast<size_t>(offset) % kAlignment;  // unwanted bytes at the head of the first block
  int64_t at = offset - static_cast<int64_t>(skip);
  size_t part = 0, filled = 0;  // where in `parts` the next byte goes
  size_t got = 0;
  while (got < wanted) {
    const size_t needed = std::min(skip + wanted - got, kDirectBlock);
    const size_t room = (needed + kAlignment - 1) / kAlignment * kAlignment;
    uint8_t* buffer = kept.reserve(room);
    if (buffer == nullptr) return {got, ENOMEM};
    const ReadResult block = read_block(fd, at, buffer, needed, room);

    const uint8_t* from = buffer + skip;
    size_t have = block.got > skip ? std::min(block.got, needed) - skip : 0;
    got += have;
    while (have > 0) {
      const size_t n = std::min({have, parts[part].iov_len - filled, kPiece});
      std::memcpy(static_cast<uint8_t*>(parts[part].iov_base) + filled, from, n);
      if (crc != nullptr) *crc = crc32(*crc, from, n);
      from += n;
      have -= n;
      filled += n;
      if (filled == parts[part].iov_len) {
        ++part;
        filled = 0;
      }
    }
    if (block.got < needed) return {got, block.error};
    at += static_cast<int64_t>(needed);
    skip = 0;
  }
  return {got, 0};
}

}  // namespace lme
