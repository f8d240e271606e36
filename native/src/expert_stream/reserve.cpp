#include "reserve.h"

namespace lme::stream {

using State = ReadOrder::State;

void Reserve::keep(std::span<const int32_t> slots) {
  held_.clear();
  for (const int32_t slot : slots) held_.emplace_back().slot = slot;
}

Prefetched* Reserve::find(int32_t key, const ReadCrew& crew) {
  for (Prefetched& one : held_) {
    if (one.key != key) continue;
    const State state = crew.state(*one.order);
    if (state == State::kIdle || (state == State::kFinished && one.order->failure)) return nullptr;
    return &one;
  }
  return nullptr;
}

Prefetched* Reserve::room(uint64_t serial, const ReadCrew& crew) {
  Prefetched* oldest = nullptr;
  for (Prefetched& one : held_) {
    if (one.key != SlotTable::kNothing && one.begun == serial) continue;
    const State state = crew.state(*one.order);
    if (state == State::kQueued || state == State::kReading) continue;
    if (one.key == SlotTable::kNothing || state == State::kIdle || one.order->failure) return &one;
    if (oldest == nullptr || one.begun < oldest->begun) oldest = &one;
  }
  return oldest;
}

std::vector<ReadOrder*> Reserve::orders() const {
  std::vector<ReadOrder*> orders;
  for (const Prefetched& one : held_) orders.push_back(one.order.get());
  return orders;
}

}  // namespace lme::stream
