#include "scatter_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace mx = mlx::core;

namespace lme {
namespace {

std::string name_of(size_t index) { return "arrays[" + std::to_string(index) + "]"; }

void check_array(const mx::array& array, size_t index) {
  if (array.ndim() == 0 || array.size() == 0) {
    throw std::invalid_argument(name_of(index) +
                                " has no slots: its shape must be [slots, ...] with no zero");
  }
  // Not evaluated here: a lazy array may belong to a stream of another thread.
  if (!array.is_available())
    throw std::invalid_argument(name_of(index) + " is not evaluated: call mx.eval on it first");
  // The second half sees broadcasts, whose elements share memory.
  if (!array.flags().row_contiguous || array.data_size() < array.size()) {
    throw std::invalid_argument(name_of(index) +
                                " is not row-contiguous: make it with mx.contiguous and mx.eval");
  }
}

void check_apart(const std::vector<Segment>& segments, size_t slots) {
  std::vector<std::pair<const uint8_t*, size_t>> order;
  for (size_t s = 0; s < segments.size(); ++s) order.emplace_back(segments[s].base, s);
  std::sort(order.begin(), order.end());
  for (size_t i = 1; i < order.size(); ++i) {
    const auto [before, first] = order[i - 1];
    if (before + slots * segments[first].stride > order[i].first) {
      throw std::invalid_argument(name_of(std::min(first, order[i].second)) + " and " +
                                  name_of(std::max(first, order[i].second)) +
                                  " share memory: every segment needs an array of its own");
    }
  }
}

}  // namespace

ScatterPlan::ScatterPlan(std::vector<mx::array> arrays, const std::vector<int64_t>& nbytes,
                         const std::vector<bool>& widen)
    : arrays_(std::move(arrays)) {
  if (nbytes.size() != arrays_.size() || widen.size() != arrays_.size()) {
    throw std::invalid_argument("there are " + std::to_string(arrays_.size()) + " arrays, " +
                                std::to_string(nbytes.size()) + " nbytes and " +
                                std::to_string(widen.size()) + " widen: give one of each per segment");
  }
  for (size_t s = 0; s < arrays_.size(); ++s) {
    mx::array& array = arrays_[s];
    check_array(array, s);
    const auto slots = static_cast<size_t>(array.shape(0));
    if (s == 0) slots_ = slots;
    if (slots != slots_) {
      throw std::invalid_argument(name_of(s) + " has " + std::to_string(slots) + " slots and arrays[0] has " +
                                  std::to_string(slots_) + ": all need the same");
    }
    if (nbytes[s] < 1) throw std::invalid_argument("nbytes[" + std::to_string(s) + "] must be at least 1");
    segments_.push_back({array.data<uint8_t>(), array.nbytes() / slots, static_cast<size_t>(nbytes[s]),
                         static_cast<bool>(widen[s])});
  }
  record_bytes_ = check_segments(segments_);
  check_apart(segments_, slots_);
}

}  // namespace lme
