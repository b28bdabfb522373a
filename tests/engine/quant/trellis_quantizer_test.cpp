#include "engine/quant/trellis_quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "engine/quant/code_layout.h"
#include "engine/quant/size.h"
#include "tests/engine/quant/normal_numbers.h"

namespace nibblenet {
namespace {

using testing::normal;
using testing::squares;

Tensor<float> normal_weights(const Shape& shape, uint64_t seed) {
  Tensor<float> weights(host_memory(), shape, MemoryCategory::data);
  std::ranges::copy(normal(static_cast<size_t>(shape.elements()), seed), weights.data());
  return weights;
}

double squared_error(TensorView<const float> weights, const PackedTensor& packed) {
  Tensor<float> decoded(host_memory(), packed.shape, MemoryCategory::data);
  dequantize(packed, decoded.view());
  double sum = 0;
  for (int64_t i = 0; i < weights.elements(); ++i)
    sum += std::pow(static_cast<double>(weights[i]) - static_cast<double>(decoded.view()[i]), 2);
  return sum;
}

TEST(TrellisTensor, EveryRateAndShapeIsValidAndNear) {
  for (const Shape& shape : {Shape{64, 9}, Shape{1, 1}, Shape{65, 3, 2, 1}, Shape{257, 4}})
    for (const Scheme& scheme : schemes_of_every_width(Method::trellis)) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      const Tensor<float> weights = normal_weights(shape, 4);
      const PackedTensor packed = quantize(weights.view(), scheme, "w");
      EXPECT_NO_THROW(validate(packed, "w"));
      EXPECT_EQ(packed.groups(), shape[0]);
      const double rate_distortion = std::pow(4.0, -scheme.bits_per_code());
      if (shape.elements() < 100) continue;
      EXPECT_LT(squared_error(weights.view(), packed), (1.6 * rate_distortion + 0.05) * squares(weights.view().span()));
    }
}

TEST(TrellisTensor, ItsBytesAreItsRate) {
  const Tensor<float> weights = normal_weights({256, 10}, 1);
  const PackedTensor packed = quantize(weights.view(), parse_scheme("trellis:1.25"), "w");
  const ResidentSize size = resident_size(packed);
  EXPECT_EQ(size.codes, 256 * 10 * 5 / 32);
  EXPECT_EQ(size.padding, 0);
  EXPECT_EQ(size.scales, 256 * 4);
  EXPECT_EQ(estimated_size(packed).codes, 256 * 10 * 1.25 / 8);

  const PackedTensor padded = quantize(normal_weights({65, 10}, 1).view(), parse_scheme("trellis:2"), "w");
  const ResidentSize with_padding = resident_size(padded);
  EXPECT_EQ(with_padding.codes, (65 * 10 * 8 + 31) / 32);
  EXPECT_EQ(with_padding.codes + with_padding.padding, 128 * 10 * 2 / 8);
}

TEST(TrellisTensor, ASearchedRangeFitsTheScalesToTheStrings) {
  const Tensor<float> weights = normal_weights({64, 40}, 8);
  const Scheme scheme = parse_scheme("trellis:1");
  const PackedTensor plain = quantize(weights.view(), scheme, "w");
  const PackedTensor fitted = quantize(weights.view(), scheme, "w", {.range = Range::search});
  EXPECT_NO_THROW(validate(fitted, "w"));
  EXPECT_NE(fitted.scales, plain.scales);
  EXPECT_LT(squared_error(weights.view(), fitted), 1.02 * squared_error(weights.view(), plain));
}

TEST(TrellisTensor, GptqLowersTheErrorByTheHessian) {
  const Shape shape{64, 24};
  const Tensor<float> weights = normal_weights(shape, 6), inputs = normal_weights({200, 24}, 7);
  Tensor<float> mixed(host_memory(), {200, 24}, MemoryCategory::data);
  for (int64_t n = 0; n < 200; ++n)  // neighbours that are alike
    for (int64_t c = 0; c < 24; ++c)
      mixed.data()[n * 24 + c] = inputs.view()[n * 24 + c] + 2 * inputs.view()[n * 24 + c / 4 * 4];
  HessianAccumulator sums(24);
  sums.add(std::as_const(mixed).view());
  const Hessian hessian = std::move(sums).finish();
  const Scheme scheme = parse_scheme("trellis:2");
  double least = 1;
  for (const int passes : {0, 2}) {
    GptqReport report;
    const PackedTensor packed =
        quantize(weights.view(), scheme, "w",
                 {.rounding = Rounding::gptq, .passes = passes, .hessian = &hessian, .report = &report});
    EXPECT_NO_THROW(validate(packed, "w"));
    EXPECT_EQ(report.rows_kept, 0);
    const double ratio = report.error / report.nearest_error;
    EXPECT_LT(ratio, least) << passes;
    least = 0.98 * ratio;
  }
}

TEST(TrellisTensor, AShapeOfAFileThatNoMemoryHoldsOverflowsNothing) {
  for (const Shape& shape : {Shape{1, int64_t{1} << 62}, Shape{int64_t{1} << 62, 1}, Shape{1, int64_t{1} << 50}}) {
    const PackedTensor packed{.scheme = parse_scheme("trellis:4"), .shape = shape};
    EXPECT_GE(code_layout(packed).bytes(), int64_t{1} << 48);
    EXPECT_THROW(validate(packed, "w"), FormatError);
  }
}

TEST(TrellisTensor, RefusesWhatItCannotHold) {
  const Tensor<float> weights = normal_weights({64, 4}, 1);
  EXPECT_THROW(parse_scheme("trellis:2:row"), UsageError);
  EXPECT_THROW(parse_scheme("trellis:2.5"), UsageError);
  EXPECT_THROW(parse_scheme("trellis:1.1"), UsageError);
  EXPECT_THROW(parse_scheme("trellis:2:signed"), UsageError);
  EXPECT_THROW(parse_scheme("linear:2.5"), UsageError);
  PackedTensor packed = quantize(weights.view(), parse_scheme("trellis:2"), "w");
  packed.codes.pop_back();
  EXPECT_THROW(validate(packed, "w"), FormatError);
}

}  // namespace
}  // namespace nibblenet
