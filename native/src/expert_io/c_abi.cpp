// The C face: translates the structs of lme_expert_io.h, and lets no C++ exception out.
#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch.h"
#include "crc32.h"
#include "lme_expert_io.h"

namespace {

void say(lme_expert_io_failure* failure, const char* message) {
  if (failure == nullptr) return;
  const size_t length = std::min(std::strlen(message), sizeof failure->message - 1);
  std::memcpy(failure->message, message, length);
  failure->message[length] = '\0';
}

std::vector<lme::Segment> segments_of(const lme_expert_io_batch& batch) {
  if (batch.segments == nullptr && batch.segment_count > 0) throw std::invalid_argument("segments is NULL");
  if (batch.slot_count == 0) throw std::invalid_argument("slot_count is 0: a bank has at least one slot");
  std::vector<lme::Segment> segments;
  segments.reserve(batch.segment_count);
  for (size_t s = 0; s < batch.segment_count; ++s) {
    const lme_expert_io_segment& from = batch.segments[s];
    const std::string name = "segments[" + std::to_string(s) + "]";
    if (from.bank == nullptr) throw std::invalid_argument(name + ".bank is NULL");
    if ((from.flags & ~LME_EXPERT_IO_WIDEN) != 0)
      throw std::invalid_argument(name + ".flags has unknown bits");
    if (from.bank_size % batch.slot_count != 0) {
      throw std::invalid_argument(name + ".bank_size is no multiple of slot_count");
    }
    segments.push_back({static_cast<uint8_t*>(from.bank),
                        static_cast<size_t>(from.bank_size / batch.slot_count),
                        static_cast<size_t>(from.nbytes), (from.flags & LME_EXPERT_IO_WIDEN) != 0});
  }
  return segments;
}

lme::Batch batch_of(const lme_expert_io_batch& from, std::span<const lme::Segment> segments) {
  if ((from.flags & ~(LME_EXPERT_IO_DIRECT | LME_EXPERT_IO_SCATTERED)) != 0) {
    throw std::invalid_argument("flags has unknown bits");
  }
  if (from.jobs > 0 && (from.slots == nullptr || from.fds == nullptr || from.offsets == nullptr)) {
    throw std::invalid_argument("slots, fds or offsets is NULL");
  }
  const size_t places =
      (from.flags & LME_EXPERT_IO_SCATTERED) != 0 ? from.jobs * from.segment_count : from.jobs;
  lme::Batch batch{.segments = segments,
                   .slots = static_cast<size_t>(from.slot_count),
                   .targets = {from.slots, from.jobs},
                   .fds = {from.fds, places},
                   .offsets = {from.offsets, places},
                   .crcs = std::nullopt,
                   .threads = from.threads,
                   .direct = (from.flags & LME_EXPERT_IO_DIRECT) != 0};
  if (from.crcs != nullptr) batch.crcs = std::span(from.crcs, from.jobs);
  return batch;
}

int32_t read_batch(const lme_expert_io_batch& from, lme_expert_io_failure* failure, uint64_t* bytes_read) {
  const std::vector<lme::Segment> segments = segments_of(from);
  const lme::Batch batch = batch_of(from, segments);
  batch.check();
  const lme::Outcome outcome = lme::read(batch);
  if (bytes_read != nullptr) *bytes_read = outcome.bytes;
  if (!outcome.failure) return LME_EXPERT_IO_OK;

  const lme::Failure& bad = *outcome.failure;
  if (failure != nullptr) {
    failure->job = bad.job;
    failure->segment = bad.segment;
    failure->offset = bad.offset;
    failure->wanted = bad.wanted;
    failure->got = bad.got;
    failure->error = bad.error;
    failure->expected = bad.expected;
    failure->actual = bad.actual;
  }
  return bad.kind == lme::Failure::kChecksum ? LME_EXPERT_IO_CHECKSUM : LME_EXPERT_IO_READ;
}

}  // namespace

extern "C" {

int32_t lme_expert_io_abi_version(void) { return LME_EXPERT_IO_ABI_VERSION; }

int32_t lme_expert_io_read(const lme_expert_io_batch* batch, lme_expert_io_failure* failure,
                           uint64_t* bytes_read) {
  if (failure != nullptr) std::memset(failure, 0, sizeof *failure);
  if (bytes_read != nullptr) *bytes_read = 0;
  if (batch == nullptr) {
    say(failure, "batch is NULL");
    return LME_EXPERT_IO_INVALID;
  }
  try {
    return read_batch(*batch, failure, bytes_read);
  } catch (const std::out_of_range& e) {
    say(failure, e.what());
    return LME_EXPERT_IO_OUT_OF_RANGE;
  } catch (const std::bad_alloc&) {
    return LME_EXPERT_IO_NO_MEMORY;
  } catch (const std::exception& e) {
    say(failure, e.what());
    return LME_EXPERT_IO_INVALID;
  }
}

uint32_t lme_expert_io_crc32(uint32_t value, const void* data, size_t size) {
  return lme::crc32(value, data, size);
}

size_t lme_expert_io_crc32_count(void) { return lme::crc32_implementations().size(); }

const char* lme_expert_io_crc32_name(size_t index) {
  const auto all = lme::crc32_implementations();
  return index < all.size() ? all[index].name : nullptr;
}

uint32_t lme_expert_io_crc32_with(size_t index, uint32_t value, const void* data, size_t size) {
  return lme::crc32(lme::crc32_implementations()[index], value, data, size);
}

}  // extern "C"
