#include "layers/linear.h"

#include "layers/gradient_store.h"

namespace nibblenet {

Shape linear_output_shape(const Shape& x, const Shape& w) {
  if (x.rank() != 2 || w.rank() != 2 || x[1] != w[1])
    fail<ShapeError>("linear layer of an input {} (NC) with a matrix {} (KC): channels differ", to_string(x),
                     to_string(w));
  return {x[0], w[0]};
}

void linear_forward(Inference& backend, Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                    Epilogue epilogue) {
  expect_shape(y.shape(), linear_output_shape(x.shape(), w.shape()), "linear output");
  expect_shape(bias.shape(), {w.shape()[0]}, "linear bias");
  backend.linear_forward(y, x, w, bias, epilogue);
}

void linear_backward_data(Training& backend, Activations dx, ConstActivations dy, Weight& w,
                          const GradientStore& store) {
  expect_shape(dy.shape(), linear_output_shape(dx.shape(), w.shape()), "linear output gradient");
  expect_store(dx, store);
  backend.linear_backward_data(dx, dy, w, store);
}

void linear_backward_weight(Training& backend, TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                            ConstActivations x) {
  expect_shape(dy.shape(), linear_output_shape(x.shape(), dw.shape()), "linear output gradient");
  expect_shape(dbias.shape(), {dw.size(0)}, "linear bias gradient");
  backend.linear_backward_weight(dw, dbias, dy, x);
}

}  // namespace nibblenet
