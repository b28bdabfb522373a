#pragma once

#include <string>

#include "kernels/activations.h"
#include "kernels/shapes.h"

namespace nibblenet {

/// A forward product, to be asked which kernel computes it.
struct ForwardQuestion {
  Shape x;
  Precision precision = Precision::float32;  ///< of x
  Precision y = Precision::float32;
  Window window = {};
  Window pool = {.size = 0};  ///< max pooling behind it, in the same kernel; a size of 0: none
  bool flat = false;          ///< and PyTorch's flatten
  bool aligned = true;        ///< x and y lie on 16 bytes
};

/// The answer.
struct ForwardRoute {
  std::string kernel;
  std::string expansion = {};  ///< the kernel that expands weights for it first; empty: none
  bool pools = false;
  bool flattens = false;
};

}  // namespace nibblenet
