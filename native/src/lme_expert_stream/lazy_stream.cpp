#include "lazy_stream.h"

#include <algorithm>
#include <limits>
#include <new>
#include <numeric>
#include <string>
#include <utility>

#include "lazy_operation.h"

namespace mx = mlx::core;

namespace lme::stream {
namespace {

// The experts of the highest scores, the highest first. Of several tokens' scores for an expert the highest counts.
std::vector<uint32_t> highest(const std::vector<float>& scores, size_t experts) {
  std::vector<float> best(experts, -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > best[i % experts]) best[i % experts] = scores[i];  // never NaN
  }
  std::vector<uint32_t> order(experts);
  std::iota(order.begin(), order.end(), 0u);
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(std::min(experts, Predictor::kCandidates));
  std::partial_sort(order.begin(), end, order.end(), [&](uint32_t a, uint32_t b) {
    return best[a] != best[b] ? best[a] > best[b] : a < b;
  });
  order.erase(end, order.end());
  return order;
}

// One pass of a layer, when its inputs are there.
struct Task {
  std::shared_ptr<ExpertStream> stream;
  std::shared_ptr<void> ticket;
  size_t layer;
  uint64_t mark;
  std::shared_ptr<const ExpertProduct::Held> product;
  StridedRows<float> x;
  StridedRows<uint32_t> ids;
  std::optional<StridedRows<float>> scores;
  float* out;

  ExpertStream::Outcome run() const noexcept {
    try {
      return run_with_memory();
    } catch (const std::bad_alloc&) {
      return stream->no_memory(layer);
    }
  }

  ExpertStream::Outcome run_with_memory() const {
    const std::vector<uint32_t> routes = ids.values();
    std::vector<uint32_t> foretold;
    if (scores) foretold = highest(scores->values(), scores->width());
    std::vector<float> copy;
    const std::vector<const float*> rows = x.rows(copy);
    const size_t k = ids.width();
    const auto compute = [&](std::span<const uint32_t> some, std::span<const uint32_t> slots) {
      product->multiply({.experts = &product->experts,
                         .x = rows,
                         .slots = slots,
                         .scores = nullptr,
                         .out = out,
                         .routes = some,
                         .k = k,
                         .kernels = product->kernels,
                         .threads = product->threads});
    };
    return stream->run(layer, mark, k, routes, foretold, compute);
  }
};

class StreamPrimitive : public LazyOperation {
 public:
  StreamPrimitive(mx::Stream on, std::shared_ptr<ExpertStream> stream, size_t layer, uint64_t mark,
                  std::shared_ptr<const ExpertProduct::Held> product)
      : LazyOperation(on), stream_(std::move(stream)), layer_(layer), mark_(mark), product_(std::move(product)) {}
  const char* name() const override { return "lme_expert_stream.StreamedLayer"; }

 private:
  void enqueue(mx::cpu::CommandEncoder& encoder, const std::vector<mx::array>& inputs, float* out) override {
    const size_t floats = inputs[1].size() * product_->experts.down.rows;
    std::optional<StridedRows<float>> scores;
    if (inputs.size() > 2) scores.emplace(inputs[2]);
    // The ticket goes with the task, whether MLX runs it or drops it.
    encoder.dispatch([task = Task{.stream = stream_,
                                  .ticket = stream_->expect(),
                                  .layer = layer_,
                                  .mark = mark_,
                                  .product = product_,
                                  .x = StridedRows<float>(inputs[0]),
                                  .ids = StridedRows<uint32_t>(inputs[1]),
                                  .scores = std::move(scores),
                                  .out = out}, floats] {
      // A task of MLX's must not throw: what is queued behind it would be dropped, and waits for that hang. Nobody
      // takes NaN for a result, and whoever looks at one asks the stream first.
      switch (task.run()) {
        case ExpertStream::Outcome::kComputed: break;
        case ExpertStream::Outcome::kSkipped: std::fill_n(task.out, floats, 0.0f); break;
        case ExpertStream::Outcome::kFailed:
          std::fill_n(task.out, floats, std::numeric_limits<float>::quiet_NaN());
          break;
      }
    });
  }

  std::shared_ptr<ExpertStream> stream_;
  size_t layer_;
  uint64_t mark_;
  std::shared_ptr<const ExpertProduct::Held> product_;
};

}  // namespace

StreamedLayer::StreamedLayer(std::shared_ptr<ExpertStream> stream, size_t layer, const ExpertProduct& product)
    : stream_(std::move(stream)), layer_(layer), product_(product.held()) {
  const size_t slots = stream_->slots(layer);
  if (product_->experts.gate.slots != slots) {
    refuse("the product has ", product_->experts.gate.slots, " slots and the pool ", slots,
           ": make it over the pool's own arrays");
  }
}

mx::array StreamedLayer::operator()(const mx::array& x, const mx::array& ids, uint64_t mark,
                                    const std::optional<mx::array>& scores) const {
  const size_t columns = product_->experts.gate.columns;
  if (x.dtype() != mx::float32) refuse("x is ", x.dtype(), ", not float32");
  if (x.ndim() == 0 || static_cast<size_t>(x.shape(-1)) != columns) {
    refuse("x has the shape ", x.shape(), ": its last extent must be ", columns);
  }
  if (ids.dtype() != mx::uint32 && ids.dtype() != mx::int32) {
    refuse("ids is ", ids.dtype(), ", not uint32 or int32");
  }
  const mx::Shape tokens(x.shape().begin(), x.shape().end() - 1);
  if (ids.ndim() != x.ndim() || mx::Shape(ids.shape().begin(), ids.shape().end() - 1) != tokens) {
    refuse("ids has the shape ", ids.shape(), " and x ", x.shape(), ": all but the last must agree");
  }
  std::vector<mx::array> inputs{x, ids};
  if (scores) {
    const auto experts = static_cast<int>(stream_->experts(stream_->after(layer_)));
    mx::Shape wanted = tokens;
    wanted.push_back(experts);
    if (scores->dtype() != mx::float32) refuse("scores are ", scores->dtype(), ", not float32");
    if (scores->shape() != wanted) refuse("scores have the shape ", scores->shape(), ", not ", wanted);
    inputs.push_back(*scores);
  }
  mx::Shape shape = ids.shape();
  shape.push_back(static_cast<int>(product_->experts.down.rows));
  return mx::array(std::move(shape), mx::float32,
                   std::make_shared<StreamPrimitive>(cpu_stream(), stream_, layer_, mark, product_), std::move(inputs));
}

}  // namespace lme::stream
