#pragma once

#include "kernels/inference.h"
#include "kernels/training.h"

namespace nibblenet {

/// Output shape [N, P, Q, K] of a convolution of x[N, H, W, C] with filters w[K, C, R, R]. Throws
/// ShapeError if they do not fit.
Shape conv2d_output_shape(const Shape& x, const Shape& w, Window window);

/// y[N, P, Q, K] = epilogue(x[N, H, W, C] * w[K, C, R, R] + bias[K]), cross-correlation with zero
/// padding as in PyTorch.
void conv2d_forward(Inference& backend, Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                    Window window, Epilogue epilogue);

/// Fused convolution and max pooling: y[N, P, Q, K] = max_pool2d(conv2d_forward(x, w), pool), or
/// y[N, K P Q], the same flattened. For backends whose route() has a kernel for it.
void conv2d_max_pool2d_forward(Inference& backend, Activations y, ConstActivations x, Weight& w,
                               TensorView<const float> bias, Window window, Epilogue epilogue, Window pool);

/// Data gradient dx, or weight gradients dw and dbias, from dy = dLoss/d(x * w + bias), the
/// gradient before the epilogue.
void conv2d_backward_data(Training& backend, Activations dx, ConstActivations dy, Weight& w, Window window,
                          const GradientStore& store = {});
void conv2d_backward_weight(Training& backend, TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                            ConstActivations x, Window window);

}  // namespace nibblenet
