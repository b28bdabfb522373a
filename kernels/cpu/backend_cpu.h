#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/backend.h"
#include "kernels/cpu/narrow_kernels.h"
#include "kernels/cpu/processor.h"

namespace nibblenet {

class NarrowWeightCpu;

/// The CPU backend: convolutions and matrix products by oneDNN, decoding and the rest by our own
/// loops, all on OpenMP threads. Not thread-safe.
class CpuBackend final : public Backend, public Training {
 public:
  /// `threads` 0: default_threads().
  explicit CpuBackend(int threads = 0);
  ~CpuBackend() override;

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  size_t bytes_that_empty_caches() const override;
  void take_turn() override;
  /// Limits the instructions of products in bfloat16 and int8 with weights that are made later.
  void limit(InstructionSet set) { instruction_set_ = std::min(instruction_set_, set); }
  /// Appends a remark to description().
  void add_to_description(const std::string& remark) { remark_ = ", " + remark; }

  void copy_from_host(void* destination, const void* source, size_t bytes) override {
    if (bytes != 0) std::memcpy(destination, source, bytes);
  }
  void copy_to_host(void* destination, const void* source, size_t bytes) override {
    copy_from_host(destination, source, bytes);
  }
  std::unique_ptr<Weight> make_weight(TensorView<const float> host_values,
                                      Precision precision = Precision::float32) override;
  std::unique_ptr<Weight> make_weight(const PackedTensor& packed, Precision precision = Precision::float32,
                                      const InputRange& input = {}) override;
  void expect_support(Precision precision) const override;
  bool has_fast(Precision precision) const override { return has_fast_products(precision, instruction_set_); }
  std::unique_ptr<FoldedConv2d> make_folded_conv2d(const FoldedConvolution& folded, Precision precision) override;
  void gather_rows(TensorView<float> y, TensorView<const float> x, std::span<const int64_t> rows) override;
  void convert(Activations y, ConstActivations x, float factor = 1.0F) override;

  int64_t images_at_once(Precision precision) const override;
  std::optional<ForwardRoute> route(const Weight& w, const ForwardQuestion& question) const override;
  void conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias, Window window,
                      Epilogue epilogue) override;
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
  void max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax, Window window,
                           const GradientStore& store = {}) override;
  void hadamard(Activations y, ConstActivations x, Rotation rotation) override;
  void adaptive_average_pool2d_forward(Activations y, ConstActivations x) override;
  void adaptive_average_pool2d_backward(Activations dx, ConstActivations dy) override;
  void flatten_forward(Activations y, ConstActivations x) override;
  void flatten_backward(Activations dx, ConstActivations dy) override;
  void dropout(Activations y, ConstActivations x, float probability, DropoutKey key,
               const GradientStore& store = {}) override;
  void cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                     TensorView<const int32_t> labels, float scale) override;
  void soft_cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                          TensorView<const float> targets, float scale) override;
  void add(TensorView<float> y, TensorView<const float> x) override;
  void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw,
                SgdParameters parameters) override;
  void move_average(TensorView<float> average, TensorView<const float> x, float share) override;
  void find_overflow(TensorView<uint32_t> found, ConstActivations x) override;
  void round_weights(TensorView<float> values, TensorView<const float> master, const RoundingRule& rule) override;
  void round_weights_backward(TensorView<float> dweights, TensorView<float> dsteps, TensorView<float> dcodebook,
                              TensorView<const float> master, const RoundingRule& rule) override;

 private:
  void* do_allocate(size_t bytes) override { return host_.allocate(bytes, MemoryCategory::data); }
  void do_deallocate(void* data, size_t bytes) noexcept override {
    host_.deallocate(data, bytes, MemoryCategory::data);
  }
  void packed_conv2d_forward(TensorView<float> y, TensorView<const float> x, Weight& w, TensorView<const float> bias,
                             Window window, Epilogue epilogue);
  void narrow_conv2d_forward(Activations y, ConstActivations x, const NarrowWeightCpu& w, TensorView<const float> bias,
                             Window window, Epilogue epilogue);
  void narrow_linear_forward(Activations y, ConstActivations x, const NarrowWeightCpu& w, TensorView<const float> bias,
                             Epilogue epilogue);
  /// Scratch of at least `size` floats that lives as long as the backend; grows only.
  float* workspace(size_t size);

  int threads_;
  InstructionSet instruction_set_ = best_instruction_set();
  std::string remark_;
  HostMemory host_;
  Buffer<float> workspace_;
  struct Convolutions;  ///< compiled oneDNN primitives by shape
  std::unique_ptr<Convolutions> convolutions_;
};

}  // namespace nibblenet
