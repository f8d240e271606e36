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

const Kernels kNeonKernels{
    .name = "neon",
    .multiply_rows = neon::multiply_rows,
    .activate = neon::activate,
    .add_scaled = neon::add_scaled,
    .rms_norm = neon::rms_norm,
    .softmax = neon::softmax,
    .weigh_rows = neon::weigh_rows,
    .exponential = neon::exponentials,
};

}  // namespace lme::cpu

#endif  // __aarch64__
