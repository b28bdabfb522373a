#include "layers/dropout.h"

namespace nibblenet {
namespace {

void apply(Backend& backend, Activations y, ConstActivations x, float probability, DropoutKey key) {
  expect_shape(y.shape(), x.shape(), "dropout output");
  if (!(probability >= 0.0F && probability <= 1.0F))
    fail<ShapeError>("dropout probability {} is outside [0, 1]", probability);
  backend.dropout(y, x, probability, key);
}

}  // namespace

void dropout_forward(Backend& backend, Activations y, ConstActivations x, float probability, DropoutKey key) {
  apply(backend, y, x, probability, key);
}

void dropout_backward(Backend& backend, Activations dx, ConstActivations dy, float probability, DropoutKey key) {
  apply(backend, dx, dy, probability, key);
}

}  // namespace nibblenet
