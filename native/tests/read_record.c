/* Writes a file of two records, reads them through lme_expert_io.h, and checks what came. */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lme_expert_io.h"

#define CHECK(condition)                                      \
  do {                                                        \
    if (!(condition)) {                                       \
      fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
      return 1;                                               \
    }                                                         \
  } while (0)

enum { WEIGHT = 300, SCALES = 4, RECORD = WEIGHT + SCALES };

int main(int argc, char** argv) {
  CHECK(argc == 2);
  CHECK(lme_expert_io_abi_version() == LME_EXPERT_IO_ABI_VERSION);

  unsigned char records[2 * RECORD];
  for (size_t i = 0; i < sizeof records; ++i) records[i] = (unsigned char)(i * 31 + 7);
  int fd = open(argv[1], O_CREAT | O_TRUNC | O_RDWR, 0600);
  CHECK(fd >= 0 && write(fd, records, sizeof records) == (ssize_t)sizeof records);

  unsigned char weights[3 * WEIGHT] = {0};
  uint32_t scales[3][SCALES / 2] = {{0}};
  lme_expert_io_segment segments[] = {
      {.bank = weights, .bank_size = sizeof weights, .nbytes = WEIGHT},
      {.bank = scales, .bank_size = sizeof scales, .nbytes = SCALES, .flags = LME_EXPERT_IO_WIDEN},
  };
  int64_t slots[] = {2, 0};
  int32_t fds[] = {fd, fd};
  int64_t offsets[] = {0, RECORD};
  uint32_t crcs[] = {lme_expert_io_crc32(0, records, RECORD),
                     lme_expert_io_crc32(0, records + RECORD, RECORD)};
  lme_expert_io_batch batch = {
      .segments = segments,
      .segment_count = 2,
      .slot_count = 3,
      .jobs = 2,
      .slots = slots,
      .fds = fds,
      .offsets = offsets,
      .crcs = crcs,
      .threads = 2,
  };
  lme_expert_io_failure failure;
  uint64_t bytes = 0;
  CHECK(lme_expert_io_read(&batch, &failure, &bytes) == LME_EXPERT_IO_OK && bytes == 2 * RECORD);
  CHECK(memcmp(weights + 2 * WEIGHT, records, WEIGHT) == 0);
  CHECK(memcmp(weights, records + RECORD, WEIGHT) == 0);
  CHECK(weights[WEIGHT] == 0 && scales[1][0] == 0);
  uint16_t narrow[SCALES / 2];
  memcpy(narrow, records + WEIGHT, SCALES);
  CHECK(scales[2][0] == (uint32_t)narrow[0] << 16 && scales[2][1] == (uint32_t)narrow[1] << 16);

  crcs[1] ^= 1;
  CHECK(lme_expert_io_read(&batch, &failure, NULL) == LME_EXPERT_IO_CHECKSUM && failure.job == 1);
  CHECK(failure.expected == crcs[1] && failure.actual == (crcs[1] ^ 1));
  batch.crcs = NULL;
  offsets[0] = 2 * RECORD - 1;
  CHECK(lme_expert_io_read(&batch, &failure, NULL) == LME_EXPERT_IO_READ && failure.job == 0);
  CHECK(failure.error == 0 && failure.got == 1 && failure.wanted == WEIGHT);
  slots[0] = 3;
  CHECK(lme_expert_io_read(&batch, &failure, NULL) == LME_EXPERT_IO_OUT_OF_RANGE);
  CHECK(strstr(failure.message, "slots[0] is 3") != NULL);
  CHECK(lme_expert_io_read(NULL, NULL, NULL) == LME_EXPERT_IO_INVALID);

  close(fd);
  puts("all good");
  return 0;
}
