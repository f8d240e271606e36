// What every extension module says of its build. CMake defines the versions.
#pragma once

#include <map>
#include <string>

namespace lme {

// Keys: "compiler", "version" (of mach-native), "mlx" (the version built against).
inline std::map<std::string, std::string> build_facts() {
  return {
#if defined(__clang__)
      {"compiler", "clang " __clang_version__},
#else
      {"compiler", "gcc " __VERSION__},
#endif
      {"version", LME_VERSION},
      {"mlx", LME_MLX_VERSION},
  };
}

}  // namespace lme
