#include "lazy_products.h"

#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "crew.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

namespace mx = mlx::core;

namespace lme {
namespace {

const cpu::Kernels* kernels_named(const std::string& name) {
  const auto sets = cpu::kernel_sets();
  if (name.empty()) return &sets.front();
  for (const cpu::Kernels& kernels : sets) {
    if (name == kernels.name) return &kernels;
  }
  throw std::invalid_argument("this CPU has no kernels named " + name);
}

size_t checked_threads(int threads) {
  if (threads < 0 || threads > static_cast<int>(cpu::Crew::kMostThreads)) {
    throw std::invalid_argument("threads is " + std::to_string(threads) + ": it must be 0 (every CPU) to " +
                                std::to_string(cpu::Crew::kMostThreads));
  }
  return threads == 0 ? std::min(cpu::available_threads(), cpu::Crew::kMostThreads)
                      : static_cast<size_t>(threads);
}

mx::Stream cpu_stream() { return mx::default_stream(mx::Device(mx::Device::cpu)); }

// A matrix of any strides as rows; only rows whose elements do not follow each other are copied.
template <typename T>
class StridedRows {
 public:
  explicit StridedRows(const mx::array& a)
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
  mx::Shape shape_;
  mx::Strides strides_;
  bool contiguous_;
};

// What the two have in common: an output that the stream's thread fills.
class CpuProduct : public mx::Primitive {
 public:
  using mx::Primitive::Primitive;

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    if (out.size() == 0) return;
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (const mx::array& input : inputs) encoder.set_input_array(input);
    encoder.set_output_array(out);
    enqueue(encoder, inputs, out.data<float>());
  }
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(std::string(name()) + " runs on the CPU only");
  }

 private:
  // MLX keeps the inputs' and the output's memory until the task is done; the weights it does not know of.
  virtual void enqueue(mx::cpu::CommandEncoder& encoder, const std::vector<mx::array>& inputs, float* out) = 0;
};

class DensePrimitive : public CpuProduct {
 public:
  DensePrimitive(mx::Stream stream, std::shared_ptr<const DenseProduct::Held> held)
      : CpuProduct(stream), held_(std::move(held)) {}
  const char* name() const override { return "lme_cpu_kernels.DenseProduct"; }

 private:
  void enqueue(mx::cpu::CommandEncoder& encoder, const std::vector<mx::array>& inputs, float* out) override {
    encoder.dispatch([held = held_, x = StridedRows<float>(inputs[0]), out] {
      std::vector<float> copy;
      cpu::multiply(cpu::DenseCall{.matrix = &held->matrix,
                                   .x = x.rows(copy),
                                   .out = out,
                                   .kernels = held->kernels,
                                   .threads = held->threads});
    });
  }

  std::shared_ptr<const DenseProduct::Held> held_;
};

class ExpertPrimitive : public CpuProduct {
 public:
  ExpertPrimitive(mx::Stream stream, std::shared_ptr<const ExpertProduct::Held> held)
      : CpuProduct(stream), held_(std::move(held)) {}
  const char* name() const override { return "lme_cpu_kernels.ExpertProduct"; }

 private:
  void enqueue(mx::cpu::CommandEncoder& encoder, const std::vector<mx::array>& inputs, float* out) override {
    std::optional<StridedRows<float>> scores;
    if (inputs.size() > 2) scores.emplace(inputs[2]);
    encoder.dispatch([held = held_, x = StridedRows<float>(inputs[0]), slots = StridedRows<uint32_t>(inputs[1]),
                      scores = std::move(scores), out] {
      const std::vector<uint32_t> ids = slots.values();
      const size_t most = held->experts.gate.slots;
      for (size_t i = 0; i < ids.size(); ++i) {
        // An int32 below zero is a large uint32.
        if (ids[i] >= most) {
          throw std::out_of_range("lme_cpu_kernels: slots[" + std::to_string(i / slots.width()) + ", " +
                                  std::to_string(i % slots.width()) + "] is " +
                                  std::to_string(static_cast<int32_t>(ids[i])) + ", and there are " +
                                  std::to_string(most) + " slots");
        }
      }
      const std::vector<float> weights = scores ? scores->values() : std::vector<float>();
      std::vector<float> copy;
      cpu::multiply(cpu::ExpertCall{.experts = &held->experts,
                                    .x = x.rows(copy),
                                    .slots = ids,
                                    .scores = scores ? weights.data() : nullptr,
                                    .out = out,
                                    .kernels = held->kernels,
                                    .threads = held->threads});
    });
  }

  std::shared_ptr<const ExpertProduct::Held> held_;
};

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

void check_activations(const mx::array& x, size_t columns) {
  if (x.dtype() != mx::float32) refuse("x is ", x.dtype(), ", not float32");
  if (x.ndim() == 0 || static_cast<size_t>(x.shape(-1)) != columns) {
    refuse("x has the shape ", x.shape(), ": its last extent must be ", columns);
  }
}

mx::Shape with_last(mx::Shape shape, size_t last) {
  shape.back() = static_cast<int>(last);
  return shape;
}

}  // namespace

DenseProduct::DenseProduct(WeightArrays weight, int threads, const std::string& kernels) {
  const cpu::PackedMatrix matrix = weight.check("weight");
  if (matrix.slots != 1) refuse("weight has ", matrix.slots, " slots: a dense product has one");
  held_ = std::make_shared<const Held>(
      Held{std::move(weight), matrix, kernels_named(kernels), checked_threads(threads)});
}

mx::array DenseProduct::operator()(const mx::array& x) const {
  check_activations(x, held_->matrix.columns);
  return mx::array(with_last(x.shape(), held_->matrix.rows), mx::float32,
                   std::make_shared<DensePrimitive>(cpu_stream(), held_), {x});
}

ExpertProduct::ExpertProduct(WeightArrays gate, WeightArrays up, WeightArrays down, cpu::Activation activation,
                             int threads, const std::string& kernels) {
  cpu::ExpertMatrices experts{gate.check("gate"), up.check("up"), down.check("down"), activation};
  const auto& [g, u, d, _] = experts;
  if (g.slots != u.slots || g.slots != d.slots) {
    refuse("gate, up and down have ", g.slots, ", ", u.slots, " and ", d.slots, " slots: all need the same");
  }
  if (g.rows != u.rows || g.columns != u.columns) {
    refuse("gate is ", g.rows, " × ", g.columns, " and up ", u.rows, " × ", u.columns, ": both need the same");
  }
  if (d.columns != g.rows) {
    refuse("down takes ", d.columns, " columns, but gate and up have ", g.rows, " rows");
  }
  held_ = std::make_shared<const Held>(Held{std::move(gate), std::move(up), std::move(down), experts,
                                            kernels_named(kernels), checked_threads(threads)});
}

size_t ExpertProduct::bytes_per_slot() const {
  const auto& e = held_->experts;
  return e.gate.bytes_per_slot() + e.up.bytes_per_slot() + e.down.bytes_per_slot();
}

mx::array ExpertProduct::operator()(const mx::array& x, const mx::array& slots,
                                    const std::optional<mx::array>& scores) const {
  check_activations(x, held_->experts.gate.columns);
  if (slots.dtype() != mx::uint32 && slots.dtype() != mx::int32) {
    refuse("slots is ", slots.dtype(), ", not uint32 or int32");
  }
  const mx::Shape tokens(x.shape().begin(), x.shape().end() - 1);
  if (slots.ndim() != x.ndim() || mx::Shape(slots.shape().begin(), slots.shape().end() - 1) != tokens) {
    refuse("slots has the shape ", slots.shape(), " and x ", x.shape(), ": all but the last must agree");
  }
  std::vector<mx::array> inputs{x, slots};
  mx::Shape shape = with_last(x.shape(), held_->experts.down.rows);
  if (scores) {
    if (scores->dtype() != mx::float32) refuse("scores is ", scores->dtype(), ", not float32");
    if (scores->shape() != slots.shape()) {
      refuse("scores has the shape ", scores->shape(), " and slots ", slots.shape(), ": both need the same");
    }
    inputs.push_back(*scores);
  } else {
    shape.insert(shape.end() - 1, slots.shape(-1));
  }
  return mx::array(std::move(shape), mx::float32, std::make_shared<ExpertPrimitive>(cpu_stream(), held_),
                   std::move(inputs));
}

}  // namespace lme
