// The Python door of the expert stream: converts arguments, releases the GIL to wait, gives the log as Python
// objects. _ext.pyi describes it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "build_facts.h"
#include "expert_stream.h"
#include "lazy_stream.h"
#include "scatter_plan.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

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
    for (const auto& a : pass.arrivals) arrivals.append(nb::make_tuple(a.expert, a.slot, a.evicted, a.failed));
    const nb::bytes routes(reinterpret_cast<const char*>(pass.routes.data()), pass.routes.size() * sizeof(uint32_t));
    passes.append(nb::make_tuple(pass.layer, pass.mark, pass.serial, pass.hits, arrivals, pass.k, routes, pass.bytes,
                                pass.read_seconds, pass.wait_seconds));
  }
  return nb::make_tuple(log.serial, passes, failure_of(log.failure));
}

// The Python object. The stream itself lives as long as a queued pass needs it.
class Door {
 public:
  Door(size_t threads, bool direct) : stream_(std::make_shared<ExpertStream>(threads, direct)) {}

  size_t add_pool(const nb::sequence& arrays, const std::vector<int64_t>& nbytes, const std::vector<bool>& widen) {
    std::vector<mx::array> banks;
    for (nb::handle item : arrays) {
      if (!nb::isinstance<mx::array>(item)) throw nb::type_error("arrays must be mlx.core.array");
      banks.push_back(nb::cast<mx::array>(item));
    }
    auto plan = std::make_shared<const lme::ScatterPlan>(std::move(banks), nbytes, widen);
    return stream_->add_pool(plan->segments(), plan->slots(), plan);
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

  void deal(size_t pool, const std::vector<int32_t>& slots, const std::vector<int32_t>& keys, uint64_t serial) {
    if (slots.size() != keys.size()) throw nb::value_error("slots and keys must be of one length");
    std::vector<lme::stream::Candidate> hand(slots.size());
    for (size_t i = 0; i < hand.size(); ++i) {
      check_slot(pool, slots[i]);
      hand[i] = {slots[i], keys[i]};
    }
    stream_->deal(pool, std::move(hand), serial);
  }
  size_t dealt(size_t pool) { return stream_->dealt(pool); }

  void set(size_t pool, const std::vector<int32_t>& slots, const std::vector<int32_t>& keys) {
    if (slots.size() != keys.size()) throw nb::value_error("slots and keys must be of one length");
    for (size_t i = 0; i < slots.size(); ++i) {
      check_slot(pool, slots[i]);
      if (keys[i] < -1 || keys[i] >= static_cast<int64_t>(stream_->keys_of(pool))) {
        throw nb::index_error("a key is outside the pool's");
      }
      stream_->set(pool, slots[i], keys[i]);
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

  std::shared_ptr<ExpertStream> stream_;
};

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "Routed experts out of a bank and the disk, as lazy MLX operations.";
  nb::module_::import_("mlx.core");         // registers mx.array with nanobind before it is looked up
  nb::module_::import_("lme_cpu_kernels");  // likewise ExpertProduct

  nb::class_<StreamedLayer>(m, "StreamedLayer")
      .def("__call__", &StreamedLayer::operator(), nb::arg("x"), nb::arg("ids"), nb::arg("mark"));

  nb::class_<Door>(m, "ExpertStream")
      .def(nb::init<size_t, bool>(), nb::kw_only(), nb::arg("threads"), nb::arg("direct"))
      .def("add_pool", &Door::add_pool, nb::arg("arrays"), nb::arg("nbytes"), nb::arg("widen"))
      .def("add_layer", &Door::add_layer, nb::arg("pool"), nb::arg("experts"), nb::arg("fds"), nb::arg("offsets"),
           nb::arg("crcs").none())
      .def("uses", &Door::uses, nb::arg("layer"))
      .def("layer", &Door::layer, nb::arg("layer"), nb::arg("product"))
      .def("deal", &Door::deal, nb::arg("pool"), nb::arg("slots"), nb::arg("keys"), nb::arg("serial"))
      .def("dealt", &Door::dealt, nb::arg("pool"))
      .def("set", &Door::set, nb::arg("pool"), nb::arg("slots"), nb::arg("keys"))
      .def("pin", &Door::pin, nb::arg("pool"), nb::arg("slots"))
      .def("unpin", &Door::unpin)
      .def("keys", &Door::keys, nb::arg("pool"))
      .def("drain", &Door::drain)
      .def("forgive", &Door::forgive)
      .def("skip", &Door::skip, nb::arg("on"))
      .def("wait", &Door::wait);
  m.def("build_info", &lme::build_facts);
}
