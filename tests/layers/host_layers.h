#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layers/conv2d.h"
#include "layers/cross_entropy.h"
#include "layers/dropout.h"
#include "layers/linear.h"
#include "layers/pooling.h"
#include "tests/kernels/values.h"
#include "tests/support/test_backend.h"

namespace nibblenet::testing {

/// The gradients that a layer with parameters computes.
struct Gradients {
  Values x;
  Values w;
  Values bias;
};

struct MaxPooled {
  Values y;
  std::vector<uint8_t> argmax;
};

struct CrossEntropy {
  Values losses;
  Values dlogits;
};

/// All gradients of a layer with parameters.
inline void conv2d_backward(Training& backend, Activations dx, TensorView<float> dw, TensorView<float> dbias,
                            ConstActivations dy, ConstActivations x, Weight& w, Window window) {
  conv2d_backward_data(backend, dx, dy, w, window);
  conv2d_backward_weight(backend, dw, dbias, dy, x, window);
}
inline void linear_backward(Training& backend, Activations dx, TensorView<float> dw, TensorView<float> dbias,
                            ConstActivations dy, ConstActivations x, Weight& w) {
  linear_backward_data(backend, dx, dy, w);
  linear_backward_weight(backend, dw, dbias, dy, x);
}

/// The layers on host values: operands are copied to the backend, results back to the host.
class HostLayers {
 public:
  explicit HostLayers(int threads = 2) : backend_(make_test_backend(threads)) {}

  Backend& backend() { return *backend_; }

  Values conv2d(const Values& x, const Values& w, const Values& bias, Window window,
                Epilogue epilogue = Epilogue::none) {
    const auto weight = backend_->make_weight(w.view());
    const auto input = put(x), offset = put(bias);
    return output(conv2d_output_shape(x.shape, w.shape, window), [&](TensorView<float> y) {
      conv2d_forward(*backend_, y, input.view(), *weight, offset.view(), window, epilogue);
    });
  }

  Gradients conv2d_backward(const Values& dy, const Values& x, const Values& w, Window window) {
    const auto weight = backend_->make_weight(w.view());
    const auto gradient = put(dy), input = put(x);
    return gradients(x.shape, w.shape, [&](TensorView<float> dx, TensorView<float> dw, TensorView<float> dbias) {
      testing::conv2d_backward(backend_->training(), dx, dw, dbias, gradient.view(), input.view(), *weight, window);
    });
  }

  Values linear(const Values& x, const Values& w, const Values& bias, Epilogue epilogue = Epilogue::none) {
    const auto weight = backend_->make_weight(w.view());
    const auto input = put(x), offset = put(bias);
    return output({x.shape[0], w.shape[0]}, [&](TensorView<float> y) {
      linear_forward(*backend_, y, input.view(), *weight, offset.view(), epilogue);
    });
  }

  Gradients linear_backward(const Values& dy, const Values& x, const Values& w) {
    const auto weight = backend_->make_weight(w.view());
    const auto gradient = put(dy), input = put(x);
    return gradients(x.shape, w.shape, [&](TensorView<float> dx, TensorView<float> dw, TensorView<float> dbias) {
      testing::linear_backward(backend_->training(), dx, dw, dbias, gradient.view(), input.view(), *weight);
    });
  }

  MaxPooled max_pool2d(const Values& x, Window window) {
    const auto input = put(x);
    const Shape shape = max_pool2d_output_shape(x.shape, window);
    Tensor<uint8_t> argmax(*backend_, shape, MemoryCategory::data);
    MaxPooled pooled;
    pooled.y = output(
        shape, [&](TensorView<float> y) { max_pool2d_forward(*backend_, y, argmax.view(), input.view(), window); });
    pooled.argmax.resize(pooled.y.data.size());
    backend_->copy_to_host(pooled.argmax.data(), argmax.data(), pooled.argmax.size());
    return pooled;
  }

  /// Without positions, as inference runs it.
  Values max_pool2d_inference(const Values& x, Window window) {
    const auto input = put(x);
    return output(max_pool2d_output_shape(x.shape, window),
                  [&](TensorView<float> y) { max_pool2d_forward(*backend_, y, {}, input.view(), window); });
  }

  Values max_pool2d_backward(const Values& dy, const std::vector<uint8_t>& argmax, const Shape& x, Window window) {
    const auto gradient = put(dy);
    Tensor<uint8_t> positions(*backend_, dy.shape, MemoryCategory::data);
    backend_->copy_from_host(positions.data(), argmax.data(), argmax.size());
    return output(x, [&](TensorView<float> dx) {
      nibblenet::max_pool2d_backward(backend_->training(), dx, gradient.view(), positions.view(), window);
    });
  }

  Values adaptive_average_pool2d(const Values& x, int64_t p, int64_t q) {
    return map(x, {x.shape[0], p, q, x.shape[3]}, adaptive_average_pool2d_forward);
  }
  Values adaptive_average_pool2d_backward(const Values& dy, const Shape& x) {
    return map(dy, x, nibblenet::adaptive_average_pool2d_backward);
  }

  Values flatten(const Values& x) {
    return map(x, {x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]}, flatten_forward);
  }
  Values flatten_backward(const Values& dy, const Shape& x) { return map(dy, x, nibblenet::flatten_backward); }

  Values relu(const Values& x) {
    const auto input = put(x);
    return output(x.shape, [&](TensorView<float> y) { backend_->relu_forward(y, input.view()); });
  }
  Values relu_backward(const Values& dy, const Values& y) {
    const auto gradient = put(dy), result = put(y);
    return output(
        y.shape, [&](TensorView<float> dx) { backend_->training().relu_backward(dx, gradient.view(), result.view()); });
  }

  Values dropout(const Values& x, float probability, DropoutKey key) {
    return map(x, x.shape, dropout_forward, probability, key);
  }
  Values dropout_backward(const Values& dy, float probability, DropoutKey key) {
    return map(dy, dy.shape, nibblenet::dropout_backward, probability, key, GradientStore{});
  }

  CrossEntropy cross_entropy(const Values& logits, const std::vector<int32_t>& labels) {
    const auto input = put(logits);
    Tensor<int32_t> targets(*backend_, {static_cast<int64_t>(labels.size())}, MemoryCategory::data);
    backend_->copy_from_host(targets.data(), labels.data(), labels.size() * sizeof(int32_t));
    CrossEntropy result;
    result.dlogits = output(logits.shape, [&](TensorView<float> dlogits) {
      result.losses = output(targets.shape(), [&](TensorView<float> losses) {
        nibblenet::cross_entropy(*backend_, losses, dlogits, input.view(), targets.view());
      });
    });
    return result;
  }
  CrossEntropy soft_cross_entropy(const Values& logits, const Values& targets) {
    const auto input = put(logits);
    const auto wanted = put(targets);
    CrossEntropy result;
    result.dlogits = output(logits.shape, [&](TensorView<float> dlogits) {
      result.losses = output({logits.shape[0]}, [&](TensorView<float> losses) {
        nibblenet::soft_cross_entropy(backend_->training(), losses, dlogits, input.view(), wanted.view());
      });
    });
    return result;
  }

 private:
  Tensor<float> put(const Values& values) { return on(*backend_, values); }

  template <class Operation>
  Values output(const Shape& shape, Operation&& operation) {
    return output_of(*backend_, shape, operation);
  }

  /// A layer of one operand.
  template <class Layer, class... Parameters>
  Values map(const Values& x, const Shape& shape, Layer layer, Parameters... parameters) {
    const auto input = put(x);
    return output(shape, [&](TensorView<float> y) {
      if constexpr (std::is_invocable_v<Layer, Inference&, TensorView<float>, TensorView<float>, Parameters...>)
        layer(*backend_, y, input.view(), parameters...);
      else
        layer(backend_->training(), y, input.view(), parameters...);
    });
  }

  template <class Operation>
  Gradients gradients(const Shape& x, const Shape& w, Operation&& operation) {
    Gradients result;
    result.x = output(x, [&](TensorView<float> dx) {
      result.w = output(w, [&](TensorView<float> dw) {
        result.bias = output({w[0]}, [&](TensorView<float> dbias) { operation(dx, dw, dbias); });
      });
    });
    return result;
  }

  std::unique_ptr<Backend> backend_;
};

}  // namespace nibblenet::testing
