// The kernels in plain C++, for the compiler's baseline.
#include "kernels.h"

#include "lanes_scalar.h"

namespace lme::cpu {
namespace scalar {
namespace {

#include "kernel_body.inc"

}  // namespace
}  // namespace scalar

const Kernels kScalarKernels{"scalar", scalar::multiply_rows, scalar::activate, scalar::add_scaled, scalar::exponentials};

}  // namespace lme::cpu
