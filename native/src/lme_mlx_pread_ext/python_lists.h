// Python sequences of integers to vectors, with errors that name the list and the place.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace lme {

// ValueError for an integer that T cannot hold, TypeError for what is no integer or no sequence.
template <typename T>
std::vector<T> integers(nanobind::handle sequence, const char* name) {
  const std::string what(name);
  const auto fast =
      nanobind::steal(PySequence_Fast(sequence.ptr(), (what + " must be a sequence of integers").c_str()));
  if (!fast.is_valid()) throw nanobind::python_error();
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(fast.ptr());
  std::vector<T> result(static_cast<size_t>(size));
  for (Py_ssize_t i = 0; i < size; ++i) {
    const auto item = nanobind::steal(PyNumber_Index(PySequence_Fast_GET_ITEM(fast.ptr(), i)));
    if (!item.is_valid()) throw nanobind::python_error();
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(item.ptr(), &overflow);
    if (overflow != 0 || value < static_cast<long long>(std::numeric_limits<T>::min()) ||
        value > static_cast<long long>(std::numeric_limits<T>::max())) {
      throw nanobind::value_error((what + "[" + std::to_string(i) + "] is " +
                                   nanobind::cast<std::string>(nanobind::str(item)) +
                                   ": it does not fit in " + std::to_string(8 * sizeof(T)) +
                                   (std::numeric_limits<T>::is_signed ? " bits, signed" : " bits, unsigned"))
                                      .c_str());
    }
    result[static_cast<size_t>(i)] = static_cast<T>(value);
  }
  return result;
}

}  // namespace lme
