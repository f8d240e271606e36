// Chooses the instruction set, once per process.
#include "kernels.h"

#include <vector>

namespace lme::cpu {

std::span<const Kernels> kernel_sets() {
  static const std::vector<Kernels> usable = [] {
    std::vector<Kernels> list;
#if defined(__x86_64__)
    __builtin_cpu_init();
    // As the compiler's x86-64-v4 and v3: what the two files are compiled for.
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      list.push_back(kAvx512Kernels);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(kAvx2Kernels);
#elif defined(__aarch64__)
    list.push_back(kNeonKernels);  // part of every arm64
#endif
    list.push_back(kScalarKernels);
    return list;
  }();
  return usable;
}

}  // namespace lme::cpu
