// In which order a pool's experts are given up: what the policies of mach_store.eviction say, kept up to date use by
// use, so that nobody need be asked. Those policies are the definition; this gives bit for bit the order that they
// would give after the same uses. Knows no slots, files or threads. Not locked: its owner is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace lme::stream {

// By what experts are ranked; mach_store.eviction.OrderRule.
struct OrderRule {
  // Decayed counts: each use of a layer makes a use worth `growth` times as much, and adds that to its expert's count.
  // An expert's value is the sum over the memories of weight / worth × count.
  struct Memory {
    double growth, weight;
  };
  std::vector<Memory> memories;  // none: the value is the time of the last use
  bool by_distance = false;      // the value is a chance; ranked by the layers until the next use is to be expected
};

// Experts are named by keys, 0 to keys - 1, layer after layer, in the order in which a forward pass visits them.
class EvictionOrder {
 public:
  // Throws std::invalid_argument: a growth or weight that no policy has.
  explicit EvictionOrder(OrderRule rule);

  // Layers are numbered in the order of their adding; returns the key of its first expert.
  int32_t add_layer(size_t experts);
  size_t layers() const { return layers_.size(); }
  size_t keys() const { return layer_of_.size(); }

  // A layer that holds no more than its floor gives up nothing while another can.
  void set_floor(size_t layer, size_t floor) { layers_.at(layer).floor = floor; }
  // These alone are given up only when nothing else is left; they may be in the pool or not.
  void keep(std::span<const int32_t> keys);
  // The numbers of one layer: for each memory what a use is worth, and the count of every expert [memories, experts].
  // Without memories the time now, and when each expert was used last. Throws std::invalid_argument: other numbers
  // than these, or such that counting never gives.
  void recall(size_t layer, std::span<const double> worths, std::span<const double> counts);
  // A forward pass was at this layer last. Throws std::out_of_range, as the others do: there is no such layer.
  void stand(size_t layer);

  void use(int32_t key);
  // `key` is in the pool now; that is no use. And: it is not any more.
  void enter(int32_t key);
  void leave(int32_t key);

  // Up to `count` keys that would be given up next, in order, of those that may go. Changes no later answer.
  std::vector<int32_t> choose(size_t count, const std::function<bool(int32_t key)>& may_go);

 private:
  struct Entry {
    double value;
    int32_t key;
  };
  struct Layer {
    int32_t first_key;
    size_t experts;
    size_t floor = 0;
    std::vector<double> worths;  // by memory
    std::vector<double> counts;  // [memories, experts]; without memories the last use's time [experts]
    std::vector<Entry> present;  // in order, if `sorted`
    bool sorted = true;
  };
  // The first expert of a layer that may still go.
  struct Head {
    double rank;
    size_t layer, place;
  };

  double value(const Layer& layer, size_t expert) const;
  double rank(size_t layer, double value) const;
  const std::vector<Entry>& in_order(Layer& layer);
  void choose_above(bool floors, bool spare, size_t count, const std::function<bool(int32_t key)>& may_go,
                    std::vector<int32_t>& chosen);

  const OrderRule rule_;
  std::vector<Layer> layers_;
  std::vector<uint32_t> layer_of_;  // by key
  std::vector<bool> kept_;          // by key
  double time_ = 0;                 // of the last use, without memories
  size_t now_ = 0;                  // the layer of the last use
};

}  // namespace lme::stream
