#include "layers/linear.h"

namespace nibblenet {
namespace {

Shape output_shape(const Shape& x, const Shape& w) {
  if (x.rank() != 2 || w.rank() != 2 || x[1] != w[1])
    fail<ShapeError>("linear layer of an input {} (NC) with a matrix {} (KC): channels differ", to_string(x),
                     to_string(w));
  return {x[0], w[0]};
}

}  // namespace

void linear_forward(Backend& backend, Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                    Epilogue epilogue) {
  expect_shape(y.shape(), output_shape(x.shape(), w.shape()), "linear output");
  expect_shape(bias.shape(), {w.shape()[0]}, "linear bias");
  backend.linear_forward(y, x, w, bias, epilogue);
}

void linear_backward(Backend& backend, TensorView<float> dx, TensorView<float> dw, TensorView<float> dbias,
                     TensorView<const float> dy, TensorView<const float> x, Weight& w) {
  expect_shape(dy.shape(), output_shape(x.shape(), w.shape()), "linear output gradient");
  expect_shape(dw.shape(), w.shape(), "linear weight gradient");
  expect_shape(dbias.shape(), {w.shape()[0]}, "linear bias gradient");
  if (dx.data() != nullptr) {
    expect_shape(dx.shape(), x.shape(), "linear input gradient");
    backend.linear_backward_data(dx, dy, w);
  }
  backend.linear_backward_weight(dw, dbias, dy, x);
}

}  // namespace nibblenet
