#include "layers/pooling.h"

#include "layers/gradient_store.h"

namespace nibblenet {
namespace {

void expect_adaptive(const Shape& small, const Shape& x, std::string_view what) {
  if (x.rank() != 4 || small.rank() != 4 || small[0] != x[0] || small[3] != x[3] || x[1] < 1 || x[2] < 1 ||
      small[1] < 1 || small[2] < 1)
    fail<ShapeError>("adaptive average pooling {}: {} does not go with an input {} (both NHWC)", what, to_string(small),
                     to_string(x));
}

void expect_flat(const Shape& flat, const Shape& x) {
  if (x.rank() != 4) fail<ShapeError>("flatten expects an NHWC input, got {}", to_string(x));
  expect_shape(flat, {x[0], x[1] * x[2] * x[3]}, "flattened tensor");
}

}  // namespace

Shape max_pool2d_output_shape(const Shape& x, Window window) {
  if (x.rank() != 4) fail<ShapeError>("max pooling expects an NHWC input, got {}", to_string(x));
  if (window.size > 15 || window.padding * 2 > window.size)
    fail<ShapeError>("max pooling window of size {} with padding {}: at most 15, padding at most half of it",
                     window.size, window.padding);
  return {x[0], window.output(x[1]), window.output(x[2]), x[3]};
}

void max_pool2d_forward(Inference& backend, Activations y, TensorView<uint8_t> argmax, ConstActivations x,
                        Window window) {
  expect_shape(y.shape(), max_pool2d_output_shape(x.shape(), window), "max pooling output");
  if (argmax.data() != nullptr) expect_shape(argmax.shape(), y.shape(), "max pooling positions");
  backend.max_pool2d_forward(y, argmax, x, window);
}

void max_pool2d_backward(Training& backend, Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax,
                         Window window, const GradientStore& store) {
  expect_shape(dy.shape(), max_pool2d_output_shape(dx.shape(), window), "max pooling output gradient");
  expect_shape(argmax.shape(), dy.shape(), "max pooling positions");
  expect_store(dx, store);
  backend.max_pool2d_backward(dx, dy, argmax, window, store);
}

void adaptive_average_pool2d_forward(Inference& backend, Activations y, ConstActivations x) {
  expect_adaptive(y.shape(), x.shape(), "output");
  backend.adaptive_average_pool2d_forward(y, x);
}

void adaptive_average_pool2d_backward(Training& backend, Activations dx, ConstActivations dy) {
  expect_adaptive(dy.shape(), dx.shape(), "output gradient");
  backend.adaptive_average_pool2d_backward(dx, dy);
}

void flatten_forward(Inference& backend, Activations y, ConstActivations x) {
  expect_flat(y.shape(), x.shape());
  backend.flatten_forward(y, x);
}

void flatten_backward(Training& backend, Activations dx, ConstActivations dy) {
  expect_flat(dy.shape(), dx.shape());
  backend.flatten_backward(dx, dy);
}

}  // namespace nibblenet
