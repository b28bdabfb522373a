#include "layers/dropout.h"

#include "layers/gradient_store.h"

namespace nibblenet {
namespace {

void apply(Training& backend, Activations y, ConstActivations x, float probability, DropoutKey key,
           const GradientStore& store) {
  expect_shape(y.shape(), x.shape(), "dropout output");
  if (!(probability >= 0.0F && probability <= 1.0F))
    fail<ShapeError>("dropout probability {} is outside [0, 1]", probability);
  expect_store(y, store);
  backend.dropout(y, x, probability, key, store);
}

}  // namespace

void dropout_forward(Training& backend, Activations y, ConstActivations x, float probability, DropoutKey key) {
  apply(backend, y, x, probability, key, {});
}

void dropout_backward(Training& backend, Activations dx, ConstActivations dy, float probability, DropoutKey key,
                      const GradientStore& store) {
  apply(backend, dx, dy, probability, key, store);
}

}  // namespace nibblenet
