#pragma once

#include <string>

#include "kernels/activations.h"
#include "kernels/shapes.h"

namespace nibblenet {

/// A forward product, for the question which kernel computes it.
struct ForwardQuestion {
  Shape x;
  Precision precision = Precision::float32;  ///< of x
  Precision y = Precision::float32;
  Window window = {};
  Window pool = {.size = 0};  ///< max pooling behind it, in the same kernel; a size of 0: none
  bool flat = false;          ///< PyTorch's flatten behind that, in the same kernel
  bool aligned = true;        ///< x and y are 16-byte aligned
};

/// The route of a forward product: the kernels that compute it.
struct ForwardRoute {
  std::string kernel;
  std::string expansion = {};  ///< the kernel that first expands the weights; empty: none
  bool pools = false;          ///< max pooling is fused
  bool flattens = false;       ///< the flatten is fused
  bool rotates = false;        ///< a kernel of its own first rotates the inputs
};

}  // namespace nibblenet
