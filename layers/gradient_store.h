#pragma once

#include "kernels/training.h"

namespace nibblenet {

/// Throws ShapeError unless the ReLU output of `store` has dx's shape.
inline void expect_store(Activations dx, const GradientStore& store) {
  if (store.relu_output.data() != nullptr) expect_shape(store.relu_output.shape(), dx.shape(), "output of dx's relu");
}

}  // namespace nibblenet
