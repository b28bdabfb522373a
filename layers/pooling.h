#pragma once

#include "kernels/inference.h"
#include "kernels/training.h"

namespace nibblenet {

/// [N, P, Q, C] of pooling x[N, H, W, C]. Padding is at most half the window, as in PyTorch, so that no window is
/// empty.
Shape max_pool2d_output_shape(const Shape& x, Window window);

/// Largest value of each window. `argmax`, of y's shape, keeps which element it was for the backward pass; a view
/// without data keeps nothing. Windows of up to 15 x 15.
void max_pool2d_forward(Inference& backend, Activations y, TensorView<uint8_t> argmax, ConstActivations x,
                        Window window);
void max_pool2d_backward(Training& backend, Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax,
                         Window window, const GradientStore& store = {});

/// y[N, P, Q, C]: averages of P x Q regions that cover x[N, H, W, C] as evenly as whole pixels can.
void adaptive_average_pool2d_forward(Inference& backend, Activations y, ConstActivations x);
void adaptive_average_pool2d_backward(Training& backend, Activations dx, ConstActivations dy);

/// y[N, C H W]: the order in which PyTorch flattens, from x[N, H, W, C].
void flatten_forward(Inference& backend, Activations y, ConstActivations x);
void flatten_backward(Training& backend, Activations dx, ConstActivations dy);

}  // namespace nibblenet
