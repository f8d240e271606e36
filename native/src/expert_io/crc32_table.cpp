// CRC-32, sixteen bytes per step from tables made at compile time: the fallback, and the tail of the others.
#include <array>
#include <bit>
#include <cstring>

#include "crc32.h"

static_assert(std::endian::native == std::endian::little, "words are taken from memory as little-endian");

namespace lme {
namespace {

constexpr size_t kSlices = 16;
using Tables = std::array<std::array<uint32_t, 256>, kSlices>;

// tables[k][b] is the register after byte b and then k zero bytes.
constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t reg = byte;
    for (int bit = 0; bit < 8; ++bit) reg = (reg >> 1) ^ (reg & 1 ? 0xEDB88320u : 0u);
    tables[0][byte] = reg;
  }
  for (size_t k = 1; k < kSlices; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xFF];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace

uint32_t crc32_table_update(uint32_t reg, const uint8_t* data, size_t size) {
  for (; size >= kSlices; data += kSlices, size -= kSlices) {
    uint32_t words[4];
    std::memcpy(words, data, sizeof words);
    words[0] ^= reg;
    reg = 0;
    for (size_t w = 0; w < 4; ++w) {
      const size_t k = kSlices - 4 * w;  // the first byte has the most bytes behind it
      reg ^= kTables[k - 1][words[w] & 0xFF] ^ kTables[k - 2][(words[w] >> 8) & 0xFF] ^
             kTables[k - 3][(words[w] >> 16) & 0xFF] ^ kTables[k - 4][words[w] >> 24];
    }
  }
  for (; size > 0; ++data, --size) reg = (reg >> 8) ^ kTables[0][(reg ^ *data) & 0xFF];
  return reg;
}

}  // namespace lme
