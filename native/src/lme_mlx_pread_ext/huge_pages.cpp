#include "huge_pages.h"

#include <cerrno>
#include <stdexcept>
#include <system_error>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace lme {
#if defined(__linux__)
namespace {

// On x86-64, and on arm64 with pages of 4 KiB; elsewhere it only decides from which size on it is worth asking.
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

#if !defined(MADV_POPULATE_WRITE)
constexpr int MADV_POPULATE_WRITE = 23;  // Linux 5.14; older headers do not know it
#endif

}  // namespace
#endif

uint64_t use_huge_pages(const mlx::core::array& array) {
  if (!array.is_available()) throw std::invalid_argument("array must be evaluated: call mx.eval on it first");
  if (!array.flags().row_contiguous || array.data_size() < array.size()) {
    throw std::invalid_argument("array is not row-contiguous: its bytes are not memory of their own");
  }
#if defined(__linux__)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(array.data<uint8_t>());
  // Inwards: what shares a page with the array is not ours.
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + array.nbytes()) / page * page;
  if (last < first + 2 * kHugePage) return 0;
  void* const memory = reinterpret_cast<void*>(first);
  if (madvise(memory, last - first, MADV_HUGEPAGE) != 0) return 0;  // a kernel without them
  // Pages that are there already stay small: they go, and come back huge.
  const auto require = [](int result) {
    if (result != 0) throw std::system_error(errno, std::generic_category(), "madvise");
  };
  require(madvise(memory, last - first, MADV_DONTNEED));
  if (madvise(memory, last - first, MADV_POPULATE_WRITE) != 0) {
    if (errno != EINVAL) require(-1);
    for (uintptr_t at = first; at < last; at += page) *reinterpret_cast<volatile uint8_t*>(at) = 0;
  }
  return last - first;
#else
  return 0;
#endif
}

}  // namespace lme
