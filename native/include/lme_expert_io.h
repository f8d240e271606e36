/*
 * liblme_expert_io: batched reads of expert records into banks, without Python and without MLX.
 *
 * A bank is memory that holds slot after slot, all of one size. A record is what one expert takes on disk:
 * its segments (weights, scales, biases, ...). A batch reads records and puts each segment of record j into
 * slot slots[j] of the segment's bank, from several threads, and checks each record's CRC-32 if asked to.
 *
 * Every function may be called from several threads at a time, and in a forked child. None keeps a pointer
 * after returning. Two batches that run at the same time must not name the same slot of the same bank: that
 * is not checked.
 */
#ifndef LME_EXPERT_IO_H
#define LME_EXPERT_IO_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(LME_EXPERT_IO_BUILDING)
#define LME_EXPERT_IO_API __attribute__((visibility("default")))
#else
#define LME_EXPERT_IO_API
#endif

/* Raised by one when a struct or a function changes. Compare it with lme_expert_io_abi_version() before the
 * first call. */
#define LME_EXPERT_IO_ABI_VERSION 1

/* What lme_expert_io_read returns. */
enum {
  LME_EXPERT_IO_OK = 0,
  LME_EXPERT_IO_INVALID = 1,      /* a value is wrong: nothing was written; message says which */
  LME_EXPERT_IO_OUT_OF_RANGE = 2, /* a slot does not exist: nothing was written; message says which */
  LME_EXPERT_IO_READ = 3,         /* a read failed or the file ended: the batch's slots hold anything */
  LME_EXPERT_IO_CHECKSUM = 4,     /* a record differs from its checksum: the batch's slots hold anything */
  LME_EXPERT_IO_NO_MEMORY = 5     /* before the first read: nothing was written */
};

/* Bits of lme_expert_io_segment.flags. */
#define LME_EXPERT_IO_WIDEN 1u /* bfloat16 on disk, float32 in the bank: exact, twice the bytes */

/* Bits of lme_expert_io_batch.flags. */
#define LME_EXPERT_IO_DIRECT 1u    /* descriptors opened with O_DIRECT; ignored on macOS: set F_NOCACHE */
#define LME_EXPERT_IO_SCATTERED 2u /* one fd and one offset per segment, not per record */

typedef struct lme_expert_io_segment {
  void* bank;         /* first byte of slot 0 */
  uint64_t bank_size; /* bytes: slots * nbytes, or slots * 2 * nbytes with LME_EXPERT_IO_WIDEN */
  uint64_t nbytes;    /* bytes of one segment on disk, at least 1; even with LME_EXPERT_IO_WIDEN */
  uint32_t flags;     /* LME_EXPERT_IO_WIDEN or 0 */
  uint32_t reserved;  /* 0 */
} lme_expert_io_segment;

typedef struct lme_expert_io_batch {
  const lme_expert_io_segment* segments; /* in the order in which they lie on disk */
  size_t segment_count;                  /* at least 1 */
  uint64_t slot_count;                   /* slots of every bank, at least 1 */
  size_t jobs;                           /* records to read; 0 is allowed and does nothing */
  const int64_t* slots;                  /* [jobs], distinct, each from 0 to slot_count - 1 */
  /* [jobs]; or with LME_EXPERT_IO_SCATTERED [jobs * segment_count], job after job */
  const int32_t* fds;     /* open descriptors */
  const int64_t* offsets; /* bytes from the beginning of the file */
  const uint32_t* crcs;   /* [jobs] CRC-32 of each record's bytes on disk, or NULL to check nothing */
  int32_t threads;        /* 1 to 64, the calling one included */
  uint32_t flags;         /* LME_EXPERT_IO_DIRECT, LME_EXPERT_IO_SCATTERED */
} lme_expert_io_batch;

/* Filled when lme_expert_io_read returns anything but LME_EXPERT_IO_OK. Fields that do not apply are 0. */
typedef struct lme_expert_io_failure {
  uint64_t job;      /* READ, CHECKSUM: index of the first bad record in the batch */
  uint64_t segment;  /* READ: index of the segment that did not arrive */
  uint64_t offset;   /* READ: where that segment begins in its file */
  uint64_t wanted;   /* READ: its bytes */
  uint64_t got;      /* READ: how many of them arrived */
  int32_t error;     /* READ: errno, or 0 when the file ended */
  uint32_t expected; /* CHECKSUM: what the caller gave */
  uint32_t actual;   /* CHECKSUM: what the bytes have */
  uint32_t reserved; /* 0 */
  char message[256]; /* INVALID, OUT_OF_RANGE: what is wrong, ended by a zero byte, cut if too long */
} lme_expert_io_failure;

/* LME_EXPERT_IO_ABI_VERSION of the library. */
LME_EXPERT_IO_API int32_t lme_expert_io_abi_version(void);

/* Reads a batch. `failure` and `bytes_read` may be NULL; `bytes_read` gets the bytes asked of the disk, 0 on
 * failure. */
LME_EXPERT_IO_API int32_t lme_expert_io_read(const lme_expert_io_batch* batch, lme_expert_io_failure* failure,
                                             uint64_t* bytes_read);

/* CRC-32 as zlib has it: start with value 0, give the last result to go on. */
LME_EXPERT_IO_API uint32_t lme_expert_io_crc32(uint32_t value, const void* data, size_t size);

/* For tests: the implementations that this CPU can run, by index, fastest first; index 0 is the one in use.
 */
LME_EXPERT_IO_API size_t lme_expert_io_crc32_count(void);
LME_EXPERT_IO_API const char* lme_expert_io_crc32_name(size_t index); /* NULL beyond the last */
LME_EXPERT_IO_API uint32_t lme_expert_io_crc32_with(size_t index, uint32_t value, const void* data,
                                                    size_t size);

#ifdef __cplusplus
}
#endif

#endif
