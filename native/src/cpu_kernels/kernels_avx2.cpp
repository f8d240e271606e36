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

const Kernels kAvx2Kernels{"avx2", avx2::multiply_rows, avx2::activate, avx2::add_scaled, avx2::exponentials};

}  // namespace lme::cpu

#endif  // __x86_64__
