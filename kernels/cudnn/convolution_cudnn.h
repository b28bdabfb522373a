#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels/cuda/device/device.h"
#include "kernels/cudnn/convolution_graph.h"
#include "kernels/cudnn/descriptors.h"

namespace nibblenet {

/// Returns device memory for one call, valid until the next request.
using WorkspaceOf = std::function<void*(size_t bytes)>;

/// Convolutions by cuDNN: images [N, H, W, C], filters [K, R, S, C]. At the first call for a shape,
/// cuDNN times all its algorithms. The forward pass then times the fast ones again, on its own
/// operands, with bias and activation, replayed from a graph. In float16 it also times every plan
/// of cuDNN's graph interface. It keeps the fastest. Gradients take the fastest deterministic
/// algorithm that runs.
class ConvolutionCudnn {
 public:
  ConvolutionCudnn(cudnnHandle_t handle, Stream& stream, WorkspaceOf workspace)
      : handle_(handle),
        stream_(stream),
        workspace_(std::move(workspace)),
        relu_(describe_activation(CUDNN_ACTIVATION_RELU)),
        identity_(describe_activation(CUDNN_ACTIVATION_IDENTITY)) {}

  /// y = epilogue(conv(x, filters) + bias); filters and bias are of x's precision, as y is.
  void forward(Activations y, ConstActivations x, const void* filters, const void* bias, Window window,
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
    float alone;  ///< milliseconds, as cuDNN timed it
  };
  struct Plan {
    TensorDescriptor x, y, bias;
    FilterDescriptor filters;
    ConvolutionDescriptor convolution;
    std::vector<Choice> choices;  ///< fastest first
    std::unique_ptr<ConvolutionGraph> graph = nullptr;
    std::optional<size_t> of_graph = std::nullopt;  ///< a plan of the graph that is faster than all choices
    bool compared = false;                          ///< whether they were timed on a call's own operands
  };
  using Key = std::tuple<Direction, Shape, Shape, Window, Precision, Epilogue>;

  Plan& plan(Direction direction, const Shape& x, const Shape& y, Window window, Precision precision,
             Epilogue epilogue = Epilogue::none);
  /// Times the choices and keeps the fastest. Returns its milliseconds.
  float keep_fastest(Plan& plan, const std::function<cudnnStatus_t(const Choice&)>& run);
  void compare_graph(Plan& plan, float least, const std::function<cudnnStatus_t(size_t)>& run);
  template <class Run>
  void run_fastest(Plan& plan, const char* what, Run run);

  cudnnHandle_t handle_;
  Stream& stream_;
  WorkspaceOf workspace_;
  ActivationDescriptor relu_, identity_;
  std::map<Key, Plan> plans_;
};

}  // namespace nibblenet
