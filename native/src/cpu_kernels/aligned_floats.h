// Scratch memory in whole cache lines: vectors of sixteen floats never straddle two.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace lme::cpu {

class AlignedFloats {
 public:
  explicit AlignedFloats(size_t count) {
    data_.reset(static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 64) / 64 * 64)));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  float* at(size_t i) const { return data_.get() + i; }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
};

}  // namespace lme::cpu
