// The Python door of the expert stream: converts arguments, releases the GIL to wait, gives the log as Python
// objects. _ext.pyi describes it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "build_facts.h"
#include "expert_stream.h"
#include "lazy_stream.h"
#include "scatter_plan.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

using lme::stream::EvictionOrder;
using lme::stream::ExpertStream;
using lme::stream::StreamedLayer;

nb::object failure_of(const std::optional<lme::stream::PassFailure>& failure) {
  using Kind = lme::stream::PassFailure::Kind;
  if (!failure) return nb::none();
  nb::dict told;
  told["layer"] = failure->layer;
  if (failure->kind == Kind::kRoute) {
    told["kind"] = "route";
    told["routes"] = failure->routes;
  } else if (failure->kind == Kind::kSlots) {
    told["kind"] = "slots";
  } else if (failure->kind == Kind::kMemory) {
    told["kind"] = "memory";
  } else {
    const lme::Failure& read = *failure->read;
    told["expert"] = failure->expert;
    if (read.kind == lme::Failure::kChecksum) {
      told["kind"] = "checksum";
      told["expected"] = read.expected;
      told["actual"] = read.actual;
    } else if (read.error == lme::stream::kFileChanged) {
      told["kind"] = "changed";
      told["segment"] = read.segment;
    } else {
      told["kind"] = "read";
      told["segment"] = read.segment;
      told["errno"] = read.error;
      told["offset"] = read.offset;
      told["wanted"] = read.wanted;
      told["got"] = read.got;
    }
  }
  return told;
}

nb::tuple log_of(const lme::stream::Log& log) {
  nb::list passes;
  for (const lme::stream::PassRecord& pass : log.passes) {
    nb::list arrivals;
    for (const auto& a : pass.arrivals) arrivals.append(nb::make_tuple(a.expert, a.slot, a.taken, a.evicted, a.failed));
    const nb::bytes routes(reinterpret_cast<const char*>(pass.routes.data()), pass.routes.size() * sizeof(uint32_t));
    passes.append(nb::make_tuple(pass.layer, pass.mark, pass.hits, arrivals, pass.k, routes, pass.bytes,
                                pass.read_seconds, pass.wait_seconds, pass.prefetched, pass.prefetch_used));
  }
  return nb::make_tuple(passes, failure_of(log.failure));
}

// The Python object. The stream itself lives as long as a queued pass needs it.
class Door {
 public:
  Door(size_t threads, bool direct) : stream_(std::make_shared<ExpertStream>(threads, direct)) {}

  size_t add_pool(const nb::sequence& arrays, const std::vector<int64_t>& nbytes, const std::vector<bool>& widen,
                  const std::vector<std::pair<double, double>>& memories, bool by_distance) {
    std::vector<mx::array> banks;
    for (nb::handle item : arrays) {
      if (!nb::isinstance<mx::array>(item)) throw nb::type_error("arrays must be mlx.core.array");
      banks.push_back(nb::cast<mx::array>(item));
    }
    auto plan = std::make_shared<const lme::ScatterPlan>(std::move(banks), nbytes, widen);
    lme::stream::OrderRule rule{.memories = {}, .by_distance = by_distance};
    for (const auto& [growth, weight] : memories) rule.memories.push_back({growth, weight});
    return stream_->add_pool(plan->segments(), plan->slots(), std::move(rule), plan);
  }

  nb::tuple add_layer(size_t pool, size_t experts, std::vector<int32_t> fds, std::vector<int64_t> offsets,
                      std::optional<std::vector<uint32_t>> crcs) {
    const size_t layer =
        stream_->add_layer(pool, experts,
                           {std::move(fds), std::move(offsets), crcs ? std::move(*crcs) : std::vector<uint32_t>()});
    return nb::make_tuple(layer, stream_->first_key(layer));
  }

  nb::object uses(size_t layer) {
    auto* kept = new std::shared_ptr<ExpertStream>(stream_);
    const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::shared_ptr<ExpertStream>*>(p); });
    return nb::cast(nb::ndarray<uint64_t, nb::memview>(stream_->uses(layer), {stream_->experts(layer)}, owner));
  }

  StreamedLayer layer(size_t layer, const lme::ExpertProduct& product) const { return {stream_, layer, product}; }

  void set(size_t pool, const std::vector<int32_t>& slots, const std::vector<int32_t>& keys) {
    if (slots.size() != keys.size()) throw nb::value_error("slots and keys must be of one length");
    for (size_t i = 0; i < slots.size(); ++i) {
      check_slot(pool, slots[i]);
      if (keys[i] != -1) check_key(pool, keys[i]);
      stream_->set(pool, slots[i], keys[i]);
    }
  }
  void offer(size_t pool, const std::vector<int32_t>& slots) {
    for (const int32_t slot : slots) {
      check_slot(pool, slot);
      stream_->offer(pool, slot);
    }
  }
  void pin(size_t pool, const std::vector<int32_t>& slots) {
    for (const int32_t slot : slots) {
      check_slot(pool, slot);
      stream_->pin(pool, slot);
    }
  }
  void unpin() { stream_->unpin_all(); }
  std::vector<int32_t> keys(size_t pool) { return stream_->keys(pool); }
  std::vector<int32_t> next(size_t pool, size_t count) { return stream_->next(pool, count); }

  void floors(size_t pool, const std::vector<size_t>& floors) {
    stream_->order(pool, [&](EvictionOrder& order) {
      if (floors.size() != order.layers()) throw nb::value_error("a floor for each layer of the pool");
      for (size_t layer = 0; layer < floors.size(); ++layer) order.set_floor(layer, floors[layer]);
    });
  }
  void keep(size_t pool, const std::vector<int32_t>& keys) {
    for (const int32_t key : keys) check_key(pool, key);
    stream_->order(pool, [&](EvictionOrder& order) { order.keep(keys); });
  }
  void recall(size_t pool, const std::vector<std::tuple<size_t, std::vector<double>, std::vector<double>>>& layers,
              std::optional<size_t> latest) {
    stream_->order(pool, [&](EvictionOrder& order) {
      for (const auto& [layer, worths, counts] : layers) order.recall(layer, worths, counts);
      if (latest) order.stand(*latest);
    });
  }

  void prefetch() { stream_->prefetch(); }
  void reserve(size_t pool, const std::vector<int32_t>& slots) {
    for (const int32_t slot : slots) check_slot(pool, slot);
    const nb::gil_scoped_release unlocked;
    stream_->reserve(pool, slots);
  }

  nb::tuple drain() { return log_of(stream_->drain()); }
  void forgive() { stream_->forgive(); }
  void skip(bool on) { stream_->skip(on); }
  void wait() {
    const nb::gil_scoped_release unlocked;
    stream_->wait();
  }

 private:
  void check_slot(size_t pool, int32_t slot) const {
    if (slot < 0 || static_cast<size_t>(slot) >= stream_->slots_of(pool)) {
      throw nb::index_error(("slot " + std::to_string(slot) + " is not in the pool").c_str());
    }
  }
  void check_key(size_t pool, int32_t key) const {
    if (key < 0 || static_cast<size_t>(key) >= stream_->keys_of(pool)) {
      throw nb::index_error(("key " + std::to_string(key) + " is not the pool's").c_str());
    }
  }

  std::shared_ptr<ExpertStream> stream_;
};

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "Routed experts out of a bank and the disk, as lazy MLX operations.";
  nb::module_::import_("mlx.core");         // registers mx.array with nanobind before it is looked up
  nb::module_::import_("lme_cpu_kernels");  // likewise ExpertProduct

  nb::class_<StreamedLayer>(m, "StreamedLayer")
      .def("__call__", &StreamedLayer::operator(), nb::arg("x"), nb::arg("ids"), nb::arg("mark"),
           nb::arg("scores") = nb::none());

  nb::class_<Door>(m, "ExpertStream")
      .def(nb::init<size_t, bool>(), nb::kw_only(), nb::arg("threads"), nb::arg("direct"))
      .def("add_pool", &Door::add_pool, nb::arg("arrays"), nb::arg("nbytes"), nb::arg("widen"),
           nb::kw_only(), nb::arg("memories"), nb::arg("by_distance"))
      .def("add_layer", &Door::add_layer, nb::arg("pool"), nb::arg("experts"), nb::arg("fds"), nb::arg("offsets"),
           nb::arg("crcs").none())
      .def("uses", &Door::uses, nb::arg("layer"))
      .def("layer", &Door::layer, nb::arg("layer"), nb::arg("product"))
      .def("set", &Door::set, nb::arg("pool"), nb::arg("slots"), nb::arg("keys"))
      .def("offer", &Door::offer, nb::arg("pool"), nb::arg("slots"))
      .def("pin", &Door::pin, nb::arg("pool"), nb::arg("slots"))
      .def("unpin", &Door::unpin)
      .def("keys", &Door::keys, nb::arg("pool"))
      .def("next", &Door::next, nb::arg("pool"), nb::arg("count"))
      .def("floors", &Door::floors, nb::arg("pool"), nb::arg("floors"))
      .def("keep", &Door::keep, nb::arg("pool"), nb::arg("keys"))
      .def("recall", &Door::recall, nb::arg("pool"), nb::arg("layers"), nb::arg("latest").none())
      .def("prefetch", &Door::prefetch)
      .def("reserve", &Door::reserve, nb::arg("pool"), nb::arg("slots"))
      .def("drain", &Door::drain)
      .def("forgive", &Door::forgive)
      .def("skip", &Door::skip, nb::arg("on"))
      .def("wait", &Door::wait);
  m.def("build_info", &lme::build_facts);
}
