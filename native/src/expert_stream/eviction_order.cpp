#include "eviction_order.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace lme::stream {
namespace {

// As in mach_store.eviction.decayed_counts and .lookahead.
constexpr double kLargest = 0x1p400;
constexpr double kNever = 1e-12;

bool within(double number, double least, double most) { return number >= least && number <= most; }  // false for NaN

}  // namespace

EvictionOrder::EvictionOrder(OrderRule rule) : rule_(std::move(rule)) {
  for (const auto& [growth, weight] : rule_.memories) {
    if (!within(growth, 1, 0x1p200) || !within(weight, 0, 1)) {
      throw std::invalid_argument("a memory's growth is 1 or more, and its weight 0 to 1");
    }
  }
}

int32_t EvictionOrder::add_layer(size_t experts) {
  Layer layer{.first_key = static_cast<int32_t>(keys()), .experts = experts, .worths = {}, .counts = {}, .present = {}};
  layer.worths.assign(rule_.memories.size(), 1.0);
  layer.counts.assign(std::max<size_t>(1, rule_.memories.size()) * experts, 0.0);
  layer.present.reserve(experts);
  layers_.push_back(std::move(layer));
  now_ = layers_.size() - 1;  // the first layer is next
  layer_of_.resize(keys() + experts, static_cast<uint32_t>(now_));
  kept_.resize(keys(), false);
  return layers_.back().first_key;
}

void EvictionOrder::keep(std::span<const int32_t> keys) {
  kept_.assign(kept_.size(), false);
  for (const int32_t key : keys) kept_[static_cast<size_t>(key)] = true;
}

void EvictionOrder::recall(size_t number, std::span<const double> worths, std::span<const double> counts) {
  Layer& layer = layers_.at(number);
  const bool timed = rule_.memories.empty();
  if (worths.size() != (timed ? 1 : layer.worths.size()) || counts.size() != layer.counts.size()) {
    throw std::invalid_argument("a worth for each memory, and a count for each memory and expert");
  }
  // What is within these bounds can be put in order, and counted on.
  const auto good_worth = [=](double worth) { return within(worth, timed ? 0 : 1, timed ? 0x1p53 : kLargest); };
  const auto good_count = [=](double count) { return within(count, 0, timed ? worths[0] : 0x1p500); };
  if (!std::all_of(worths.begin(), worths.end(), good_worth) ||
      !std::all_of(counts.begin(), counts.end(), good_count)) {
    throw std::invalid_argument("a worth or count that counting never gives");
  }
  if (timed) {
    time_ = std::max(time_, worths[0]);
  } else {
    layer.worths.assign(worths.begin(), worths.end());
  }
  layer.counts.assign(counts.begin(), counts.end());
  layer.sorted = false;
}

void EvictionOrder::stand(size_t layer) {
  if (layer >= layers_.size()) throw std::out_of_range("the pool has no such layer");
  now_ = layer;
}

void EvictionOrder::use(int32_t key) {
  now_ = layer_of_[static_cast<size_t>(key)];
  Layer& layer = layers_[now_];
  const auto expert = static_cast<size_t>(key - layer.first_key);
  layer.sorted = false;
  if (rule_.memories.empty()) layer.counts[expert] = ++time_;
  for (size_t m = 0; m < rule_.memories.size(); ++m) {
    double& worth = layer.worths[m];
    const std::span counts(layer.counts.data() + m * layer.experts, layer.experts);
    worth *= rule_.memories[m].growth;
    counts[expert] += worth;
    if (worth <= kLargest) continue;
    worth /= kLargest;
    for (double& count : counts) count /= kLargest;
  }
}

void EvictionOrder::enter(int32_t key) {
  Layer& layer = layers_[layer_of_[static_cast<size_t>(key)]];
  assert(layer.present.size() < layer.experts);
  layer.present.push_back({0, key});
  layer.sorted = false;
}

void EvictionOrder::leave(int32_t key) {
  auto& present = layers_[layer_of_[static_cast<size_t>(key)]].present;
  const auto found = std::find_if(present.begin(), present.end(), [=](const Entry& e) { return e.key == key; });
  assert(found != present.end());
  present.erase(found);
}

double EvictionOrder::value(const Layer& layer, size_t expert) const {
  if (rule_.memories.empty()) return layer.counts[expert];
  double sum = 0;
  for (size_t m = 0; m < rule_.memories.size(); ++m) {
    sum += rule_.memories[m].weight / layer.worths[m] * layer.counts[m * layer.experts + expert];
  }
  return sum;
}

// The lowest goes first. It never falls where the value rises: a layer's order by value is one by rank, too.
double EvictionOrder::rank(size_t layer, double value) const {
  if (!rule_.by_distance) return value;
  const size_t ahead = (layer + layers_.size() - now_ - 1) % layers_.size() + 1;
  const double rounds = 1 / std::min(std::max(value, kNever), 1.0) - 1;
  return -(static_cast<double>(ahead) + static_cast<double>(layers_.size()) * rounds);
}

const std::vector<EvictionOrder::Entry>& EvictionOrder::in_order(Layer& layer) {
  if (!layer.sorted) {
    for (Entry& entry : layer.present) {
      entry.value = value(layer, static_cast<size_t>(entry.key - layer.first_key));
    }
    std::sort(layer.present.begin(), layer.present.end(),
              [](const Entry& a, const Entry& b) { return std::tie(a.value, a.key) < std::tie(b.value, b.key); });
    layer.sorted = true;
  }
  return layer.present;
}

std::vector<int32_t> EvictionOrder::choose(size_t count, const std::function<bool(int32_t key)>& may_go) {
  std::vector<int32_t> chosen;
  chosen.reserve(std::min(count, keys()));
  choose_above(true, true, count, may_go, chosen);
  choose_above(false, true, count, may_go, chosen);
  choose_above(false, false, count, may_go, chosen);
  return chosen;
}

void EvictionOrder::choose_above(bool floors, bool spare, size_t count, const std::function<bool(int32_t)>& may_go,
                                 std::vector<int32_t>& chosen) {
  if (chosen.size() >= count) return;
  const size_t before = chosen.size();
  std::vector<size_t> going(layers_.size(), 0);
  for (const int32_t key : chosen) ++going[layer_of_[static_cast<size_t>(key)]];
  // Moves `head` on to the layer's next expert that may go, from `head.place`; false when there is none.
  const auto find = [&](Head& head) {
    Layer& layer = layers_[head.layer];
    if (going[head.layer] + (floors ? layer.floor : 0) >= layer.present.size()) return false;
    const auto& present = in_order(layer);
    for (; head.place < present.size(); ++head.place) {
      const auto [value, key] = present[head.place];
      const auto end = chosen.begin() + static_cast<std::ptrdiff_t>(before);
      if ((spare && kept_[static_cast<size_t>(key)]) || !may_go(key)) continue;
      if (std::find(chosen.begin(), end, key) != end) continue;
      head.rank = rank(head.layer, value);
      return true;
    }
    return false;
  };
  const auto later = [](const Head& a, const Head& b) {
    return std::tie(a.rank, a.layer) > std::tie(b.rank, b.layer);
  };
  std::vector<Head> heads;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    Head head{.rank = 0, .layer = layer, .place = 0};
    if (find(head)) heads.push_back(head);
  }
  std::make_heap(heads.begin(), heads.end(), later);
  while (!heads.empty() && chosen.size() < count) {
    std::pop_heap(heads.begin(), heads.end(), later);
    Head& first = heads.back();
    chosen.push_back(layers_[first.layer].present[first.place++].key);
    ++going[first.layer];
    if (find(first)) {
      std::push_heap(heads.begin(), heads.end(), later);
    } else {
      heads.pop_back();
    }
  }
}

}  // namespace lme::stream
