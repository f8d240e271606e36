#include "page_release.h"

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace lme {

uint64_t release_rows(const mlx::core::array& array, int64_t rows) {
  if (array.ndim() == 0 || !array.is_available()) {
    throw std::invalid_argument("array must have rows and be evaluated: call mx.eval on it first");
  }
  if (!array.flags().row_contiguous || array.data_size() < array.size()) {
    throw std::invalid_argument("array is not row-contiguous: its rows are not memory of their own");
  }
  if (rows < 0 || rows > array.shape(0)) {
    throw std::invalid_argument("rows is " + std::to_string(rows) + ": it must be from 0 to " +
                                std::to_string(array.shape(0)));
  }
  if (array.size() == 0) return 0;
#if defined(__linux__)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(array.data<uint8_t>());
  const uintptr_t row = array.nbytes() / static_cast<uintptr_t>(array.shape(0));
  // Inwards: what shares a page with the rows that stay, or with the heap behind the array, is not ours to drop.
  const uintptr_t first = (begin + static_cast<uintptr_t>(rows) * row + page - 1) / page * page;
  const uintptr_t last = (begin + array.nbytes()) / page * page;
  if (first >= last) return 0;
  if (madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) != 0) {
    throw std::system_error(errno, std::generic_category(), "madvise");
  }
  return last - first;
#else
  throw std::system_error(ENOTSUP, std::generic_category(), "giving memory back needs Linux");
#endif
}

}  // namespace lme
