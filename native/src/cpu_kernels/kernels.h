// The arithmetic, once per instruction set. All give the same bits: they do the same operations on sixteen
// lanes in the same order, with fused multiply-adds, and differ in how many lanes an instruction takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "packed_matrix.h"

namespace lme::cpu {

// out[t][r] = weight row (first_row + r) of `slot` · x[t], plus the row's bias, for `tokens` packed
// activations.
struct RowsTask {
  const PackedMatrix* matrix;
  size_t slot, first_row, rows;
  const float* const* x;
  float* const* out;
  size_t tokens;
};

enum class Gating : uint8_t {
  kSwiglu,     // gate * sigmoid(gate) * up; with a limit: gate at most limit, up within ± limit
  kSwigluOai,  // (up + 1) * gate * sigmoid(alpha * gate), clamped the same way
  kGegluTanh,  // gelu(gate) * up with the tanh approximation; with a limit as kSwiglu
};

struct Activation {
  Gating gating;
  float alpha;
  float limit;  // infinity: none
};

struct WeighTask {
  const float* rows;  // [count, width], `stride` floats apart
  size_t stride, count, width;
  const float* const* weights;
  const float* divisor;
  float* const* out;
  size_t tokens;
};

struct Kernels {
  const char* name;
  void (*multiply_rows)(const RowsTask& task);
  // gate[i] = activation(gate[i], up[i])
  void (*activate)(const Activation& activation, float* gate, const float* up, size_t count);
  // to[i] += weight * from[i], fused
  void (*add_scaled)(float* to, const float* from, float weight, size_t count);
  // out[i] = x[i] / sqrt(mean(x²) + eps) * weight[i]; without a weight, 1
  void (*rms_norm)(const float* x, const float* weight, float eps, size_t count, float* out);
  // scores[i] = e^(scores[i] - max) in place, max over them and `sink`; returns their sum with e^(sink - max).
  // -infinity becomes 0. The room up to a multiple of 16 is filled with zeros.
  float (*softmax)(float* scores, size_t count, float sink);
  // out[t][i] = sum over j of weights[t][j] * rows[j][i] / divisor[t], for `count` rows of `width` floats
  void (*weigh_rows)(const WeighTask& task);
  void (*exponential)(float* values, size_t count);  // for tests: e^x, ±1 ulp on [-87, 88], clamped outside
};

// Those that this CPU can run, fastest first; the last is always "scalar".
std::span<const Kernels> kernel_sets();

// One table per source file.
extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

}  // namespace lme::cpu
