#include "row_operations.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "aligned_floats.h"
#include "crew.h"

namespace lme::cpu {
namespace {

// Elements that are worth a thread of their own.
constexpr size_t kWorthSharing = 100'000;
constexpr size_t kRowsAtOnce = 16;

size_t threads_for(size_t threads, size_t elements) {
  return std::clamp<size_t>(elements / kWorthSharing, 1, threads);
}

// Calls work(first, last) for pieces of 0 … count.
template <typename Work>
void in_pieces(size_t count, size_t threads, const Work& work) {
  if (threads <= 1) return work(0, count);
  const size_t pieces = std::min(count, 4 * threads), each = (count + pieces - 1) / pieces;
  Crew::of_this_process().run(pieces, threads, [&](size_t piece) {
    const size_t first = piece * each;
    if (first < count) work(first, std::min(count, first + each));
  });
}

}  // namespace

void normalize(const NormCall& call) {
  in_pieces(call.x.size(), threads_for(call.threads, call.x.size() * call.width), [&](size_t r, size_t last) {
    for (; r < last; ++r) {
      call.kernels->rms_norm(call.x[r], call.weight, call.eps, call.width, call.out + r * call.width);
    }
  });
}

std::vector<float> rotary_frequencies(size_t dims, double base) {
  std::vector<float> frequencies(dims / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = static_cast<float>(std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dims)));
  }
  return frequencies;
}

void rotate(const RotaryCall& call) {
  const size_t half = call.dims / 2;
  if (call.x.empty()) return;
  // The angle is a float32 product, as the models that these positions were trained with have it.
  const AlignedFloats table(call.length * half * 2);
  const auto angles = [&](size_t at, size_t last) {
    for (; at < last; ++at) {
      const float position = static_cast<float>(call.offset + static_cast<int64_t>(at)) * call.scale;
      float* cosine = table.at(at * half * 2);
      for (size_t i = 0; i < half; ++i) {
        const double angle = position * call.frequencies[i];
        cosine[i] = static_cast<float>(std::cos(angle));
        cosine[half + i] = static_cast<float>(std::sin(angle));
      }
    }
  };
  // A cosine and a sine take as long as twenty products.
  in_pieces(call.length, threads_for(call.threads, 20 * call.length * half), angles);
  in_pieces(call.x.size(), threads_for(call.threads, call.x.size() * call.width), [&](size_t r, size_t last) {
    for (; r < last; ++r) {
      const float* x = call.x[r];
      float* out = call.out + r * call.width;
      const float* cosine = table.at(r % call.length * half * 2);
      const float* sine = cosine + half;
      if (call.pairs_are_neighbours) {
        for (size_t i = 0; i < half; ++i) {
          const float a = x[2 * i], b = x[2 * i + 1];
          out[2 * i] = a * cosine[i] - b * sine[i];
          out[2 * i + 1] = a * sine[i] + b * cosine[i];
        }
      } else {
        for (size_t i = 0; i < half; ++i) {
          const float a = x[i], b = x[half + i];
          out[i] = a * cosine[i] - b * sine[i];
          out[half + i] = a * sine[i] + b * cosine[i];
        }
      }
      std::memcpy(out + call.dims, x + call.dims, (call.width - call.dims) * sizeof(float));
    }
  });
}

namespace {

// The queries of one key head: those of its group of query heads, position after position.
class HeadAttention {
 public:
  HeadAttention(const AttentionCall& call, size_t batch, size_t head)
      : call_(call), batch_(static_cast<int64_t>(batch)), head_(head), group_(call.query_heads / call.key_heads) {}

  // Rows `first` … `last` of the queries × group, at most kRowsAtOnce.
  void run(size_t first, size_t last) const {
    const size_t rows = last - first;
    size_t seen = 0;
    for (size_t r = first; r < last; ++r) seen = std::max(seen, visible(r / group_));
    const size_t stride = (std::max<size_t>(seen, 1) + 15) / 16 * 16;
    const size_t q_width = (call_.width + 15) / 16 * 16;
    const AlignedFloats room(rows * (stride + q_width));
    std::array<const float*, kRowsAtOnce> q, weights;
    std::array<float*, kRowsAtOnce> scores, out;
    std::array<float, kRowsAtOnce> divisor;
    for (size_t i = 0; i < rows; ++i) {
      float* scaled = room.at(rows * stride + i * q_width);
      const size_t query = (first + i) / group_, head = head_ * group_ + (first + i) % group_;
      const float* from = call_.q + batch_ * call_.q_strides[0] + static_cast<int64_t>(head) * call_.q_strides[1] +
                          static_cast<int64_t>(query) * call_.q_strides[2];
      for (size_t c = 0; c < call_.width; ++c) scaled[c] = from[c] * call_.scale;
      std::fill(scaled + call_.width, scaled + q_width, 0.0f);
      q[i] = scaled;
      scores[i] = room.at(i * stride);
      weights[i] = scores[i];
      out[i] = call_.out + ((static_cast<size_t>(batch_) * call_.query_heads + head) * call_.queries + query) *
                               call_.value_width;
    }
    const float* k = call_.k + batch_ * call_.k_strides[0] + static_cast<int64_t>(head_) * call_.k_strides[1];
    const PackedMatrix keys{.packing = Packing::kFloat32,
                            .scale_type = ScaleType::kFloat32,
                            .slots = 1,
                            .rows = seen,
                            .columns = call_.width,
                            .group = 0,
                            .weight = reinterpret_cast<const uint8_t*>(k),
                            .scales = nullptr,
                            .biases = nullptr,
                            .row_bias = nullptr,
                            .row_bias_type = ScaleType::kFloat32};
    call_.kernels->multiply_rows({&keys, 0, 0, seen, q.data(), scores.data(), rows});
    for (size_t i = 0; i < rows; ++i) {
      const size_t query = (first + i) / group_, head = head_ * group_ + (first + i) % group_;
      hide(scores[i], query, head, seen);
      const float sink = call_.sinks == nullptr ? -std::numeric_limits<float>::infinity() : call_.sinks[head];
      divisor[i] = call_.kernels->softmax(scores[i], seen, sink);
    }
    const float* v = call_.v + batch_ * call_.v_strides[0] + static_cast<int64_t>(head_) * call_.v_strides[1];
    call_.kernels->weigh_rows({.rows = v,
                               .stride = static_cast<size_t>(call_.v_strides[2]),
                               .count = seen,
                               .width = call_.value_width,
                               .weights = weights.data(),
                               .divisor = divisor.data(),
                               .out = out.data(),
                               .tokens = rows});
  }

 private:
  using Mask = AttentionCall::Mask;

  // Keys from the first that a query may see.
  size_t visible(size_t query) const {
    return call_.mask == Mask::kCausal ? std::min(call_.keys, call_.keys - call_.queries + query + 1) : call_.keys;
  }

  void hide(float* scores, size_t query, size_t head, size_t seen) const {
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    for (size_t j = visible(query); j < seen; ++j) scores[j] = kHidden;
    if (call_.mask != Mask::kBool && call_.mask != Mask::kAdded) return;
    int64_t at = batch_ * call_.mask_strides[0] + static_cast<int64_t>(head) * call_.mask_strides[1] +
                 static_cast<int64_t>(query) * call_.mask_strides[2];
    for (size_t j = 0; j < seen; ++j, at += call_.mask_strides[3]) {
      if (call_.mask == Mask::kAdded) {
        scores[j] += static_cast<const float*>(call_.mask_data)[at];
      } else if (!static_cast<const bool*>(call_.mask_data)[at]) {
        scores[j] = kHidden;
      }
    }
  }

  const AttentionCall& call_;
  const int64_t batch_;
  const size_t head_, group_;
};

}  // namespace

void attend(const AttentionCall& call) {
  const size_t rows = call.queries * (call.query_heads / call.key_heads);
  const size_t pieces = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  const size_t work = call.batch * call.query_heads * call.queries * call.keys * (call.width + call.value_width);
  // The last rows see the most: they come first, so that no thread is left with them.
  Crew::of_this_process().run(call.batch * call.key_heads * pieces, threads_for(call.threads, work / 4),
                              [&](size_t item) {
                                const size_t head = item % call.key_heads, rest = item / call.key_heads;
                                const size_t batch = rest % call.batch, first = (pieces - 1 - rest / call.batch) * kRowsAtOnce;
                                HeadAttention(call, batch, head).run(first, std::min(rows, first + kRowsAtOnce));
                              });
}

}  // namespace lme::cpu
