#pragma once

#include "kernels/inference.h"
#include "kernels/training.h"

namespace nibblenet {

/// losses[N] = -log softmax(logits[N, classes])[label]. Unless `dlogits` is empty, also the
/// gradient of the batch's mean loss, (softmax - onehot) / N. Requires: labels in [0, classes);
/// readers of files check that.
void cross_entropy(Inference& backend, TensorView<float> losses, TensorView<float> dlogits,
                   TensorView<const float> logits, TensorView<const int32_t> labels);

/// Cross-entropy with targets[N, classes], whose rows are distributions:
/// losses = -sum targets log softmax.
void soft_cross_entropy(Training& backend, TensorView<float> losses, TensorView<float> dlogits,
                        TensorView<const float> logits, TensorView<const float> targets);

}  // namespace nibblenet
