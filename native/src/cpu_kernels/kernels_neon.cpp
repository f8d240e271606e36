// The kernels for arm64.
#include "kernels.h"

#if defined(__aarch64__)

#include "lanes_neon.h"

namespace lme::cpu {
namespace neon {
namespace {

#include "kernel_body.inc"

}  // namespace
}  // namespace neon

const Kernels kNeonKernels{"neon", neon::multiply_rows, neon::activate, neon::add_scaled, neon::exponentials};

}  // namespace lme::cpu

#endif  // __aarch64__
