// The kernels for x86-64 CPUs with AVX2 and FMA. CMake compiles this file for just those.
#include "kernels.h"

#if defined(__x86_64__)

#include "lanes_avx2.h"

namespace lme::cpu {
namespace avx2 {
namespace {

#include "kernel_body.inc"

}  // namespace
}  // namespace avx2

const Kernels kAvx2Kernels{
    .name = "avx2",
    .multiply_rows = avx2::multiply_rows,
    .activate = avx2::activate,
    .add_scaled = avx2::add_scaled,
    .rms_norm = avx2::rms_norm,
    .softmax = avx2::softmax,
    .weigh_rows = avx2::weigh_rows,
    .exponential = avx2::exponentials,
};

}  // namespace lme::cpu

#endif  // __x86_64__
