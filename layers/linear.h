#pragma once

#include "kernels/inference.h"
#include "kernels/training.h"

namespace nibblenet {

/// y[N, K] = epilogue(x[N, C] w[K, C]^T + bias[K]).
void linear_forward(Inference& backend, Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                    Epilogue epilogue);

/// Data gradient dx, weight gradients dw and dbias, or the fused SGD step (see conv2d.h), from dy,
/// the gradient before the epilogue.
void linear_backward_data(Training& backend, Activations dx, ConstActivations dy, Weight& w,
                          const GradientStore& store = {});
void linear_backward_weight(Training& backend, TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                            ConstActivations x);
void linear_backward_step(Training& backend, const TrainedLayer& layer, ConstActivations dy, ConstActivations x,
                          float factor, SgdParameters parameters);

}  // namespace nibblenet
