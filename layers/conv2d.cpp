#include "layers/conv2d.h"

#include "layers/gradient_store.h"
#include "layers/pooling.h"

namespace nibblenet {

Shape conv2d_output_shape(const Shape& x, const Shape& w, Window window) {
  if (x.rank() != 4 || w.rank() != 4 || x[3] != w[1] || w[2] != window.size || w[3] != window.size)
    fail<ShapeError>("convolution of an input {} (NHWC) with filters {} (KCRS) of window {}: channels or sizes differ",
                     to_string(x), to_string(w), window.size);
  return {x[0], window.output(x[1]), window.output(x[2]), w[0]};
}

void conv2d_forward(Inference& backend, Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                    Window window, Epilogue epilogue) {
  expect_shape(y.shape(), conv2d_output_shape(x.shape(), w.shape(), window), "convolution output");
  expect_shape(bias.shape(), {w.shape()[0]}, "convolution bias");
  backend.conv2d_forward(y, x, w, bias, window, epilogue);
}

void conv2d_max_pool2d_forward(Inference& backend, Activations y, ConstActivations x, Weight& w,
                               TensorView<const float> bias, Window window, Epilogue epilogue, Window pool) {
  const Shape convolved = conv2d_output_shape(x.shape(), w.shape(), window);
  const Shape pooled = max_pool2d_output_shape(convolved, pool);
  const bool flat = y.shape().rank() == 2;
  expect_shape(y.shape(), flat ? Shape{pooled[0], pooled.inner_elements()} : pooled,
               "output of convolution and max pooling");
  expect_shape(bias.shape(), {w.shape()[0]}, "convolution bias");
  backend.conv2d_max_pool2d_forward(y, x, w, bias, window, epilogue, pool);
}

namespace {

void expect_output(const Shape& dy, const Shape& x, const Shape& w, Window window) {
  expect_shape(dy, conv2d_output_shape(x, w, window), "convolution output gradient");
}

}  // namespace

void conv2d_backward_data(Training& backend, Activations dx, ConstActivations dy, Weight& w, Window window,
                          const GradientStore& store) {
  expect_output(dy.shape(), dx.shape(), w.shape(), window);
  expect_store(dx, store);
  backend.conv2d_backward_data(dx, dy, w, window, store);
}

void conv2d_backward_weight(Training& backend, TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                            ConstActivations x, Window window) {
  expect_output(dy.shape(), x.shape(), dw.shape(), window);
  expect_shape(dbias.shape(), {dw.size(0)}, "convolution bias gradient");
  backend.conv2d_backward_weight(dw, dbias, dy, x, window);
}

}  // namespace nibblenet
