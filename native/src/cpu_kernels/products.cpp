#include "products.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "aligned_floats.h"
#include "crew.h"

namespace lme::cpu {
namespace {

// Rows of a work item: a whole number of blocks in every layout, and few enough that the weights stay in the
// cache while groups of tokens pass by.
constexpr size_t kRowChunk = 128;
// Routes of a work item: what its intermediate results need on the stack, 64 KiB.
constexpr size_t kGroupRoutes = 64;
// Activations between the two halves of the block, in bytes: more routes are done in several waves.
constexpr size_t kWaveBytes = 8 << 20;
// Less work than this is not worth a second thread, in multiplications per thread.
constexpr size_t kWorthSharing = 400'000;

size_t chunks_of(size_t rows) { return (rows + kRowChunk - 1) / kRowChunk; }

size_t threads_for(size_t threads, size_t multiplications) {
  return std::clamp<size_t>(multiplications / kWorthSharing, 1, threads);
}

// Activations in a layout, row by row.
class PackedRows {
 public:
  PackedRows(Layout layout, size_t columns, std::span<const float* const> x, size_t threads)
      : stride_(packed_floats(layout, columns)), floats_(std::max<size_t>(1, x.size()) * stride_) {
    // Packing a row is worth a hundredth of multiplying it with anything.
    Crew::of_this_process().run(x.size(), x.size() < 16 ? 1 : threads, [&](size_t t) {
      pack_activations(layout, x[t], columns, floats_.at(t * stride_));
    });
  }
  const float* row(size_t t) const { return floats_.at(t * stride_); }

 private:
  size_t stride_;
  AlignedFloats floats_;
};

struct Group {
  uint32_t slot;
  size_t first, count;  // in the order of slots
};

// Routes ordered by slot, and the groups that share one.
struct Routing {
  std::vector<uint32_t> order;
  std::vector<Group> groups;

  explicit Routing(std::span<const uint32_t> slots) : order(slots.size()) {
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return slots[a] != slots[b] ? slots[a] < slots[b] : a < b;
    });
    for (size_t i = 0; i < order.size(); ++i) {
      const uint32_t slot = slots[order[i]];
      if (groups.empty() || groups.back().slot != slot || groups.back().count == kGroupRoutes) {
        groups.push_back({slot, i, 0});
      }
      ++groups.back().count;
    }
  }
};

// The rows of x that a call's routes use, and which of them each route does.
struct Tokens {
  std::vector<const float*> rows;
  std::vector<uint32_t> of_route;

  explicit Tokens(const ExpertCall& call) : of_route(call.slots.size()) {
    if (call.routes.empty()) {
      const size_t k = call.slots.size() / call.x.size();
      rows.assign(call.x.begin(), call.x.end());
      for (size_t i = 0; i < of_route.size(); ++i) of_route[i] = static_cast<uint32_t>(i / k);
      return;
    }
    std::vector<uint32_t> place(call.x.size(), kUnused);
    for (size_t i = 0; i < of_route.size(); ++i) {
      const size_t token = call.routes[i] / call.k;
      if (place[token] == kUnused) {
        place[token] = static_cast<uint32_t>(rows.size());
        rows.push_back(call.x[token]);
      }
      of_route[i] = place[token];
    }
  }

 private:
  static constexpr uint32_t kUnused = UINT32_MAX;
};

class ExpertProduct {
 public:
  ExpertProduct(const ExpertCall& call, float* routes_out)
      : call_(call),
        experts_(*call.experts),
        routing_(call.slots),
        tokens_(call),
        threads_(threads_for(call.threads,
                             call.slots.size() * experts_.gate.columns * experts_.gate.rows * 3)),
        gate_x_(layout_of(experts_.gate.packing), experts_.gate.columns, tokens_.rows, threads_),
        hidden_layout_(layout_of(experts_.down.packing)),
        hidden_stride_(packed_floats(hidden_layout_, experts_.down.columns)),
        out_(routes_out) {
    const Layout up_layout = layout_of(experts_.up.packing);
    if (up_layout != layout_of(experts_.gate.packing)) {
      up_x_.emplace_back(up_layout, experts_.up.columns, tokens_.rows, threads_);
    }
  }

  void run() {
    const size_t most = std::max(kGroupRoutes, kWaveBytes / (hidden_stride_ * sizeof(float)));
    const std::span<const Group> groups(routing_.groups);
    const AlignedFloats hidden(std::min(most, routing_.order.size()) * hidden_stride_);
    for (size_t first = 0; first < groups.size();) {
      size_t last = first, routes = 0;
      while (last < groups.size() && routes + groups[last].count <= most) routes += groups[last++].count;
      wave(groups.subspan(first, last - first), hidden);
      first = last;
    }
  }

 private:
  using Rows = std::array<const float*, kGroupRoutes>;
  using Outs = std::array<float*, kGroupRoutes>;

  void wave(std::span<const Group> groups, const AlignedFloats& hidden) {
    Crew& crew = Crew::of_this_process();
    const size_t wide = chunks_of(experts_.gate.rows), narrow = chunks_of(experts_.down.rows);
    const size_t first = groups.front().first;
    crew.run(groups.size() * wide, threads_,
             [&](size_t item) { gate_and_up(groups[item / wide], item % wide * kRowChunk, first, hidden); });
    crew.run(groups.size() * narrow, threads_,
             [&](size_t item) { down(groups[item / narrow], item % narrow * kRowChunk, first, hidden); });
  }

  void gate_and_up(const Group& group, size_t row, size_t first, const AlignedFloats& hidden) const {
    alignas(64) float gate[kGroupRoutes * kRowChunk], up[kGroupRoutes * kRowChunk];
    const size_t rows = std::min(kRowChunk, experts_.gate.rows - row);
    const PackedRows& up_rows = up_x_.empty() ? gate_x_ : up_x_.front();
    Rows gate_x, up_x;
    Outs gate_out, up_out;
    for (size_t i = 0; i < group.count; ++i) {
      const size_t token = tokens_.of_route[routing_.order[group.first + i]];
      gate_x[i] = gate_x_.row(token);
      up_x[i] = up_rows.row(token);
      gate_out[i] = gate + i * rows;
      up_out[i] = up + i * rows;
    }
    call_.kernels->multiply_rows(
        {&experts_.gate, group.slot, row, rows, gate_x.data(), gate_out.data(), group.count});
    call_.kernels->multiply_rows({&experts_.up, group.slot, row, rows, up_x.data(), up_out.data(), group.count});
    call_.kernels->activate(experts_.activation, gate, up, group.count * rows);
    for (size_t i = 0; i < group.count; ++i) {
      pack_activations(hidden_layout_, gate + i * rows, rows,
                       hidden.at((group.first - first + i) * hidden_stride_ + packed_floats(hidden_layout_, row)));
    }
  }

  void down(const Group& group, size_t row, size_t first, const AlignedFloats& hidden) const {
    Rows x;
    Outs out;
    for (size_t i = 0; i < group.count; ++i) {
      x[i] = hidden.at((group.first - first + i) * hidden_stride_);
      const size_t route = routing_.order[group.first + i];
      out[i] = out_ + (call_.routes.empty() ? route : call_.routes[route]) * experts_.down.rows + row;
    }
    const size_t rows = std::min(kRowChunk, experts_.down.rows - row);
    call_.kernels->multiply_rows({&experts_.down, group.slot, row, rows, x.data(), out.data(), group.count});
  }

  const ExpertCall& call_;
  const ExpertMatrices& experts_;
  const Routing routing_;
  const Tokens tokens_;
  const size_t threads_;
  const PackedRows gate_x_;
  std::vector<PackedRows> up_x_;  // empty if gate's will do
  const Layout hidden_layout_;
  const size_t hidden_stride_;
  float* const out_;
};

}  // namespace

void multiply(const DenseCall& call) {
  const PackedMatrix& m = *call.matrix;
  const size_t tokens = call.x.size();
  if (tokens == 0) return;
  const size_t threads = threads_for(call.threads, tokens * m.rows * m.columns);
  const PackedRows x(layout_of(m.packing), m.columns, call.x, threads);
  const size_t chunks = chunks_of(m.rows);
  const size_t groups = (tokens + kGroupRoutes - 1) / kGroupRoutes;
  Crew::of_this_process().run(chunks * groups, threads, [&](size_t item) {
    const size_t row = item / groups * kRowChunk, first = item % groups * kGroupRoutes;
    const size_t count = std::min(kGroupRoutes, tokens - first);
    std::array<const float*, kGroupRoutes> rows;
    std::array<float*, kGroupRoutes> out;
    for (size_t i = 0; i < count; ++i) {
      rows[i] = x.row(first + i);
      out[i] = call.out + (first + i) * m.rows + row;
    }
    call.kernels->multiply_rows({&m, 0, row, std::min(kRowChunk, m.rows - row), rows.data(), out.data(), count});
  });
}

void multiply(const ExpertCall& call) {
  if (call.slots.empty()) return;
  if (call.scores == nullptr) return ExpertProduct(call, call.out).run();
  const size_t width = call.experts->down.rows, k = call.slots.size() / call.x.size();
  const AlignedFloats routes(call.slots.size() * width);
  ExpertProduct(call, routes.at(0)).run();
  Crew::of_this_process().run(
      call.x.size(), threads_for(call.threads, call.slots.size() * width), [&](size_t token) {
        float* sum = call.out + token * width;
        std::fill_n(sum, width, 0.0f);
        for (size_t i = token * k; i < (token + 1) * k; ++i) {
          call.kernels->add_scaled(sum, routes.at(i * width), call.scores[i], width);
        }
      });
}

}  // namespace lme::cpu
