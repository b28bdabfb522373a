#pragma once

#include <cstddef>

namespace nibblenet {

/// Scratch memory of kernels: partial sums of split-K, and expanded weights.
class Workspace {
 public:
  virtual ~Workspace() = default;
  /// At least `size` floats, valid until the next call.
  virtual float* floats(size_t size) = 0;
  /// At least `size` counters, valid until the next call. They are zero, and kernels must leave
  /// them zero.
  virtual unsigned* counters(size_t size) = 0;
};

}  // namespace nibblenet
