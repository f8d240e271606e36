// CRC-32 with the IEEE 802.3 polynomial in zlib's convention: crc32(crc32(0, a), b) == crc32(0, a + b), so
// that Python's zlib.crc32 is the twin of everything here. Knows nothing of files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace lme {

struct Crc32Implementation {
  const char* name;
  // `reg` is the shift register itself: zlib's value with all bits inverted.
  uint32_t (*update)(uint32_t reg, const uint8_t* data, size_t size);
};

// Those that this CPU can run, fastest first; the last is always "table".
std::span<const Crc32Implementation> crc32_implementations();

inline uint32_t crc32(const Crc32Implementation& with, uint32_t value, const void* data, size_t size) {
  return ~with.update(~value, static_cast<const uint8_t*>(data), size);
}

inline uint32_t crc32(uint32_t value, const void* data, size_t size) {
  return crc32(crc32_implementations().front(), value, data, size);
}

// One register function per source file.
uint32_t crc32_table_update(uint32_t reg, const uint8_t* data, size_t size);

// Clang on Linux declares the arm64 instructions only when they are part of the target
// (-march=armv8-a+crc+crypto).
#if defined(__x86_64__) || (defined(__aarch64__) && (!defined(__clang__) || defined(__ARM_FEATURE_AES)))
#define LME_CRC32_FOLD 1
bool crc32_fold_supported();
uint32_t crc32_fold_update(uint32_t reg, const uint8_t* data, size_t size);
#endif

#if defined(__aarch64__) && (!defined(__clang__) || defined(__ARM_FEATURE_CRC32))
#define LME_CRC32_ARM 1
bool crc32_arm_supported();
uint32_t crc32_arm_update(uint32_t reg, const uint8_t* data, size_t size);
#endif

}  // namespace lme
