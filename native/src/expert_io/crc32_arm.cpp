// CRC-32 with arm64's CRC32 instructions, for CPUs that have these and no PMULL. One dependent chain: about 8
// bytes per three cycles, which is why folding comes first where both exist.
#include "crc32.h"

#if defined(LME_CRC32_ARM)

#include <arm_acle.h>

#include <cstring>

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#if defined(__ARM_FEATURE_CRC32)
#define LME_CRC_TARGET
#else
#define LME_CRC_TARGET __attribute__((target("+crc")))
#endif

namespace lme {

LME_CRC_TARGET uint32_t crc32_arm_update(uint32_t reg, const uint8_t* data, size_t size) {
  for (; size >= 8; data += 8, size -= 8) {
    uint64_t word;
    std::memcpy(&word, data, sizeof word);
    reg = __crc32d(reg, word);
  }
  for (; size > 0; ++data, --size) reg = __crc32b(reg, *data);
  return reg;
}

bool crc32_arm_supported() {
#if defined(__APPLE__)
  return true;  // every Apple Silicon CPU
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#else
  return false;
#endif
}

}  // namespace lme

#endif  // LME_CRC32_ARM
