#pragma once

#include "kernels/cuda/backend_cuda.h"
#include "kernels/cudnn/convolution_cudnn.h"
#include "kernels/cudnn/matmul_cublaslt.h"

namespace nibblenet {

/// The baseline, for checks and benchmarks only. cuDNN and cuBLASLt compute products and their
/// gradients, ReLU and max pooling, on weights dequantized to the precision of the activations. The
/// CUDA backend computes the rest: operations without a counterpart in the libraries (dropout with
/// our random numbers, cross-entropy with its gradient, gathers, SGD, positions of maxima), and the
/// adaptive average pool, which is the identity in AlexNet at 224 pixels.
class CudnnBackend final : public CudaBackend {
 public:
  /// Throws CudaError when there is no GPU or one of the libraries cannot be loaded.
  CudnnBackend();

  std::string name() const override { return "cudnn"; }
  std::string description() const override;
  /// Also returns null once a graph could not capture a call of the libraries.
  std::unique_ptr<Recording> record(const std::function<void()>& work) override;
  std::unique_ptr<Weight> make_weight(TensorView<const float> host_values,
                                      Precision precision = Precision::float32) override;
  std::unique_ptr<Weight> make_weight(const PackedTensor& packed, Precision precision = Precision::float32,
                                      const InputRange& = {}) override;

  /// Throws UsageError: the baseline trains in float32 only.
  std::unique_ptr<Weight> make_trained_weight(TensorView<const float> host_values) override {
    return Training::make_trained_weight(host_values);  // NOLINT(bugprone-parent-virtual-call): not CudaBackend's
  }
  /// Throws UsageError: the libraries have no such convolution.
  std::unique_ptr<FoldedConv2d> make_folded_conv2d(const FoldedConvolution&, Precision) override;

  std::optional<ForwardRoute> route(const Weight& w, const ForwardQuestion& question) const override {
    return Backend::route(w, question);  // NOLINT(bugprone-parent-virtual-call): not CudaBackend's
  }
  void conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias, Window window,
                      Epilogue epilogue) override;
  void conv2d_max_pool2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                                 Window window, Epilogue epilogue, Window pool) override {
    Inference::conv2d_max_pool2d_forward(y, x, w, bias, window, epilogue,
                                         pool);  // NOLINT(bugprone-parent-virtual-call)
  }
  bool fuses_step(ConstActivations, ConstActivations, Window = {}) const override { return false; }
  void conv2d_backward_data(Activations dx, ConstActivations dy, Weight& w, Window window,
                            const GradientStore& store = {}) override;
  void conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy, ConstActivations x,
                              Window window) override;
  void linear_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                      Epilogue epilogue) override;
  void linear_backward_data(Activations dx, ConstActivations dy, Weight& w, const GradientStore& store = {}) override;
  void linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                              ConstActivations x) override;
  void relu_forward(TensorView<float> y, TensorView<const float> x) override;
  void relu_backward(Activations dx, ConstActivations dy, ConstActivations y) override;
  void max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window) override;

 private:
  class WeightCudnn;
  /// The filters in cuDNN's order, and the bias, for activations of this precision.
  const void* filters(const WeightCudnn& weight, Precision precision);
  void reorder(Buffer<float>& filters, TensorView<const float> values);
  const void* bias_as(WeightCudnn& weight, TensorView<const float> bias, Precision precision);
  void* workspace(size_t bytes);

  Descriptor<cudnnHandle_t, cudnnStatus_t> handle_;
  ActivationDescriptor relu_;
  ConvolutionCudnn convolution_;
  MatmulCublasLt matmul_;
  Buffer<std::byte> workspace_;
  bool records_ = true;
  Buffer<float> dfilters_;  ///< gradient of the last filters, in cuDNN's order
};

}  // namespace nibblenet
