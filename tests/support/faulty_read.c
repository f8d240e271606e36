/* For LD_PRELOAD: positional reads of chosen files fail, stop early, come late or come wrong, as a control file
 * says at that moment. Owns nothing but that; `disk_faults.py` is its other side.
 *
 * FAULTY_PATHS: a part of the paths of the files concerned. FAULTY_CONTROL: the control file, the words below.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Per mille of the reads, decided one after another by a random number that `seed` and the call's number give. */
struct control {
  atomic_uint seed, fails, ends, flips, interrupts, shortened, delays, delay_us;
  atomic_uint stalled; /* while it is not 0, reads wait */
  /* Written here: */
  atomic_uint calls, failed, ended, flipped, interrupted, cut, delayed, waiting;
};

static struct control* control;
static const char* paths;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_control(void) {
  const char* path = getenv("FAULTY_CONTROL");
  paths = getenv("FAULTY_PATHS");
  int fd = path == NULL || paths == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void* mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (mapped != MAP_FAILED) control = mapped;
}

static int concerned(int fd) {
  pthread_once(&once, open_control);
  if (control == NULL) return 0;
  char link[64], name[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, name, sizeof name - 1);
  if (length < 0) return 0;
  name[length] = 0;
  return strstr(name, paths) != NULL;
}

static uint64_t mixed(uint64_t x) { /* SplitMix64 (Steele et al. 2014) */
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

static int drawn(uint64_t* state, unsigned per_mille, atomic_uint* count) {
  *state = mixed(*state);
  if (*state % 1000 >= per_mille) return 0;
  atomic_fetch_add(count, 1);
  return 1;
}

static ssize_t read_faultily(int fd, const struct iovec* parts, int count, int64_t offset) {
  if (!concerned(fd)) return syscall(SYS_preadv, fd, parts, (long)count, (long)offset, 0L);
  uint64_t state = ((uint64_t)control->seed << 32) + atomic_fetch_add(&control->calls, 1);
  if (control->stalled) {
    atomic_fetch_add(&control->waiting, 1);
    while (control->stalled) usleep(1000);
    atomic_fetch_sub(&control->waiting, 1);
  }
  if (drawn(&state, control->delays, &control->delayed)) usleep(control->delay_us);
  if (drawn(&state, control->fails, &control->failed)) {
    errno = EIO;
    return -1;
  }
  if (drawn(&state, control->interrupts, &control->interrupted)) {
    errno = EINTR;
    return -1;
  }
  if (drawn(&state, control->ends, &control->ended)) return 0;
  struct iovec first = parts[0];
  if (first.iov_len > 4096 && drawn(&state, control->shortened, &control->cut)) {
    first.iov_len = (first.iov_len / 3 + 4095) / 4096 * 4096;
    parts = &first;
    count = 1;
  }
  ssize_t got = syscall(SYS_preadv, fd, parts, (long)count, (long)offset, 0L);
  if (got > 0 && drawn(&state, control->flips, &control->flipped)) {
    size_t at = mixed(state) % (size_t)got;
    while (at >= parts->iov_len) at -= (parts++)->iov_len;
    ((uint8_t*)parts->iov_base)[at] ^= (uint8_t)(1u << (state % 8));
  }
  return got;
}

ssize_t preadv64(int fd, const struct iovec* parts, int count, off64_t offset) {
  return read_faultily(fd, parts, count, offset);
}

ssize_t preadv(int fd, const struct iovec* parts, int count, off_t offset) {
  return read_faultily(fd, parts, count, offset);
}

/* What os.preadv calls; no reader here uses flags. */
ssize_t preadv64v2(int fd, const struct iovec* parts, int count, off64_t offset, int flags) {
  (void)flags;
  return read_faultily(fd, parts, count, offset);
}

ssize_t preadv2(int fd, const struct iovec* parts, int count, off_t offset, int flags) {
  return preadv64v2(fd, parts, count, offset, flags);
}

ssize_t pread64(int fd, void* buffer, size_t count, off64_t offset) {
  struct iovec part = {buffer, count};
  return read_faultily(fd, &part, 1, offset);
}

ssize_t pread(int fd, void* buffer, size_t count, off_t offset) { return pread64(fd, buffer, count, offset); }
