#pragma once

#include "kernels/inference.h"
#include "kernels/training.h"

namespace nibblenet {

/// losses[N] = -log softmax(logits[N, classes])[label]. With data behind `dlogits`, also the gradient of the batch's
/// mean loss, (softmax - onehot) / N. Labels lie in [0, classes): who reads them from a file checks that.
void cross_entropy(Inference& backend, TensorView<float> losses, TensorView<float> dlogits,
                   TensorView<const float> logits, TensorView<const int32_t> labels);

/// The same against targets[N, classes], of which each row is a distribution: losses = -sum targets log softmax.
void soft_cross_entropy(Training& backend, TensorView<float> losses, TensorView<float> dlogits,
                        TensorView<const float> logits, TensorView<const float> targets);

}  // namespace nibblenet
