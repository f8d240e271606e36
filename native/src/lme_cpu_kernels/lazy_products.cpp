#include "lazy_products.h"

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "lazy_operation.h"

namespace mx = mlx::core;

namespace lme {
namespace {

class DensePrimitive : public LazyOperation {
 public:
  DensePrimitive(mx::Stream stream, std::shared_ptr<const DenseProduct::Held> held)
      : LazyOperation(stream), held_(std::move(held)) {}
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

class ExpertPrimitive : public LazyOperation {
 public:
  ExpertPrimitive(mx::Stream stream, std::shared_ptr<const ExpertProduct::Held> held)
      : LazyOperation(stream), held_(std::move(held)) {}
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

// Inputs: out, x, routes, slots.
class FillPrimitive : public LazyOperation {
 public:
  FillPrimitive(mx::Stream stream, std::shared_ptr<const ExpertProduct::Held> held)
      : LazyOperation(stream), held_(std::move(held)) {}
  const char* name() const override { return "lme_cpu_kernels.ExpertProduct.fill"; }

 private:
  void give_memory(const std::vector<mx::array>& inputs, mx::array& out) override {
    const mx::array& before = inputs[0];
    taken_over_ = before.is_donatable() && before.flags().row_contiguous && before.data_size() == before.size();
    if (taken_over_) {
      out.copy_shared_buffer(before);
    } else {
      out.set_data(mx::allocator::malloc(out.nbytes()));
    }
  }

  void enqueue(mx::cpu::CommandEncoder& encoder, const std::vector<mx::array>& inputs, float* out) override {
    std::optional<StridedRows<float>> before;
    if (!taken_over_) before.emplace(inputs[0]);
    const auto results = static_cast<size_t>(inputs[0].shape(0));
    encoder.dispatch([held = held_, x = StridedRows<float>(inputs[1]), routes = StridedRows<uint32_t>(inputs[2]),
                      slots = StridedRows<uint32_t>(inputs[3]), before = std::move(before), results, out] {
      std::vector<float> copy;
      if (before) {
        const std::vector<const float*> rows = before->rows(copy);
        for (size_t i = 0; i < rows.size(); ++i) std::copy_n(rows[i], before->width(), out + i * before->width());
      }
      const std::vector<uint32_t> wanted = routes.values(), ids = slots.values();
      std::vector<bool> seen(results, false);
      for (size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i] >= results || seen[wanted[i]]) {
          throw std::out_of_range("lme_cpu_kernels: routes[" + std::to_string(i) + "] is " +
                                  std::to_string(static_cast<int32_t>(wanted[i])) + ", twice or not below " +
                                  std::to_string(results));
        }
        seen[wanted[i]] = true;
        if (ids[i] >= held->experts.gate.slots) {
          throw std::out_of_range("lme_cpu_kernels: slots[" + std::to_string(i) + "] is " +
                                  std::to_string(static_cast<int32_t>(ids[i])) + ", and there are " +
                                  std::to_string(held->experts.gate.slots) + " slots");
        }
      }
      if (wanted.empty()) return;
      const std::vector<const float*> rows = x.rows(copy);
      cpu::multiply(cpu::ExpertCall{.experts = &held->experts,
                                    .x = rows,
                                    .slots = ids,
                                    .scores = nullptr,
                                    .out = out,
                                    .routes = wanted,
                                    .k = results / rows.size(),
                                    .kernels = held->kernels,
                                    .threads = held->threads});
    });
  }

  std::shared_ptr<const ExpertProduct::Held> held_;
  bool taken_over_ = false;
};

void check_ids(const mx::array& ids, const char* name) {
  if (ids.dtype() != mx::uint32 && ids.dtype() != mx::int32) refuse(name, " is ", ids.dtype(), ", not uint32 or int32");
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
                                            kernels_named(kernels), checked_threads(threads),
                                            static_cast<void (*)(const cpu::ExpertCall&)>(cpu::multiply)});
}

size_t ExpertProduct::bytes_per_slot() const {
  const auto& e = held_->experts;
  return e.gate.bytes_per_slot() + e.up.bytes_per_slot() + e.down.bytes_per_slot();
}

mx::array ExpertProduct::operator()(const mx::array& x, const mx::array& slots,
                                    const std::optional<mx::array>& scores) const {
  check_activations(x, held_->experts.gate.columns);
  check_ids(slots, "slots");
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

mx::array ExpertProduct::fill(const mx::array& out, const mx::array& x, const mx::array& routes,
                              const mx::array& slots) const {
  check_activations(x, held_->experts.gate.columns);
  check_ids(routes, "routes");
  check_ids(slots, "slots");
  if (x.ndim() != 2 || x.shape(0) == 0) refuse("x has the shape ", x.shape(), ", not [tokens, columns]");
  if (out.dtype() != mx::float32) refuse("out is ", out.dtype(), ", not float32");
  if (out.ndim() != 2 || static_cast<size_t>(out.shape(1)) != held_->experts.down.rows || out.shape(0) == 0 ||
      out.shape(0) % x.shape(0) != 0) {
    refuse("out has the shape ", out.shape(), ": not [", x.shape(0), " tokens · k, ", held_->experts.down.rows, "]");
  }
  if (routes.ndim() != 1 || slots.shape() != routes.shape()) {
    refuse("routes has the shape ", routes.shape(), " and slots ", slots.shape(), ": both need the same, of one extent");
  }
  return mx::array(out.shape(), mx::float32, std::make_shared<FillPrimitive>(cpu_stream(), held_),
                   {out, x, routes, slots});
}

}  // namespace lme
