/* For LD_PRELOAD: positional reads of records (not of Python's own files) are interrupted, or stop early,
 * most of the time. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_uint calls, stutters;

/* Returns 1 when the call is to fail with EINTR; else *count may have become smaller. */
static int stutter(size_t* count) {
  unsigned call = atomic_fetch_add(&calls, 1);
  if (call % 3 == 0) {
    atomic_fetch_add(&stutters, 1);
    errno = EINTR;
    return 1;
  }
  if (call % 3 == 1 && *count > 4096) {
    atomic_fetch_add(&stutters, 1);
    *count = (*count / 3 + 4095) / 4096 * 4096;
  }
  return 0;
}

ssize_t pread64(int fd, void* buffer, size_t count, off64_t offset) {
  if (stutter(&count)) return -1;
  return syscall(SYS_pread64, fd, buffer, count, offset);
}

ssize_t pread(int fd, void* buffer, size_t count, off_t offset) { return pread64(fd, buffer, count, offset); }

ssize_t preadv64(int fd, const struct iovec* parts, int count, off64_t offset) {
  size_t first = parts[0].iov_len;
  if (stutter(&first)) return -1;
  if (first < parts[0].iov_len) return syscall(SYS_pread64, fd, parts[0].iov_base, first, offset);
  return syscall(SYS_preadv, fd, parts, (long)count, (long)offset, 0L);
}

ssize_t preadv(int fd, const struct iovec* parts, int count, off_t offset) {
  return preadv64(fd, parts, count, offset);
}

__attribute__((destructor)) static void tell(void) {
  if (stutters > 0) fprintf(stderr, "stuttered %u times\n", (unsigned)stutters);
}
