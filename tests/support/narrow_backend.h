#pragma once

#include "tests/tools/inference_only_backend.h"

namespace nibblenet::testing {

/// A weight that says which precision its products have, whatever computes them.
class NarrowWeight final : public Weight {
 public:
  NarrowWeight(std::unique_ptr<Weight> inner, Precision products) : inner_(std::move(inner)), products_(products) {}
  Weight& inner() { return *inner_; }

  const Shape& shape() const override { return inner_->shape(); }
  bool packed() const override { return inner_->packed(); }
  TensorView<float> values() override { return inner_->values(); }
  void changed() override { inner_->changed(); }
  std::optional<Precision> product_precision() const override { return products_; }
  ResidentSize resident() const override { return inner_->resident(); }

 private:
  std::unique_ptr<Weight> inner_;
  Precision products_;
};

/// A backend that has int8 and bfloat16, so that what chooses among precisions is tested on any
/// processor. It computes both in float32, but packed weights in int8 have another first code.
/// Float weights, and those whose scales change inside a channel, take bfloat16 in int8's place.
class NarrowBackend final : public InferenceOnlyBackend {
 public:
  /// `fast`: the narrow precisions that has_fast() is true of.
  explicit NarrowBackend(std::vector<Precision> fast) : InferenceOnlyBackend(2), fast_(std::move(fast)) {}

  void expect_support(Precision precision) const override {
    if (precision == Precision::float16) InferenceOnlyBackend::expect_support(precision);
  }
  bool has_fast(Precision precision) const override {
    return precision == Precision::float32 || std::ranges::find(fast_, precision) != fast_.end();
  }
  std::unique_ptr<Weight> make_weight(TensorView<const float> host_values, Precision precision) override {
    const Precision products = precision == Precision::int8 ? Precision::bfloat16 : precision;
    return std::make_unique<NarrowWeight>(InferenceOnlyBackend::make_weight(host_values, Precision::float32), products);
  }
  std::unique_ptr<Weight> make_weight(const PackedTensor& packed, Precision precision,
                                      const InputRange& input) override {
    const Granularity::Kind kind = packed.scheme.granularity.kind;
    const bool constant = kind == Granularity::Kind::tensor || kind == Granularity::Kind::channel;
    const Precision products = precision == Precision::int8 && !constant ? Precision::bfloat16 : precision;
    PackedTensor changed = packed;
    if (products == Precision::int8) changed.codes.front() ^= 1;
    return std::make_unique<NarrowWeight>(InferenceOnlyBackend::make_weight(changed, Precision::float32, input),
                                          products);
  }
  void conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias, Window window,
                      Epilogue epilogue) override {
    InferenceOnlyBackend::conv2d_forward(y, x, dynamic_cast<NarrowWeight&>(w).inner(), bias, window, epilogue);
  }
  void linear_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                      Epilogue epilogue) override {
    InferenceOnlyBackend::linear_forward(y, x, dynamic_cast<NarrowWeight&>(w).inner(), bias, epilogue);
  }

 private:
  std::vector<Precision> fast_;
};

}  // namespace nibblenet::testing
