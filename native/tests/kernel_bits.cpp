// Runs every kernel of this CPU on made-up numbers and prints a checksum of each result's bits, so that
// instruction sets and machines can be compared: tools/check_kernel_bits.py. Memory ends right after each
// array, so that a sanitizer sees a read too far.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "products.h"
#include "row_operations.h"

using namespace lme::cpu;

namespace {

uint64_t state = 1;
uint32_t draw() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 33);
}
float number() { return static_cast<float>(static_cast<int32_t>(draw() % 20001) - 10000) / 7919.0f; }

template <typename T>
struct Exact {  // on the heap, and just as large as it is
  explicit Exact(size_t count) : size(count), data(new T[count]) {}
  size_t size;
  std::unique_ptr<T[]> data;
};

Exact<float> numbers(size_t count) {
  Exact<float> a(count);
  for (size_t i = 0; i < count; ++i) a.data[i] = number();
  return a;
}
Exact<uint8_t> bytes(size_t count) {
  Exact<uint8_t> a(count);
  for (size_t i = 0; i < count; ++i) a.data[i] = static_cast<uint8_t>(draw());
  return a;
}
// Floats or bfloat16 of about ± 1, or exponents about 2^0.
Exact<uint8_t> scaling(ScaleType type, size_t count) {
  if (type == ScaleType::kExponent) {
    Exact<uint8_t> a(count);
    for (size_t i = 0; i < count; ++i) a.data[i] = static_cast<uint8_t>(i % 37 == 0 ? 0 : 120 + draw() % 9);
    return a;
  }
  const size_t each = type == ScaleType::kFloat32 ? 4 : 2;
  Exact<uint8_t> a(count * each);
  for (size_t i = 0; i < count; ++i) {
    const float value = number();
    std::memcpy(a.data.get() + i * each, reinterpret_cast<const char*>(&value) + 4 - each, each);
  }
  return a;
}

struct Matrix {
  Exact<uint8_t> weight, scales, biases, row_bias;
  PackedMatrix view;
};

Matrix matrix(Packing packing, ScaleType type, size_t group, size_t slots, size_t rows, size_t columns) {
  PackedMatrix m{};
  m.packing = packing;
  m.scale_type = packing == Packing::kMxfp4 ? ScaleType::kExponent : type;
  m.slots = slots;
  m.rows = rows;
  m.columns = columns;
  m.group = group;
  m.row_bias_type = type;
  const bool plain = group == 0;
  const size_t cells = slots * rows;
  Matrix made{plain ? scaling(packing == Packing::kFloat32 ? ScaleType::kFloat32 : ScaleType::kBfloat16,
                              cells * columns)
                    : bytes(cells * m.weight_row_bytes()),
              scaling(m.scale_type, plain ? 0 : cells * columns / group),
              scaling(m.scale_type, plain ? 0 : cells * columns / group), scaling(type, cells), m};
  made.view.weight = made.weight.data.get();
  made.view.scales = plain ? nullptr : made.scales.data.get();
  made.view.biases = plain || packing == Packing::kMxfp4 ? nullptr : made.biases.data.get();
  made.view.row_bias = made.row_bias.data.get();
  return made;
}

void report(const Kernels& kernels, const char* what, size_t number, const float* data, size_t count) {
  uint64_t sum = 14695981039346656037u;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, data + i, 4);
    sum = (sum ^ bits) * 1099511628211u;
  }
  std::printf("%s %s %zu %016llx\n", kernels.name, what, number, static_cast<unsigned long long>(sum));
}

std::vector<const float*> rows_of(const Exact<float>& a, size_t width) {
  std::vector<const float*> rows;
  for (size_t i = 0; i + width <= a.size; i += width) rows.push_back(a.data.get() + i);
  return rows;
}

struct Form {
  Packing packing;
  size_t group;
};
constexpr Form kForms[] = {{Packing::kAffine4, 32},  {Packing::kAffine4, 64},  {Packing::kAffine4, 128},
                           {Packing::kAffine8, 32},  {Packing::kAffine8, 64},  {Packing::kAffine8, 128},
                           {Packing::kMxfp4, 32},    {Packing::kBfloat16, 0},  {Packing::kFloat32, 0}};

void products(const Kernels& kernels) {
  size_t number = 0;
  for (const Form& form : kForms) {
    for (const ScaleType type : {ScaleType::kFloat32, ScaleType::kBfloat16}) {
      for (const size_t groups : {1, 3, 5, 9}) {
        const size_t columns = form.group == 0 ? groups * 7 : groups * form.group;
        const Matrix m = matrix(form.packing, type, form.group, 1, 19, columns);
        const Exact<float> x = numbers(11 * columns);
        Exact<float> out(11 * 19);
        multiply(DenseCall{.matrix = &m.view, .x = rows_of(x, columns), .out = out.data.get(),
                           .kernels = &kernels, .threads = 1});
        report(kernels, "dense", number++, out.data.get(), out.size);
      }
    }
  }
  number = 0;
  for (const Form& form : kForms) {
    const size_t hidden = form.group == 0 ? 40 : 3 * form.group, width = form.group == 0 ? 150 : 2 * form.group;
    const Matrix gate = matrix(form.packing, ScaleType::kBfloat16, form.group, 4, width, hidden);
    const Matrix up = matrix(form.packing, ScaleType::kFloat32, form.group, 4, width, hidden);
    const Matrix plain_down = matrix(Packing::kBfloat16, ScaleType::kBfloat16, 0, 4, hidden, width);
    const Matrix same_down = matrix(form.packing, ScaleType::kBfloat16, form.group, 4, hidden, width);
    for (const Gating gating : {Gating::kSwiglu, Gating::kSwigluOai, Gating::kGegluTanh}) {
      const ExpertMatrices experts{gate.view, up.view, number % 2 == 0 ? plain_down.view : same_down.view,
                                   {gating, 1.702f, number % 3 == 0 ? 7.0f : std::numeric_limits<float>::infinity()}};
      const Exact<float> x = numbers(9 * hidden), scores = numbers(27);
      std::vector<uint32_t> slots(27);
      for (uint32_t& slot : slots) slot = draw() % 4;
      Exact<float> out(9 * hidden);
      multiply(ExpertCall{.experts = &experts, .x = rows_of(x, hidden), .slots = slots,
                          .scores = scores.data.get(), .out = out.data.get(), .kernels = &kernels, .threads = 3});
      report(kernels, "experts", number++, out.data.get(), out.size);
    }
  }
}

void rows(const Kernels& kernels) {
  size_t number = 0;
  for (const size_t width : {5, 16, 47, 128}) {
    const Exact<float> x = numbers(6 * width), weight = numbers(width);
    Exact<float> out(6 * width);
    normalize({.x = rows_of(x, width), .weight = weight.data.get(), .eps = 1e-5f, .width = width,
               .out = out.data.get(), .kernels = &kernels, .threads = 1});
    report(kernels, "norm", number++, out.data.get(), out.size);
  }
  number = 0;
  for (const size_t width : {20, 64, 80}) {
    const size_t queries = 9, keys = 37;
    const Exact<float> q = numbers(4 * queries * width), k = numbers(2 * keys * width), v = numbers(2 * keys * width);
    const Exact<float> sinks = numbers(4);
    for (const auto mask : {AttentionCall::Mask::kNone, AttentionCall::Mask::kCausal}) {
      Exact<float> out(4 * queries * width);
      const auto w = static_cast<int64_t>(width);
      attend({.batch = 1, .query_heads = 4, .key_heads = 2, .queries = queries, .keys = keys, .width = width,
              .value_width = width, .q = q.data.get(), .k = k.data.get(), .v = v.data.get(),
              .q_strides = {0, w * static_cast<int64_t>(queries), w},
              .k_strides = {0, w * static_cast<int64_t>(keys), w},
              .v_strides = {0, w * static_cast<int64_t>(keys), w}, .scale = 0.3f, .mask = mask,
              .mask_data = nullptr, .mask_strides = {}, .sinks = number % 2 ? sinks.data.get() : nullptr,
              .out = out.data.get(), .kernels = &kernels, .threads = 2});
      report(kernels, "attention", number++, out.data.get(), out.size);
    }
  }
  // Large enough for several threads, again and again: for a thread sanitizer.
  const Matrix wide = matrix(Packing::kAffine4, ScaleType::kBfloat16, 64, 1, 640, 512);
  const Exact<float> activations = numbers(7 * 512);
  Exact<float> product(7 * 640);
  for (int again = 0; again < 20; ++again) {
    multiply(DenseCall{.matrix = &wide.view, .x = rows_of(activations, 512), .out = product.data.get(),
                       .kernels = &kernels, .threads = 4});
  }
  report(kernels, "shared", 0, product.data.get(), product.size);
  Exact<float> x(1 << 16);
  for (size_t i = 0; i < x.size; ++i) x.data[i] = -90.0f + 180.0f * static_cast<float>(i) / (1 << 16);
  kernels.exponential(x.data.get(), x.size);
  report(kernels, "exponential", 0, x.data.get(), x.size);
}

}  // namespace

// With the argument "fork" a forked child, whose parent's helpers are not there, repeats the work.
int main(int argc, char** argv) {
  for (const Kernels& kernels : kernel_sets()) {
    state = 1;
    products(kernels);
    rows(kernels);
  }
  std::fflush(stdout);
  if (argc < 2 || std::strcmp(argv[1], "fork") != 0) return 0;
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a crew that waits for its parent's helpers waits for ever
    std::freopen("/dev/null", "w", stdout);
    rows(kernel_sets().front());
    _exit(0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0 ? 0 : 1;
}
