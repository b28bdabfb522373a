#pragma once

#include <array>
#include <functional>
#include <map>
#include <vector>

#include "kernels/cudnn/descriptors.h"

namespace nibblenet {

/// Device memory for one call, valid until the next request.
using WorkspaceOf = std::function<void*(size_t bytes)>;

/// Convolutions by cuDNN: images [N, H, W, C], filters [K, R, S, C]. The first call for a shape times every algorithm
/// that cuDNN has and keeps the order; later ones take the fastest that runs. Gradients take deterministic ones only.
class ConvolutionCudnn {
 public:
  ConvolutionCudnn(cudnnHandle_t handle, WorkspaceOf workspace)
      : handle_(handle),
        workspace_(std::move(workspace)),
        relu_(describe_activation(CUDNN_ACTIVATION_RELU)),
        identity_(describe_activation(CUDNN_ACTIVATION_IDENTITY)) {}

  /// y = epilogue(factor conv(x, filters) + bias); filters and bias are of x's precision, as y is.
  void forward(Activations y, ConstActivations x, const void* filters, float factor, const void* bias, Window window,
               Epilogue epilogue);
  void backward_data(TensorView<float> dx, TensorView<const float> dy, const float* filters, Window window);
  void backward_filters(float* dfilters, TensorView<const float> dy, TensorView<const float> x, Window window);
  /// dbias[k] = sum over images and pixels of dy[N, P, Q, K].
  void backward_bias(TensorView<float> dbias, TensorView<const float> dy);

 private:
  enum class Direction : uint8_t { forward, backward_data, backward_filters };
  struct Choice {
    int algorithm;
    size_t workspace;
    cudnnMathType_t math;
  };
  struct Plan {
    TensorDescriptor x, y, bias;
    FilterDescriptor filters;
    ConvolutionDescriptor convolution;
    std::vector<Choice> choices;  ///< fastest first
  };
  using Key = std::array<int64_t, 12>;

  Plan& plan(Direction direction, const Shape& x, const Shape& y, Window window, Precision precision);
  template <class Run>
  void run_fastest(Plan& plan, const char* what, Run run);

  cudnnHandle_t handle_;
  WorkspaceOf workspace_;
  ActivationDescriptor relu_, identity_;
  std::map<Key, Plan> plans_;
};

}  // namespace nibblenet
