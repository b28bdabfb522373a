#include "layers/cross_entropy.h"

namespace nibblenet {

namespace {

void expect_shapes(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits) {
  if (logits.shape().rank() != 2 || logits.size(1) < 1)
    fail<ShapeError>("cross-entropy expects logits [N, classes], got {}", to_string(logits.shape()));
  expect_shape(losses.shape(), {logits.size(0)}, "cross-entropy losses");
  if (dlogits.data() != nullptr) expect_shape(dlogits.shape(), logits.shape(), "cross-entropy gradient");
}

}  // namespace

void cross_entropy(Inference& backend, TensorView<float> losses, TensorView<float> dlogits,
                   TensorView<const float> logits, TensorView<const int32_t> labels) {
  expect_shapes(losses, dlogits, logits);
  expect_shape(labels.shape(), {logits.size(0)}, "cross-entropy labels");
  if (logits.size(0) == 0) return;
  backend.cross_entropy(losses, dlogits, logits, labels, 1.0F / static_cast<float>(logits.size(0)));
}

void soft_cross_entropy(Training& backend, TensorView<float> losses, TensorView<float> dlogits,
                        TensorView<const float> logits, TensorView<const float> targets) {
  expect_shapes(losses, dlogits, logits);
  expect_shape(targets.shape(), logits.shape(), "cross-entropy targets");
  if (logits.size(0) == 0) return;
  backend.soft_cross_entropy(losses, dlogits, logits, targets, 1.0F / static_cast<float>(logits.size(0)));
}

}  // namespace nibblenet
