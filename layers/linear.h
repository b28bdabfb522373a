#pragma once

#include "kernels/backend.h"

namespace nibblenet {

/// y[N, K] = epilogue(x[N, C] w[K, C]^T + bias[K]).
void linear_forward(Backend& backend, Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                    Epilogue epilogue);

/// dx (skipped when it has no data), dw and dbias from dy, the gradient before the epilogue.
void linear_backward(Backend& backend, TensorView<float> dx, TensorView<float> dw, TensorView<float> dbias,
                     TensorView<const float> dy, TensorView<const float> x, Weight& w);

}  // namespace nibblenet
