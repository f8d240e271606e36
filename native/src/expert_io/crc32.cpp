// Chooses the CRC-32 implementation, once per process.
#include "crc32.h"

#include <vector>

namespace lme {

std::span<const Crc32Implementation> crc32_implementations() {
  static const std::vector<Crc32Implementation> usable = [] {
    std::vector<Crc32Implementation> list;
#if defined(LME_CRC32_FOLD)
    if (crc32_fold_supported()) {
#if defined(__aarch64__)
      list.push_back({"pmull", crc32_fold_update});
#else
      list.push_back({"pclmulqdq", crc32_fold_update});
#endif
    }
#endif
#if defined(LME_CRC32_ARM)
    if (crc32_arm_supported()) list.push_back({"arm-crc32", crc32_arm_update});
#endif
    list.push_back({"table", crc32_table_update});
    return list;
  }();
  return usable;
}

}  // namespace lme
