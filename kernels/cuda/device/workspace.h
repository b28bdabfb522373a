#pragma once

#include <cstddef>

namespace nibblenet {

/// Where kernels that cut long reductions into splits leave what they have summed so far.
class Workspace {
 public:
  virtual ~Workspace() = default;
  /// At least `size` floats, valid until the next call.
  virtual float* floats(size_t size) = 0;
  /// At least `size` counters, valid until the next call: zeros, and to be left as zeros.
  virtual unsigned* counters(size_t size) = 0;
};

}  // namespace nibblenet
