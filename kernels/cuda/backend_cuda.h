#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/activations/launchers.h"
#include "kernels/cuda/conv/launchers.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/device/downloads.h"
#include "kernels/cuda/device/nvml.h"
#include "kernels/cuda/device/uploads.h"
#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/routes.h"
#include "kernels/cuda/weights/launchers.h"

namespace nibblenet {

/// The CUDA backend: our own kernels for every operation, in order on one stream of the current
/// device. Not thread-safe.
class CudaBackend : public Backend, public Training, private Workspace {
 public:
  /// Throws CudaError when there is no GPU, UsageError for an unknown NIBBLENET_KERNELS.
  CudaBackend();
  /// Queues its work on a stream of somebody else (Stream::Stream(CUstream_st*)).
  explicit CudaBackend(CUstream_st* lent);

  std::string name() const override { return "cuda"; }
  std::string description() const override { return device_.description(); }
  void take_turn() override { choose_gpu(device_.number()); }
  std::optional<std::string> device_id() const override { return device_.id(); }
  std::optional<DeviceMemory> device_memory() const override { return device_.memory(); }
  std::optional<int> gpu_number() const override { return device_.number(); }
  std::optional<double> joules() override;
  std::optional<DeviceState> state() override;
  size_t bytes_that_empty_caches() const override { return 5 * device_.l2_bytes(); }  // policy unknown
  Precision preferred_precision() const override { return Precision::float16; }
  void expect_support(Precision precision) const override;
  Stream& stream() { return stream_; }
  /// Sets which kernels routes may choose. The default is NIBBLENET_KERNELS of the environment, or
  /// all. Throws Error where the choice is wgmma and there is none.
  void choose_kernels(KernelChoice choice);
  const GpuTraits& gpu() const { return gpu_; }

  void copy_from_host(void* destination, const void* source, size_t bytes) override {
    uploads_.copy(destination, source, bytes, stream_);
  }
  void copy_to_host(void* destination, const void* source, size_t bytes) override {
    copy_from_device(destination, source, bytes, stream_);
  }
  void copy_to_host_later(void* destination, const void* source, size_t bytes) override {
    downloads_.copy(destination, source, bytes, stream_);
  }
  void finish_copies() override { downloads_.finish(); }
  void synchronize() override { stream_.synchronize(); }
  void wait_for_stream(uintptr_t stream) override;
  void let_stream_wait(uintptr_t stream) override;
  std::unique_ptr<Recording> record(const std::function<void()>& work) override;
  std::unique_ptr<Weight> make_weight(TensorView<const float> host_values,
                                      Precision precision = Precision::float32) override;
  std::unique_ptr<Weight> make_weight(const PackedTensor& packed, Precision = Precision::float32,
                                      const InputRange& = {}) override;
  std::unique_ptr<Weight> make_trained_weight(TensorView<const float> host_values) override;
  PackedTensor quantize(TensorView<const float> host_weights, const Scheme& scheme, std::string_view name) override;
  std::unique_ptr<ImagePreparer> make_image_preparer(const ResampleTables& tables) override {
    return cuda::make_image_preparer(*this, tables, stream_);
  }
  std::unique_ptr<FoldedConv2d> make_folded_conv2d(const FoldedConvolution& folded, Precision precision) override {
    return cuda::make_folded_conv2d(*this, folded, precision, stream_);
  }
  void gather_rows(TensorView<float> y, TensorView<const float> x, std::span<const int64_t> rows) override;
  void convert(Activations y, ConstActivations x, float factor = 1.0F) override {
    cuda::convert(y, x, factor, stream_);
  }
  void hadamard(Activations y, ConstActivations x, Rotation rotation) override {
    cuda::hadamard(y, x, rotation, stream_);
  }

  void conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias, Window window,
                      Epilogue epilogue) override;
  void conv2d_max_pool2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                                 Window window, Epilogue epilogue, Window pool) override;
  std::optional<ForwardRoute> route(const Weight& w, const ForwardQuestion& question) const override;
  void conv2d_backward_data(Activations dx, ConstActivations dy, Weight& w, Window window,
                            const GradientStore& store = {}) override;
  void conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy, ConstActivations x,
                              Window window) override;
  // A linear layer is a convolution of images of one pixel.
  void linear_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                      Epilogue epilogue) override {
    CudaBackend::conv2d_forward(y, x, w, bias, {}, epilogue);
  }
  void linear_backward_data(Activations dx, ConstActivations dy, Weight& w, const GradientStore& store = {}) override {
    CudaBackend::conv2d_backward_data(dx, dy, w, {}, store);
  }
  void linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                              ConstActivations x) override {
    CudaBackend::conv2d_backward_weight(dw, dbias, dy, x, {});
  }
  void relu_forward(TensorView<float> y, TensorView<const float> x) override { cuda::relu_forward(y, x, stream_); }
  void relu_backward(Activations dx, ConstActivations dy, ConstActivations y) override {
    cuda::relu_backward(dx, dy, y, stream_);
  }
  void max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window) override;
  void max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax, Window window,
                           const GradientStore& store = {}) override;
  void adaptive_average_pool2d_forward(Activations y, ConstActivations x) override {
    cuda::adaptive_average_pool2d_forward(y, x, stream_);
  }
  void adaptive_average_pool2d_backward(Activations dx, ConstActivations dy) override {
    cuda::adaptive_average_pool2d_backward(dx, dy, stream_);
  }
  void flatten_forward(Activations y, ConstActivations x) override { cuda::flatten_forward(y, x, stream_); }
  void flatten_backward(Activations dx, ConstActivations dy) override { cuda::flatten_backward(dx, dy, stream_); }
  void dropout(Activations y, ConstActivations x, float probability, DropoutKey key,
               const GradientStore& store = {}) override;
  void cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                     TensorView<const int32_t> labels, float scale) override {
    cuda::cross_entropy(losses, dlogits, logits, labels, scale, stream_);
  }
  void soft_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                          TensorView<const float> targets, float scale) override {
    cuda::soft_cross_entropy(losses, dlogits, logits, targets, scale, stream_);
  }
  void add(TensorView<float> y, TensorView<const float> x) override { cuda::add(y, x, stream_); }
  void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw,
                SgdParameters parameters) override {
    cuda::sgd_step(w, v, dw, parameters, stream_);
  }
  void move_average(TensorView<float> average, TensorView<const float> x, float share) override {
    cuda::move_average(average, x, share, stream_);
  }
  bool fuses_step(ConstActivations dy, ConstActivations x, Window window = {}) const override;
  void backward_step(const TrainedLayer& layer, ConstActivations dy, ConstActivations x, Window window, float factor,
                     SgdParameters parameters) override;
  void find_overflow(TensorView<uint32_t> found, ConstActivations x) override {
    cuda::find_overflow(found, x, stream_);
  }
  void round_weights(TensorView<float> values, TensorView<const float> master, const RoundingRule& rule) override {
    cuda::round_weights(values, master, rule, stream_);
  }
  void round_weights_backward(TensorView<float> dweights, TensorView<float> dsteps, TensorView<float> dcodebook,
                              TensorView<const float> master, const RoundingRule& rule) override {
    cuda::round_weights_backward(dweights, dsteps, dcodebook, master, rule, *this, stream_);
  }

 protected:
  /// Invalidates all recordings: they hold the address of a buffer that was replaced.
  void scratch_moved() { ++scratch_moves_; }

 private:
  void* do_allocate(size_t bytes) override { return bytes == 0 ? nullptr : device_.allocate(bytes); }
  void do_deallocate(void* data, size_t) noexcept override { device_.deallocate(data); }
  /// Null without NVML: a driver that lacks it, or does not know this GPU.
  const Nvml* nvml();
  float* floats(size_t size) override;
  unsigned* counters(size_t size) override;
  bool plain_alone() const { return gpu_.choice.mode == KernelChoice::Mode::plain; }

  Device device_;
  GpuTraits gpu_;
  Stream stream_;
  Uploads uploads_;
  Downloads downloads_;
  std::optional<Nvml> nvml_;  ///< created at the first use
  Buffer<float> workspace_;
  Buffer<unsigned> counters_;
  int64_t scratch_moves_ = 0;
  Buffer<int64_t> rows_;  ///< indices of the last gather_rows
  Event order_;           ///< of the two streams in wait_for_stream() and let_stream_wait()
};

}  // namespace nibblenet
