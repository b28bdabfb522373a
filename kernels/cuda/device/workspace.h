#pragma once

#include <cstddef>
#include <cstdint>

namespace nibblenet {

/// When products run on kernels/cuda/gemm/wgmma.cuh instead of kernels for all GPUs.
enum class Warpgroups : uint8_t { never, where_they_pay, wherever_possible };

/// Where kernels that cut long reductions into parts leave what they have summed so far.
class Workspace {
 public:
  virtual ~Workspace() = default;
  /// At least `size` floats, valid until the next call.
  virtual float* floats(size_t size) = 0;
  /// At least `size` counters, valid until the next call: zeros, and to be left as zeros.
  virtual unsigned* counters(size_t size) = 0;
  /// Whether the GPU and the code for it have the products of warpgroups (wgmma), and when they are to be used.
  virtual Warpgroups warpgroups() const { return Warpgroups::never; }
};

}  // namespace nibblenet
