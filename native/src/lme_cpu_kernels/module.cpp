// The Python door of the CPU kernels: converts arguments. _ext.pyi describes it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "build_facts.h"
#include "crew.h"
#include "kernels.h"
#include "lazy_products.h"
#include "lazy_row_operations.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

// {"weight": …, "scales": …, "biases": …, "bias": …} and (mode, bits, group size) or None.
lme::WeightArrays weights_of(const nb::dict& components, const nb::object& packing, const char* name) {
  std::optional<mx::array> weight, scales, biases, bias;
  for (const auto [key, value] : components) {
    const std::string component = nb::cast<std::string>(key);
    const std::string what = std::string(name) + "." + component;
    std::optional<mx::array>* place = component == "weight"   ? &weight
                                      : component == "scales" ? &scales
                                      : component == "biases" ? &biases
                                      : component == "bias"   ? &bias
                                                              : nullptr;
    if (place == nullptr) throw nb::value_error((what + " is no component the kernels know").c_str());
    if (!nb::isinstance<mx::array>(value)) {
      throw nb::type_error((what + " must be an mlx.core.array").c_str());
    }
    place->emplace(nb::cast<mx::array>(value));
  }
  if (!weight) throw nb::value_error((std::string(name) + ".weight is missing").c_str());
  lme::WeightArrays arrays{.weight = *weight,
                           .scales = scales,
                           .biases = biases,
                           .bias = bias,
                           .group_size = 0,
                           .bits = 0,
                           .mode = ""};
  if (!packing.is_none()) {
    const nb::tuple fields(packing);
    if (nb::len(fields) != 3) {
      throw nb::value_error((std::string(name) + "'s packing must be (mode, bits, group size)").c_str());
    }
    arrays.mode = nb::cast<std::string>(fields[0]);
    arrays.bits = nb::cast<int>(fields[1]);
    arrays.group_size = nb::cast<int>(fields[2]);
  }
  return arrays;
}

lme::cpu::Activation activation_of(const std::string& name, std::optional<float> alpha,
                                   std::optional<float> limit) {
  using lme::cpu::Gating;
  constexpr float kNone = std::numeric_limits<float>::infinity();
  lme::cpu::Activation activation{Gating::kSwiglu, 1.0f, limit.value_or(kNone)};
  if (name == "swiglu_oai") {
    activation.gating = Gating::kSwigluOai;
    activation.alpha = alpha.value_or(1.702f);
  } else if (alpha) {
    throw nb::value_error("only swiglu_oai has an alpha");
  } else if (name == "geglu_tanh") {
    activation.gating = Gating::kGegluTanh;
  } else if (name != "swiglu") {
    throw nb::value_error(
        ("no activation is named " + name + ": there are swiglu, swiglu_oai and geglu_tanh").c_str());
  }
  if (!(activation.limit > 0) || !std::isfinite(activation.alpha)) {
    throw nb::value_error("limit must be above 0 and alpha finite");
  }
  return activation;
}

mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, float scale, const nb::object& mask,
                    const std::optional<mx::array>& sinks, int threads, const std::string& kernels) {
  if (mask.is_none()) return lme::attention(q, k, v, scale, "", std::nullopt, sinks, threads, kernels);
  if (nb::isinstance<mx::array>(mask)) {
    return lme::attention(q, k, v, scale, "", nb::cast<mx::array>(mask), sinks, threads, kernels);
  }
  if (!nb::isinstance<nb::str>(mask)) throw nb::type_error("mask must be None, \"causal\" or an mlx.core.array");
  return lme::attention(q, k, v, scale, nb::cast<std::string>(mask), std::nullopt, sinks, threads, kernels);
}

std::vector<float> exponential(std::vector<float> values, const std::string& kernels) {
  const size_t count = values.size();
  values.resize((count + 15) / 16 * 16);
  for (const lme::cpu::Kernels& set : lme::cpu::kernel_sets()) {
    if (kernels == set.name) {
      set.exponential(values.data(), values.size());
      values.resize(count);
      return values;
    }
  }
  throw nb::value_error(("this CPU has no kernels named " + kernels).c_str());
}

std::vector<std::string> kernel_sets() {
  std::vector<std::string> names;
  for (const lme::cpu::Kernels& set : lme::cpu::kernel_sets()) names.emplace_back(set.name);
  return names;
}

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> facts = lme::build_facts();
  facts["kernels"] = lme::cpu::kernel_sets().front().name;
  facts["threads"] = std::to_string(lme::cpu::available_threads());
  return facts;
}

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "Products with packed weights on the CPU, as lazy MLX operations.";
  nb::module_::import_("mlx.core");  // registers mx.array with nanobind before it is looked up

  nb::class_<lme::DenseProduct>(m, "DenseProduct")
      .def(
          "__init__",
          [](lme::DenseProduct* self, const nb::dict& components, const nb::object& packing, int threads,
             const std::string& kernels) {
            lme::WeightArrays arrays = weights_of(components, packing, "weight");
            new (self) lme::DenseProduct(std::move(arrays), threads, kernels);
          },
          nb::arg("components"), nb::arg("packing").none(), nb::kw_only(), nb::arg("threads") = 0,
          nb::arg("kernels") = "")
      .def("__call__", &lme::DenseProduct::operator(), nb::arg("x"))
      .def_prop_ro("threads", &lme::DenseProduct::threads)
      .def_prop_ro("kernels", &lme::DenseProduct::kernels);

  nb::class_<lme::ExpertProduct>(m, "ExpertProduct")
      .def(
          "__init__",
          [](lme::ExpertProduct* self, const nb::dict& gate, const nb::dict& up, const nb::dict& down,
             const nb::tuple& packing, const std::string& activation, std::optional<float> alpha,
             std::optional<float> limit, int threads, const std::string& kernels) {
            if (nb::len(packing) != 3) throw nb::value_error("packing must be one of each for gate, up, down");
            // One after the other, so that it is the first mistake that is named.
            lme::WeightArrays gates = weights_of(gate, packing[0], "gate");
            lme::WeightArrays ups = weights_of(up, packing[1], "up");
            lme::WeightArrays downs = weights_of(down, packing[2], "down");
            new (self) lme::ExpertProduct(std::move(gates), std::move(ups), std::move(downs),
                                          activation_of(activation, alpha, limit), threads, kernels);
          },
          nb::arg("gate"), nb::arg("up"), nb::arg("down"), nb::arg("packing"), nb::kw_only(),
          nb::arg("activation"), nb::arg("alpha") = nb::none(), nb::arg("limit") = nb::none(),
          nb::arg("threads") = 0, nb::arg("kernels") = "")
      .def("__call__", &lme::ExpertProduct::operator(), nb::arg("x"), nb::arg("slots"),
           nb::arg("scores") = nb::none())
      .def("fill", &lme::ExpertProduct::fill, nb::arg("out"), nb::arg("x"), nb::arg("routes"), nb::arg("slots"))
      .def_prop_ro("slots", &lme::ExpertProduct::slots)
      .def_prop_ro("bytes_per_slot", &lme::ExpertProduct::bytes_per_slot)
      .def_prop_ro("threads", &lme::ExpertProduct::threads)
      .def_prop_ro("kernels", &lme::ExpertProduct::kernels);

  nb::class_<lme::RmsNorm>(m, "RmsNorm")
      .def(nb::init<std::optional<mx::array>, float, int, const std::string&>(), nb::arg("weight").none(),
           nb::arg("eps"), nb::kw_only(), nb::arg("threads") = 0, nb::arg("kernels") = "")
      .def("__call__", &lme::RmsNorm::operator(), nb::arg("x"));

  nb::class_<lme::Rotary>(m, "Rotary")
      .def(nb::init<int, bool, double, float, int>(), nb::arg("dims"), nb::arg("traditional"), nb::arg("base"),
           nb::arg("scale"), nb::kw_only(), nb::arg("threads") = 0)
      .def("__call__", &lme::Rotary::operator(), nb::arg("x"), nb::arg("offset"));

  m.def("attention", &attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::kw_only(), nb::arg("scale"),
        nb::arg("mask") = nb::none(), nb::arg("sinks") = nb::none(), nb::arg("threads") = 0,
        nb::arg("kernels") = "");
  m.def("exponential", &exponential, nb::arg("values"), nb::arg("kernels"));
  m.def("kernel_sets", &kernel_sets);
  m.def("build_info", &build_info);
}
