#include "layers/cross_entropy.h"

namespace nibblenet {

void cross_entropy(Backend& backend, TensorView<float> losses, TensorView<float> dlogits,
                   TensorView<const float> logits, TensorView<const int32_t> labels) {
  if (logits.shape().rank() != 2 || logits.size(1) < 1)
    fail<ShapeError>("cross-entropy expects logits [N, classes], got {}", to_string(logits.shape()));
  expect_shape(labels.shape(), {logits.size(0)}, "cross-entropy labels");
  expect_shape(losses.shape(), labels.shape(), "cross-entropy losses");
  if (dlogits.data() != nullptr) expect_shape(dlogits.shape(), logits.shape(), "cross-entropy gradient");
  if (logits.size(0) == 0) return;
  backend.cross_entropy(losses, dlogits, logits, labels, 1.0F / static_cast<float>(logits.size(0)));
}

}  // namespace nibblenet
