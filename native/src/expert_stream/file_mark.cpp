#include "file_mark.h"

#include <sys/stat.h>

namespace lme::stream {

FileMark file_mark(int32_t fd) {
  struct stat found {};
  if (::fstat(fd, &found) != 0) return {-1, 0, 0};
#if defined(__APPLE__)
  return {found.st_size, found.st_mtimespec.tv_sec, found.st_mtimespec.tv_nsec};
#else
  return {found.st_size, found.st_mtim.tv_sec, found.st_mtim.tv_nsec};
#endif
}

}  // namespace lme::stream
