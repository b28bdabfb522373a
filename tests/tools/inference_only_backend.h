#pragma once

#include "kernels/cpu/backend_cpu.h"

namespace nibblenet::testing {

/// The smallest backend: it implements what is pure in Backend, and no training. Every operation is
/// the CPU's. A test counts the functions below.
class InferenceOnlyBackend : public Backend {
 public:
  explicit InferenceOnlyBackend(int threads) : cpu_(threads) {}

  std::string name() const override { return "inference-only"; }
  std::string description() const override { return "forward passes of " + cpu_.description(); }
  void expect_support(Precision precision) const override { cpu_.expect_support(precision); }

  void copy_from_host(void* destination, const void* source, size_t bytes) override {
    cpu_.copy_from_host(destination, source, bytes);
  }
  void copy_to_host(void* destination, const void* source, size_t bytes) override {
    cpu_.copy_to_host(destination, source, bytes);
  }

  std::unique_ptr<Weight> make_weight(TensorView<const float> host_values, Precision precision) override {
    return cpu_.make_weight(host_values, precision);
  }
  std::unique_ptr<Weight> make_weight(const PackedTensor& packed, Precision precision,
                                      const InputRange& input) override {
    return cpu_.make_weight(packed, precision, input);
  }
  void convert(Activations y, ConstActivations x, float factor) override { cpu_.convert(y, x, factor); }
  void hadamard(Activations y, ConstActivations x, Rotation rotation) override { cpu_.hadamard(y, x, rotation); }
  void conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias, Window window,
                      Epilogue epilogue) override {
    cpu_.conv2d_forward(y, x, w, bias, window, epilogue);
  }
  void linear_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                      Epilogue epilogue) override {
    cpu_.linear_forward(y, x, w, bias, epilogue);
  }
  void relu_forward(TensorView<float> y, TensorView<const float> x) override { cpu_.relu_forward(y, x); }
  void max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window) override {
    cpu_.max_pool2d_forward(y, argmax, x, window);
  }
  void adaptive_average_pool2d_forward(Activations y, ConstActivations x) override {
    cpu_.adaptive_average_pool2d_forward(y, x);
  }
  void flatten_forward(Activations y, ConstActivations x) override { cpu_.flatten_forward(y, x); }
  void cross_entropy(TensorView<float> losses, TensorView<float> dlogits, TensorView<const float> logits,
                     TensorView<const int32_t> labels, float scale) override {
    cpu_.cross_entropy(losses, dlogits, logits, labels, scale);
  }

 private:
  void* do_allocate(size_t bytes) override { return cpu_.allocate(bytes, MemoryCategory::data); }
  void do_deallocate(void* data, size_t bytes) noexcept override { cpu_.deallocate(data, bytes, MemoryCategory::data); }

  CpuBackend cpu_;
};

}  // namespace nibblenet::testing
