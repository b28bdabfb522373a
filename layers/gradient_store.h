#pragma once

#include "kernels/inference.h"
#include "kernels/training.h"

namespace nibblenet {

/// y = max(x, 0); y may be x.
void relu_forward(Inference& backend, TensorView<float> y, TensorView<const float> x);

/// dx = dy where the output y is positive, else 0 (at 0 too, as PyTorch); dx may be dy.
void relu_backward(Training& backend, Activations dx, ConstActivations dy, ConstActivations y);

/// Throws ShapeError unless the ReLU output of `store` has dx's shape.
void expect_store(Activations dx, const GradientStore& store);

}  // namespace nibblenet
