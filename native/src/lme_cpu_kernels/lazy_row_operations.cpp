#include "lazy_row_operations.h"

#include <algorithm>
#include <utility>

#include "lazy_operation.h"

namespace mx = mlx::core;

namespace lme {
namespace {

void check_float32(const mx::array& a, const char* name) {
  if (a.dtype() != mx::float32) refuse(name, " is ", a.dtype(), ", not float32");
}

class NormPrimitive : public LazyOperation {
 public:
  NormPrimitive(mx::Stream stream, std::shared_ptr<const RmsNorm::Held> held)
      : LazyOperation(stream), held_(std::move(held)) {}
  const char* name() const override { return "lme_cpu_kernels.RmsNorm"; }

 private:
  void enqueue(mx::cpu::CommandEncoder& encoder, const std::vector<mx::array>& inputs, float* out) override {
    encoder.dispatch([held = held_, x = StridedRows<float>(inputs[0]), out] {
      std::vector<float> copy;
      const auto rows = x.rows(copy);
      cpu::normalize({.x = rows,
                      .weight = held->weight ? held->weight->data<float>() : nullptr,
                      .eps = held->eps,
                      .width = x.width(),
                      .out = out,
                      .kernels = held->kernels,
                      .threads = held->threads});
    });
  }

  std::shared_ptr<const RmsNorm::Held> held_;
};

class RotaryPrimitive : public LazyOperation {
 public:
  RotaryPrimitive(mx::Stream stream, std::shared_ptr<const Rotary::Held> held, int64_t offset)
      : LazyOperation(stream), held_(std::move(held)), offset_(offset) {}
  const char* name() const override { return "lme_cpu_kernels.Rotary"; }

 private:
  void enqueue(mx::cpu::CommandEncoder& encoder, const std::vector<mx::array>& inputs, float* out) override {
    const auto length = static_cast<size_t>(inputs[0].shape(-2));
    encoder.dispatch([held = held_, offset = offset_, x = StridedRows<float>(inputs[0]), length, out] {
      std::vector<float> copy;
      const auto rows = x.rows(copy);
      cpu::rotate({.x = rows,
                   .length = length,
                   .width = x.width(),
                   .dims = held->dims,
                   .offset = offset,
                   .scale = held->scale,
                   .pairs_are_neighbours = held->traditional,
                   .frequencies = held->frequencies,
                   .out = out,
                   .threads = held->threads});
    });
  }

  std::shared_ptr<const Rotary::Held> held_;
  int64_t offset_;
};

// A [batch, head, position, width] array of any strides, whose rows are brought together where they must be.
class Heads {
 public:
  explicit Heads(const mx::array& a) : data_(a.data<float>()), shape_(a.shape()), strides_(a.strides()) {}

  size_t extent(int d) const { return static_cast<size_t>(shape_[d]); }

  // The address, and the strides of batch, head and position. Elements of a row follow each other then; with
  // `packed` rows do too. What had to be copied is in `copy`.
  const float* rows(bool packed, std::vector<float>& copy, int64_t (&strides)[3]) const {
    const int64_t width = shape_[3];
    if ((strides_[3] == 1 || width == 1) && (!packed || strides_[2] == width || shape_[2] == 1)) {
      std::copy_n(strides_.begin(), 3, strides);
      return data_;
    }
    copy.reserve(extent(0) * extent(1) * extent(2) * extent(3));
    for (int64_t b = 0; b < shape_[0]; ++b) {
      for (int64_t h = 0; h < shape_[1]; ++h) {
        for (int64_t p = 0; p < shape_[2]; ++p) {
          const float* row = data_ + b * strides_[0] + h * strides_[1] + p * strides_[2];
          for (int64_t i = 0; i < width; ++i) copy.push_back(row[i * strides_[3]]);
        }
      }
    }
    strides[2] = width;
    strides[1] = shape_[2] * width;
    strides[0] = shape_[1] * strides[1];
    return copy.data();
  }

 private:
  const float* data_;
  mx::Shape shape_;
  mx::Strides strides_;
};

class AttentionPrimitive : public LazyOperation {
 public:
  // What is not of the inputs: scale, kind of mask, kernels and threads.
  AttentionPrimitive(mx::Stream stream, const cpu::AttentionCall& call, bool sinks)
      : LazyOperation(stream), call_(call), sinks_(sinks) {}
  const char* name() const override { return "lme_cpu_kernels.attention"; }

 private:
  using Mask = cpu::AttentionCall::Mask;

  void enqueue(mx::cpu::CommandEncoder& encoder, const std::vector<mx::array>& inputs, float* out) override {
    cpu::AttentionCall call = call_;
    call.out = out;
    size_t next = 3;
    if (call.mask == Mask::kBool || call.mask == Mask::kAdded) {
      const mx::array& mask = inputs[next++];
      call.mask_data = mask.data<char>();
      // A leading extent that is not there, or is 1, is the same for all.
      for (size_t d = 0; d < 4; ++d) {
        const size_t missing = 4 - mask.ndim();
        call.mask_strides[d] = d < missing || mask.shape(static_cast<int>(d - missing)) == 1
                                   ? 0
                                   : mask.strides()[d - missing];
      }
    }
    std::optional<StridedRows<float>> sinks;
    if (sinks_) sinks.emplace(inputs[next]);
    encoder.dispatch([call, q = Heads(inputs[0]), k = Heads(inputs[1]), v = Heads(inputs[2]),
                      sinks = std::move(sinks)]() mutable {
      std::vector<float> q_copy, k_copy, v_copy, sink_scores;
      call.batch = q.extent(0);
      call.query_heads = q.extent(1);
      call.key_heads = k.extent(1);
      call.queries = q.extent(2);
      call.keys = k.extent(2);
      call.width = q.extent(3);
      call.value_width = v.extent(3);
      call.q = q.rows(false, q_copy, call.q_strides);
      call.k = k.rows(true, k_copy, call.k_strides);
      call.v = v.rows(false, v_copy, call.v_strides);
      if (sinks) {
        sink_scores = sinks->values();
        call.sinks = sink_scores.data();
      }
      cpu::attend(call);
    });
  }

  const cpu::AttentionCall call_;
  const bool sinks_;
};

}  // namespace

RmsNorm::RmsNorm(std::optional<mx::array> weight, float eps, int threads, const std::string& kernels) {
  if (weight) {
    check_float32(*weight, "weight");
    if (weight->ndim() != 1) refuse("weight has the shape ", weight->shape(), ", not [width]");
    if (!weight->is_available() || !weight->flags().row_contiguous) {
      refuse("weight is not evaluated and row-contiguous");
    }
  }
  if (!(eps >= 0)) refuse("eps is ", eps, ": it must not be negative");
  held_ = std::make_shared<const Held>(
      Held{std::move(weight), eps, kernels_named(kernels), checked_threads(threads)});
}

mx::array RmsNorm::operator()(const mx::array& x) const {
  check_float32(x, "x");
  if (x.ndim() == 0 || (held_->weight && x.shape(-1) != held_->weight->shape(0))) {
    refuse("x has the shape ", x.shape(), ": its last extent must be the weight's");
  }
  return mx::array(x.shape(), mx::float32, std::make_shared<NormPrimitive>(cpu_stream(), held_), {x});
}

Rotary::Rotary(int dims, bool traditional, double base, float scale, int threads) {
  if (dims < 2 || dims % 2 != 0) refuse("dims is ", dims, ": it must be even and at least 2");
  if (!(base > 0)) refuse("base is ", base, ": it must be above 0");
  const auto size = static_cast<size_t>(dims);
  held_ = std::make_shared<const Held>(
      Held{size, traditional, scale, cpu::rotary_frequencies(size, base), checked_threads(threads)});
}

mx::array Rotary::operator()(const mx::array& x, int64_t offset) const {
  check_float32(x, "x");
  if (x.ndim() < 2 || static_cast<size_t>(x.shape(-1)) < held_->dims) {
    refuse("x has the shape ", x.shape(), ", not [..., length, ", held_->dims, " or more]");
  }
  return mx::array(x.shape(), mx::float32, std::make_shared<RotaryPrimitive>(cpu_stream(), held_, offset), {x});
}

mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, float scale,
                    const std::string& mask_mode, const std::optional<mx::array>& mask,
                    const std::optional<mx::array>& sinks, int threads, const std::string& kernels) {
  using Mask = cpu::AttentionCall::Mask;
  check_float32(q, "q");
  check_float32(k, "k");
  check_float32(v, "v");
  if (q.ndim() != 4 || k.ndim() != 4 || v.ndim() != 4 || q.shape(0) != k.shape(0) || q.shape(0) != v.shape(0) ||
      k.shape(1) != v.shape(1) || k.shape(1) == 0 || q.shape(1) % k.shape(1) != 0 || k.shape(2) != v.shape(2) ||
      k.shape(2) == 0 || q.shape(3) != k.shape(3) || q.shape(3) == 0) {
    refuse("q, k and v have the shapes ", q.shape(), ", ", k.shape(), " and ", v.shape(),
           ", not [batch, heads, queries, width], [batch, key heads, keys, width] and [batch, key heads, keys, …]");
  }
  cpu::AttentionCall call{};
  call.scale = scale;
  call.kernels = kernels_named(kernels);
  call.threads = checked_threads(threads);
  std::vector<mx::array> inputs{q, k, v};
  if (mask) {
    if (mask->dtype() != mx::bool_ && mask->dtype() != mx::float32) {
      refuse("mask is ", mask->dtype(), ", not bool or float32");
    }
    call.mask = mask->dtype() == mx::bool_ ? Mask::kBool : Mask::kAdded;
    const mx::Shape whole{q.shape(0), q.shape(1), q.shape(2), k.shape(2)};
    bool fits = mask->ndim() <= 4;
    for (int d = 1; fits && d <= static_cast<int>(mask->ndim()); ++d) {
      fits = mask->shape(-d) == 1 || mask->shape(-d) == whole[whole.size() - static_cast<size_t>(d)];
    }
    if (!fits) refuse("mask has the shape ", mask->shape(), ", which does not broadcast to ", whole);
    inputs.push_back(*mask);
  } else if (mask_mode == "causal") {
    if (k.shape(2) < q.shape(2)) refuse("a causal mask needs as many keys as queries, or more");
    call.mask = Mask::kCausal;
  } else if (!mask_mode.empty()) {
    refuse("no mask is named ", mask_mode, ": there is causal");
  }
  if (sinks) {
    check_float32(*sinks, "sinks");
    if (sinks->shape() != mx::Shape{q.shape(1)}) refuse("sinks has the shape ", sinks->shape(), ", not [heads]");
    inputs.push_back(*sinks);
  }
  return mx::array({q.shape(0), q.shape(1), q.shape(2), v.shape(3)}, mx::float32,
                   std::make_shared<AttentionPrimitive>(cpu_stream(), call, sinks.has_value()), std::move(inputs));
}

}  // namespace lme
