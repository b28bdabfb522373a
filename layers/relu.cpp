#include "layers/relu.h"

namespace nibblenet {

void relu_forward(Inference& backend, TensorView<float> y, TensorView<const float> x) {
  expect_shape(y.shape(), x.shape(), "relu output");
  backend.relu_forward(y, x);
}

void relu_backward(Training& backend, Activations dx, ConstActivations dy, ConstActivations y) {
  expect_shape(dx.shape(), y.shape(), "relu input gradient");
  expect_shape(dy.shape(), y.shape(), "relu output gradient");
  backend.relu_backward(dx, dy, y);
}

void expect_store(Activations dx, const GradientStore& store) {
  if (store.relu_output.data() != nullptr) expect_shape(store.relu_output.shape(), dx.shape(), "output of dx's relu");
}

}  // namespace nibblenet
