#pragma once

#include "kernels/inference.h"
#include "kernels/training.h"

namespace nibblenet {

/// Output shape [N, K] of a linear layer of x[N, C] with w[K, C]. Throws ShapeError if they do not
/// fit.
Shape linear_output_shape(const Shape& x, const Shape& w);

/// y[N, K] = epilogue(x[N, C] w[K, C]^T + bias[K]).
void linear_forward(Inference& backend, Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                    Epilogue epilogue);

/// Data gradient dx, or weight gradients dw and dbias, from dy, the gradient before the epilogue.
void linear_backward_data(Training& backend, Activations dx, ConstActivations dy, Weight& w,
                          const GradientStore& store = {});
void linear_backward_weight(Training& backend, TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                            ConstActivations x);

}  // namespace nibblenet
