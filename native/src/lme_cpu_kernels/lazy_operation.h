// What the lazy operations have in common: choosing kernels and threads, inputs of any strides, the output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "crew.h"
#include "kernels.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"

namespace lme {

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline const cpu::Kernels* kernels_named(const std::string& name) {
  const auto sets = cpu::kernel_sets();
  if (name.empty()) return &sets.front();
  for (const cpu::Kernels& kernels : sets) {
    if (name == kernels.name) return &kernels;
  }
  throw std::invalid_argument("this CPU has no kernels named " + name);
}

inline size_t checked_threads(int threads) {
  if (threads < 0 || threads > static_cast<int>(cpu::Crew::kMostThreads)) {
    throw std::invalid_argument("threads is " + std::to_string(threads) + ": it must be 0 (every CPU) to " +
                                std::to_string(cpu::Crew::kMostThreads));
  }
  return threads == 0 ? std::min(cpu::available_threads(), cpu::Crew::kMostThreads)
                      : static_cast<size_t>(threads);
}

inline mlx::core::Stream cpu_stream() { return mlx::core::default_stream(mlx::core::Device(mlx::core::Device::cpu)); }

// A matrix of any strides as rows; only rows whose elements do not follow each other are copied.
template <typename T>
class StridedRows {
 public:
  explicit StridedRows(const mlx::core::array& a)
      : data_(a.data<T>()), shape_(a.shape()), strides_(a.strides()), contiguous_(a.flags().row_contiguous) {}

  size_t width() const { return static_cast<size_t>(shape_.back()); }
  size_t count() const {
    size_t rows = 1;
    for (size_t d = 0; d + 1 < shape_.size(); ++d) rows *= static_cast<size_t>(shape_[d]);
    return rows;
  }

  // Addresses of the rows. What had to be copied is in `copy`.
  std::vector<const T*> rows(std::vector<T>& copy) const {
    std::vector<const T*> result(count());
    for (size_t r = 0; r < result.size(); ++r) result[r] = data_ + offset(r);
    const int64_t step = strides_.back();
    if (contiguous_ || step == 1 || width() == 1) return result;
    copy.resize(result.size() * width());
    for (size_t r = 0; r < result.size(); ++r) {
      for (size_t i = 0; i < width(); ++i) copy[r * width() + i] = result[r][static_cast<int64_t>(i) * step];
      result[r] = copy.data() + r * width();
    }
    return result;
  }

  std::vector<T> values() const {
    std::vector<T> copy, result;
    result.reserve(count() * width());
    for (const T* row : rows(copy)) result.insert(result.end(), row, row + width());
    return result;
  }

 private:
  int64_t offset(size_t row) const {
    if (contiguous_) return static_cast<int64_t>(row * width());
    int64_t at = 0;
    for (size_t d = shape_.size() - 1; d-- > 0;) {
      const auto extent = static_cast<size_t>(shape_[d]);
      at += static_cast<int64_t>(row % extent) * strides_[d];
      row /= extent;
    }
    return at;
  }

  const T* data_;
  mlx::core::Shape shape_;
  mlx::core::Strides strides_;
  bool contiguous_;
};

// A primitive with one float32 output, which the stream's thread fills.
class LazyOperation : public mlx::core::Primitive {
 public:
  using mlx::core::Primitive::Primitive;

  void eval_cpu(const std::vector<mlx::core::array>& inputs, std::vector<mlx::core::array>& outputs) override {
    mlx::core::array& out = outputs[0];
    give_memory(inputs, out);
    if (out.size() == 0) return;
    auto& encoder = mlx::core::cpu::get_command_encoder(stream());
    for (const mlx::core::array& input : inputs) encoder.set_input_array(input);
    encoder.set_output_array(out);
    enqueue(encoder, inputs, out.data<float>());
  }
  void eval_gpu(const std::vector<mlx::core::array>&, std::vector<mlx::core::array>&) override {
    throw std::runtime_error(std::string(name()) + " runs on the CPU only");
  }

 private:
  virtual void give_memory(const std::vector<mlx::core::array>&, mlx::core::array& out) {
    out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  }
  // MLX keeps the inputs' and the output's memory until the task is done; the weights it does not know of.
  virtual void enqueue(mlx::core::cpu::CommandEncoder& encoder, const std::vector<mlx::core::array>& inputs, float* out) = 0;
};

}  // namespace lme
