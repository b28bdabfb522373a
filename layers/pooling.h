#pragma once

#include "kernels/inference.h"
#include "kernels/training.h"

namespace nibblenet {

/// Output shape [N, P, Q, C] of pooling x[N, H, W, C]. Padding is at most half the window, as in
/// PyTorch, so that no window is empty.
Shape max_pool2d_output_shape(const Shape& x, Window window);

/// Largest value of each window, up to 15 x 15. `argmax`, of y's shape, gets its position for the
/// backward pass, unless it has no data.
void max_pool2d_forward(Inference& backend, Activations y, TensorView<uint8_t> argmax, ConstActivations x,
                        Window window);
void max_pool2d_backward(Training& backend, Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax,
                         Window window, const GradientStore& store = {});

/// y[N, P, Q, C]: averages of P x Q regions that divide x[N, H, W, C] as evenly as whole pixels
/// allow.
void adaptive_average_pool2d_forward(Inference& backend, Activations y, ConstActivations x);
void adaptive_average_pool2d_backward(Training& backend, Activations dx, ConstActivations dy);

/// y[N, C H W] in PyTorch's order, from x[N, H, W, C].
void flatten_forward(Inference& backend, Activations y, ConstActivations x);
void flatten_backward(Training& backend, Activations dx, ConstActivations dy);

}  // namespace nibblenet
