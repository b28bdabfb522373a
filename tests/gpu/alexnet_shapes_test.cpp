#include <gtest/gtest.h>

#include "layers/network/network_spec.h"
#include "tests/kernels/values.h"
#include "tests/support/baseline.h"
#include "tests/support/golden.h"
#include "tests/support/test_backend.h"

// Every layer of AlexNet at its real size, our kernels against cuDNN and cuBLASLt. Host execution
// would take too long.

namespace nibblenet {
namespace {

using testing::fp16_on;
using testing::make_baseline;
using testing::make_test_backend;
using testing::on;
using testing::output_of;
using testing::relative_error;
using testing::uniform;
using testing::Values;

constexpr int64_t batch = 8;

class AlexNetShapes : public ::testing::Test {
 protected:
  void SetUp() override {
    if (baseline_ == nullptr) GTEST_SKIP() << "cuDNN or cuBLASLt is not installed";
  }

  /// use(layer, shape of its input) for every layer with parameters.
  template <class Use>
  void for_each_layer(Use use) {
    Shape shape = {batch, 224, 224, 3};
    for (const LayerSpec& layer : layers_of(random_network(network_named("alexnet"), 10, 1))) {
      SCOPED_TRACE(layer.name);
      if (layer.has_parameters()) use(layer, shape);
      shape = layer.output_shape(shape);
    }
  }

  static Values forward(Backend& backend, const LayerSpec& layer, const Shape& shape, Precision precision) {
    const Values x = uniform(shape, 1), w = uniform(layer.weight, 2);
    const auto weight = backend.make_weight(w.view(), precision);
    const Tensor<float> floats = on(backend, x), bias = on(backend, uniform({layer.weight[0]}, 3));
    Buffer<f16> fp16 = fp16_on(backend, x);
    const Shape output = layer.output_shape(shape);
    Buffer<f16> result(backend, static_cast<size_t>(output.elements()), MemoryCategory::data);
    return output_of(backend, output, [&](TensorView<float> y) {
      const bool half = precision == Precision::float16;
      const ConstActivations from = half ? ConstActivations(TensorView<f16>(fp16.data(), shape)) : floats.view();
      const Activations to = half ? Activations(TensorView<f16>(result.data(), output)) : y;
      if (layer.kind == LayerKind::conv2d)
        backend.conv2d_forward(to, from, *weight, bias.view(), layer.window, layer.epilogue);
      else
        backend.linear_forward(to, from, *weight, bias.view(), layer.epilogue);
      if (half) backend.convert(y, to);
    });
  }

  std::unique_ptr<Backend> ours_ = make_test_backend();
  std::unique_ptr<Backend> baseline_ = make_baseline();
};

TEST_F(AlexNetShapes, ForwardInBothPrecisions) {
  for_each_layer([&](const LayerSpec& layer, const Shape& shape) {
    for (const Precision precision : {Precision::float32, Precision::float16})
      EXPECT_LE(relative_error(forward(*ours_, layer, shape, precision).view(),
                               forward(*baseline_, layer, shape, precision).view()),
                precision == Precision::float32 ? 1e-5 : 2e-3)
          << to_string(precision);
  });
}

TEST_F(AlexNetShapes, Gradients) {
  for_each_layer([&](const LayerSpec& layer, const Shape& shape) {
    const bool conv = layer.kind == LayerKind::conv2d;
    const Values x = uniform(shape, 1), w = uniform(layer.weight, 2), dy = uniform(layer.output_shape(shape), 3);
    const auto gradients = [&](Backend& backend) {
      const Tensor<float> input = on(backend, x), gradient = on(backend, dy);
      const auto weight = backend.make_weight(w.view());
      std::vector<Values> all(3);
      all[0] = output_of(backend, layer.weight, [&](TensorView<float> dw) {
        all[1] = output_of(backend, {layer.weight[0]}, [&](TensorView<float> dbias) {
          if (conv)
            backend.training().conv2d_backward_weight(dw, dbias, gradient.view(), input.view(), layer.window);
          else
            backend.training().linear_backward_weight(dw, dbias, gradient.view(), input.view());
        });
      });
      all[2] = output_of(backend, shape, [&](TensorView<float> dx) {
        if (conv)
          backend.training().conv2d_backward_data(dx, gradient.view(), *weight, layer.window);
        else
          backend.training().linear_backward_data(dx, gradient.view(), *weight);
      });
      return all;
    };
    const std::vector<Values> ours = gradients(*ours_), expected = gradients(*baseline_);
    for (size_t i = 0; i < ours.size(); ++i)
      EXPECT_LE(relative_error(ours[i].view(), expected[i].view()), 1e-4) << "gradient " << i;
  });
}

}  // namespace
}  // namespace nibblenet
