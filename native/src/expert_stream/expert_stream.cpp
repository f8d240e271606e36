#include "expert_stream.h"

#include <stdexcept>
#include <utility>

namespace lme::stream {

size_t ExpertStream::add_pool(std::vector<Segment> segments, size_t slots, OrderRule rule,
                              std::shared_ptr<const void> memory) {
  const uint64_t bytes = check_segments(segments);
  SlotTable table(slots, std::move(rule));
  const std::lock_guard lock(mutex_);
  pools_.push_back(std::make_unique<Pool>(Pool{std::move(segments), std::move(table), bytes, std::move(memory)}));
  return pools_.size() - 1;
}

size_t ExpertStream::add_layer(size_t pool, size_t experts, LayerFiles files) {
  const std::lock_guard lock(mutex_);
  Pool& owner = *pools_.at(pool);
  const size_t places = experts == 0 ? 0 : files.fds.size() / experts;
  if (experts == 0 || (places != 1 && places != owner.segments.size()) || files.fds.size() != experts * places ||
      files.offsets.size() != files.fds.size() || (!files.crcs.empty() && files.crcs.size() != experts)) {
    throw std::invalid_argument("a layer needs one fd and one offset per expert, or per expert and segment, and "
                                "one crc per expert or none");
  }
  for (size_t expert = 0; expert < experts; ++expert) {
    const int64_t slot = 0;
    const Batch batch{.segments = owner.segments,
                      .slots = owner.table.slots(),
                      .targets = {&slot, 1},
                      .fds = std::span<const int32_t>(files.fds).subspan(expert * places, places),
                      .offsets = std::span<const int64_t>(files.offsets).subspan(expert * places, places),
                      .crcs = std::nullopt,
                      .threads = 1,
                      .direct = direct_};
    batch.check();
  }
  if (files.crcs.empty()) {
    for (const int32_t fd : files.fds) files.marks.try_emplace(fd, file_mark(fd));
  }
  const int32_t first = owner.table.add_layer(experts);
  layers_.push_back(std::make_unique<Layer>(Layer{pool, experts, first, std::move(files), std::vector<uint64_t>(experts, 0)}));
  return layers_.size() - 1;
}

std::shared_ptr<void> ExpertStream::expect() {
  {
    const std::lock_guard lock(mutex_);
    ++expected_;
  }
  return {nullptr, [this](void*) {
            const std::lock_guard lock(mutex_);
            if (--expected_ == 0) idle_.notify_all();
          }};
}

void ExpertStream::wait() {
  std::vector<ReadOrder*> ahead;
  {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return expected_ == 0; });
    for (const auto& pool : pools_) {
      for (ReadOrder* order : pool->reserve.orders()) ahead.push_back(order);
    }
  }
  crew_.settle(ahead);  // the orders stay where they are while no pass runs
}

void ExpertStream::skip(bool on) {
  const std::lock_guard lock(mutex_);
  skipping_ = on;
}

void ExpertStream::set(size_t pool, int32_t slot, int32_t key) {
  const std::lock_guard lock(mutex_);
  SlotTable& table = pools_.at(pool)->table;
  if (key != SlotTable::kNothing && table.slot_of(key) != SlotTable::kNothing && table.slot_of(key) != slot) {
    throw std::invalid_argument("the expert is in another slot");
  }
  table.clear(slot);
  if (key != SlotTable::kNothing) table.put(key, slot, serial_);
}

void ExpertStream::offer(size_t pool, int32_t slot) {
  const std::lock_guard lock(mutex_);
  SlotTable& table = pools_.at(pool)->table;
  if (table.key_in(slot) != SlotTable::kNothing || table.is_free(slot)) {
    throw std::invalid_argument("only a slot that holds nothing, and is not free, can become free");
  }
  table.offer(slot);
}

void ExpertStream::pin(size_t pool, int32_t slot) {
  const std::lock_guard lock(mutex_);
  pools_.at(pool)->table.pin(slot);
}

void ExpertStream::unpin_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& pool : pools_) pool->table.unpin_all();
}

std::vector<int32_t> ExpertStream::keys(size_t pool) {
  const std::lock_guard lock(mutex_);
  const SlotTable& table = pools_.at(pool)->table;
  std::vector<int32_t> keys(table.slots());
  for (size_t slot = 0; slot < keys.size(); ++slot) keys[slot] = table.key_in(static_cast<int32_t>(slot));
  return keys;
}

void ExpertStream::order(size_t pool, const std::function<void(EvictionOrder&)>& change) {
  const std::lock_guard lock(mutex_);
  change(pools_.at(pool)->table.order());
}

std::vector<int32_t> ExpertStream::next(size_t pool, size_t count) {
  const std::lock_guard lock(mutex_);
  return pools_.at(pool)->table.next(count, serial_ + 1);
}

void ExpertStream::prefetch() {
  const size_t most = layers_.empty() ? 0 : layers_.front()->experts;
  for (const auto& layer : layers_) {
    if (layer->experts != most) throw std::invalid_argument("its layers differ in their number of experts");
  }
  predictor_.emplace(static_cast<uint32_t>(layers_.size()), static_cast<uint32_t>(most));
}

void ExpertStream::reserve(size_t pool, std::span<const int32_t> slots) {
  wait();
  const std::lock_guard lock(mutex_);
  pools_.at(pool)->reserve.keep(slots);
}

// Says what to read: `expert` of `layer`, into `slot` of its pool.
void ExpertStream::address(ReadOrder& order, const Layer& layer, size_t expert, int32_t slot) const {
  const Pool& pool = *pools_[layer.pool];
  const LayerFiles& files = layer.files;
  const size_t places = files.fds.size() / layer.experts, first = expert * places;
  order.segments = pool.segments;
  order.slots = pool.table.slots();
  order.slot = slot;
  order.fds = std::span(files.fds).subspan(first, places);
  order.offsets = std::span(files.offsets).subspan(first, places);
  order.crc = files.crcs.empty() ? std::nullopt : std::optional(files.crcs[expert]);
  order.direct = direct_;
}

Log ExpertStream::drain() {
  const std::lock_guard lock(mutex_);
  return {.passes = std::exchange(passes_, {}), .failure = failure_};
}

void ExpertStream::forgive() {
  const std::lock_guard lock(mutex_);
  failure_.reset();
}

}  // namespace lme::stream
