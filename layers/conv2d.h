#pragma once

#include "kernels/backend.h"

namespace nibblenet {

/// [N, P, Q, K] of a convolution of x[N, H, W, C] with filters w[K, C, R, R]. Throws ShapeError when they do not fit.
Shape conv2d_output_shape(const Shape& x, const Shape& w, Window window);

/// y[N, P, Q, K] = epilogue(x[N, H, W, C] * w[K, C, R, R] + bias[K]), cross-correlation with zero padding as in
/// PyTorch.
void conv2d_forward(Backend& backend, Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                    Window window, Epilogue epilogue);

/// y = max_pool2d(conv2d_forward(x, w), pool) at once. False, and nothing was done, where the backend gains nothing by
/// it: then the two follow each other.
[[nodiscard]] bool conv2d_max_pool2d_forward(Backend& backend, Activations y, ConstActivations x, Weight& w,
                                             TensorView<const float> bias, Window window, Epilogue epilogue,
                                             Window pool);

/// dx (skipped when it has no data: the first layer needs none), dw and dbias from dy = dLoss/d(x * w + bias), the
/// gradient before the epilogue.
void conv2d_backward(Backend& backend, TensorView<float> dx, TensorView<float> dw, TensorView<float> dbias,
                     TensorView<const float> dy, TensorView<const float> x, Weight& w, Window window);

}  // namespace nibblenet
