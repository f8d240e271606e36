// The kernels in plain C++, for the compiler's baseline.
#include "kernels.h"

#include "lanes_scalar.h"

namespace lme::cpu {
namespace scalar {
namespace {

#include "kernel_body.inc"

}  // namespace
}  // namespace scalar

const Kernels kScalarKernels{
    .name = "scalar",
    .multiply_rows = scalar::multiply_rows,
    .activate = scalar::activate,
    .add_scaled = scalar::add_scaled,
    .rms_norm = scalar::rms_norm,
    .softmax = scalar::softmax,
    .weigh_rows = scalar::weigh_rows,
    .exponential = scalar::exponentials,
};

}  // namespace lme::cpu
