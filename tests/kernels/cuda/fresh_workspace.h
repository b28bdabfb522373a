#pragma once

#include "kernels/cuda/backend_cuda.h"

namespace nibblenet::testing {

/// Scratch memory of exactly the size that a kernel asks for, new each time: a checker of memory
/// sees what is read or written beyond it.
class FreshWorkspace final : public Workspace {
 public:
  explicit FreshWorkspace(CudaBackend& backend) : backend_(backend) {}
  float* floats(size_t size) override {
    floats_ = Buffer<float>(backend_, size, MemoryCategory::workspace);
    return floats_.data();
  }
  unsigned* counters(size_t size) override {
    counters_ = Buffer<unsigned>(backend_, size, MemoryCategory::workspace);
    fill_zero(counters_.data(), counters_.bytes(), backend_.stream());
    return counters_.data();
  }

 private:
  CudaBackend& backend_;
  Buffer<float> floats_;
  Buffer<unsigned> counters_;
};

}  // namespace nibblenet::testing
