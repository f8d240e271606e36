// The kernels for x86-64 CPUs with AVX-512 F, BW, DQ and VL. CMake compiles this file for just those.
#include "kernels.h"

#if defined(__x86_64__)

#include "lanes_avx512.h"

namespace lme::cpu {
namespace avx512 {
namespace {

#include "kernel_body.inc"

}  // namespace
}  // namespace avx512

const Kernels kAvx512Kernels{
    .name = "avx512",
    .multiply_rows = avx512::multiply_rows,
    .activate = avx512::activate,
    .add_scaled = avx512::add_scaled,
    .rms_norm = avx512::rms_norm,
    .softmax = avx512::softmax,
    .weigh_rows = avx512::weigh_rows,
    .exponential = avx512::exponentials,
};

}  // namespace lme::cpu

#endif  // __x86_64__
