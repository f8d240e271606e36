// The Python door of the reader: converts arguments, releases the GIL, turns failures into exceptions.
// _ext.pyi describes it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <cerrno>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "batch.h"
#include "build_facts.h"
#include "crc32.h"
#include "interpreter_gate.h"
#include "lme_expert_io.h"
#include "huge_pages.h"
#include "page_release.h"
#include "python_lists.h"
#include "scatter_plan.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

[[noreturn]] void raise_failure(const lme::Failure& failure) {
  // The classes are Python's (liblme_expert_io.errors), so that both doors raise the same ones.
  const nb::object errors = nb::module_::import_("liblme_expert_io.errors");
  nb::object error;
  if (failure.kind == lme::Failure::kChecksum) {
    error = errors.attr("ChecksumError")(failure.job, failure.expected, failure.actual);
  } else {
    error = errors.attr("ReadError")(failure.job, failure.segment, failure.error, failure.offset,
                                     failure.wanted, failure.got);
  }
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw nb::python_error();
}

std::vector<mx::array> arrays_of(nb::handle sequence) {
  std::vector<mx::array> arrays;
  for (nb::handle item : sequence) {
    if (!nb::isinstance<mx::array>(item)) {
      throw nb::type_error(
          ("arrays[" + std::to_string(arrays.size()) + "] must be an mlx.core.array").c_str());
    }
    arrays.push_back(nb::cast<mx::array>(item));
  }
  return arrays;
}

std::vector<bool> flags_of(nb::handle sequence) {
  std::vector<bool> flags;
  for (nb::handle item : sequence) flags.push_back(nb::cast<bool>(item));
  return flags;
}

uint64_t read_records(const lme::ScatterPlan& plan, nb::object slots, nb::object fds, nb::object offsets,
                      nb::object crcs, int64_t threads, bool direct) {
  const auto targets = lme::integers<int64_t>(slots, "slots");
  const auto descriptors = lme::integers<int32_t>(fds, "fds");
  const auto places = lme::integers<int64_t>(offsets, "offsets");
  std::vector<uint32_t> sums;
  lme::Batch batch{.segments = plan.segments(),
                   .slots = plan.slots(),
                   .targets = targets,
                   .fds = descriptors,
                   .offsets = places,
                   .crcs = std::nullopt,
                   .threads = threads,
                   .direct = direct};
  if (!crcs.is_none()) {
    sums = lme::integers<uint32_t>(crcs, "crcs");
    batch.crcs = sums;
  }
  batch.check();
  const lme::Outcome outcome = lme::InterpreterGate::pass([&] { return lme::read(batch); });
  if (outcome.failure) raise_failure(*outcome.failure);
  return outcome.bytes;
}

uint32_t crc32(nb::object data, uint32_t value) {
  Py_buffer view;
  if (PyObject_GetBuffer(data.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  const auto size = static_cast<size_t>(view.len);
  constexpr size_t kWorthUnlocking = 64 << 10;
  try {
    value = size < kWorthUnlocking
                ? lme::crc32(value, view.buf, size)
                : lme::InterpreterGate::pass([&] { return lme::crc32(value, view.buf, size); });
  } catch (...) {
    PyBuffer_Release(&view);
    throw;
  }
  PyBuffer_Release(&view);
  return value;
}

template <typename Ask>
uint64_t ask_for_pages(nb::object array, const Ask& ask) {
  const mx::array target = arrays_of(nb::make_tuple(array)).front();
  try {
    return lme::InterpreterGate::pass([&] { return ask(target); });
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
  }
}

uint64_t release_rows(nb::object array, int64_t rows) {
  return ask_for_pages(array, [=](const mx::array& target) { return lme::release_rows(target, rows); });
}

uint64_t use_huge_pages(nb::object array) { return ask_for_pages(array, lme::use_huge_pages); }

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> facts = lme::build_facts();
  facts["abi"] = std::to_string(LME_EXPERT_IO_ABI_VERSION);
  facts["crc32"] = lme::crc32_implementations().front().name;
#if defined(__APPLE__)
  facts["direct_io"] = "F_NOCACHE";
#else
  facts["direct_io"] = "O_DIRECT";
#endif
  return facts;
}

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "Batched positional reads into evaluated MLX arrays.";
  nb::module_::import_("mlx.core");  // registers mx.array with nanobind before it is looked up
  lme::InterpreterGate::install();

  nb::class_<lme::ScatterPlan>(m, "ScatterPlan")
      .def(
          "__init__",
          [](lme::ScatterPlan* self, nb::object arrays, nb::object nbytes, nb::object widen) {
            new (self) lme::ScatterPlan(arrays_of(arrays), lme::integers<int64_t>(nbytes, "nbytes"),
                                        flags_of(widen));
          },
          nb::arg("arrays"), nb::arg("nbytes"), nb::arg("widen"))
      .def_prop_ro("slots", &lme::ScatterPlan::slots)
      .def_prop_ro("record_bytes", &lme::ScatterPlan::record_bytes)
      .def("read", &read_records, nb::arg("slots"), nb::arg("fds"), nb::arg("offsets"),
           nb::arg("crcs") = nb::none(), nb::kw_only(), nb::arg("threads") = 4, nb::arg("direct") = false);

  m.def("crc32", &crc32, nb::arg("data"), nb::arg("value") = 0);
  m.def("release_rows", &release_rows, nb::arg("array"), nb::arg("rows"));
  m.def("use_huge_pages", &use_huge_pages, nb::arg("array"));
  m.def("build_info", &build_info);
}
