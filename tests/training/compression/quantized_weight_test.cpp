#include "training/compression/quantized_weight.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::random_tensor;

/// A weight in training with the momentum that belongs to it.
class QuantizedWeightTest : public ::testing::Test {
 protected:
  void start(const std::string& scheme, const Tensor<float>& master, bool keep_zeros = false) {
    packed_ = quantize(master.view(), parse_scheme(scheme), "w");
    weight_ = std::make_unique<QuantizedWeight>(*backend_, packed_, master.view(), keep_zeros, "w");
    momentum_ = device(std::vector<float>(static_cast<size_t>(master.elements())), master.shape());
  }
  Tensor<float> device(const std::vector<float>& values, const Shape& shape) {
    Tensor<float> tensor(*backend_, shape, MemoryCategory::data);
    backend_->copy_from_host(tensor.data(), values.data(), values.size() * sizeof(float));
    return tensor;
  }
  void step(const std::vector<float>& dweights, const SgdParameters& parameters) {
    Tensor<float> gradient = device(dweights, packed_.shape);
    weight_->step(gradient.view(), momentum_.view(), parameters);
  }
  std::vector<float> rounded() {
    Tensor<float> values(*backend_, packed_.shape, MemoryCategory::data);
    weight_->round(values.view());
    return {values.data(), values.data() + values.elements()};
  }
  static std::vector<float> decoded(const PackedTensor& packed) {
    std::vector<float> values(static_cast<size_t>(packed.shape.elements()));
    dequantize(packed, {values.data(), packed.shape});
    return values;
  }

  std::unique_ptr<Backend> backend_ = make_test_backend();
  PackedTensor packed_;
  std::unique_ptr<QuantizedWeight> weight_;
  Tensor<float> momentum_;
};

TEST_F(QuantizedWeightTest, RoundsToWhatItsPackedFormDecodesTo) {
  const std::vector<float> gradient = [] {
    const Tensor<float> values = random_tensor({11, 70}, 9);
    return std::vector<float>(values.data(), values.data() + values.elements());
  }();
  for (const std::string scheme :
       {"linear:2", "linear:3:tensor:f16", "linear:8:row", "kmeans:2", "kmeans:3:block:16:f16", "kmeans:5:tile:3x5",
        "nf4", "fp4:4:row", "fp8-e4m3", "fp8-e5m2", "dynamic-tree:5"}) {
    SCOPED_TRACE(scheme);
    start(scheme, random_tensor({11, 70}, 2));
    EXPECT_EQ(rounded(), decoded(packed_));
    for (int i = 0; i < 5; ++i) step(gradient, {.learning_rate = 0.02F, .momentum = 0.9F, .weight_decay = 0.01F});
    const std::vector<float> values = rounded(), saved = decoded(weight_->packed());
    EXPECT_EQ(std::memcmp(values.data(), saved.data(), values.size() * sizeof(float)), 0);
    EXPECT_NE(values, decoded(packed_));
    EXPECT_NE(weight_->packed().scales, packed_.scales);
  }
}

/// LSQ, Algorithm 1 (Esser 2020): ds = sum of dv (round(x) - x) inside, dv (-Q or Q) outside; times
/// 1 / sqrt(N Q).
TEST_F(QuantizedWeightTest, AScaleFollowsLsq) {
  const Tensor<float> master = random_tensor({3, 40}, 2);
  start("linear:4", master);
  std::vector<float> gradient(120);
  for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = static_cast<float>(i % 7) - 2;
  step(gradient, {.learning_rate = 0.01F, .momentum = 0, .weight_decay = 0});
  for (int64_t channel = 0; channel < 3; ++channel) {
    const float step_before = packed_.scale(channel) / 7;
    double ds = 0;
    for (int64_t i = channel * 40; i < (channel + 1) * 40; ++i) {
      const auto x = static_cast<double>(master.view()[i] / step_before);
      ds += static_cast<double>(gradient[static_cast<size_t>(i)]) * (x > 7    ? 7.0
                                                                     : x < -7 ? -7.0
                                                                              : std::nearbyint(x) - x);
    }
    const double expected = static_cast<double>(step_before) - 0.01 * ds / std::sqrt(40.0 * 7.0);
    EXPECT_NEAR(static_cast<double>(weight_->packed().scale(channel)) / 7, expected, 1e-6);
  }
}

TEST_F(QuantizedWeightTest, ACodebookValueMovesByTheMeanOfItsWeightsGradients) {
  const Tensor<float> master = random_tensor({4, 50}, 2);
  start("kmeans:2:tensor", master);
  std::vector<float> gradient(200, 0.0F);
  const std::vector<float> before = packed_.codebook;
  const std::vector<float> values = decoded(packed_);
  double count = 0;
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] == *std::ranges::max_element(values)) {
      gradient[i] = 1;
      ++count;
    }
  step(gradient, {.learning_rate = 0.001F, .momentum = 0, .weight_decay = 0});
  const double scale = static_cast<double>(packed_.scale(0));
  const std::vector<float> after = weight_->packed().codebook;
  EXPECT_EQ(std::vector(after.begin(), after.begin() + 3), std::vector(before.begin(), before.begin() + 3));
  EXPECT_NEAR(static_cast<double>(before[3] - after[3]), 0.001 * count / 50 / scale, 1e-6);
}

TEST_F(QuantizedWeightTest, ACodebookStaysAscendingAndScalesKeepTheirSign) {
  start("kmeans:3:channel", random_tensor({5, 60}, 2));
  for (int i = 0; i < 30; ++i) {
    const Tensor<float> gradient = random_tensor({5, 60}, static_cast<uint64_t>(i));
    step({gradient.data(), gradient.data() + 300}, {.learning_rate = 0.5F, .momentum = 0.9F, .weight_decay = 0});
    const PackedTensor packed = weight_->packed();  // validates itself
    EXPECT_TRUE(std::ranges::is_sorted(packed.codebook));
    for (int64_t group = 0; group < 5; ++group)
      EXPECT_EQ(std::signbit(packed.scale(group)), std::signbit(packed_.scale(group)));
  }
}

TEST_F(QuantizedWeightTest, SmallStepsOfAHalfPrecisionScaleAddUp) {
  start("linear:2:tensor:f16", random_tensor({4, 50}, 2));
  std::vector<float> gradient(200);
  const std::vector<float> values = decoded(packed_);
  for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = values[i] > 0 ? 1.0F : values[i] < 0 ? -1.0F : 0.0F;
  for (int i = 0; i < 200; ++i) step(gradient, {.learning_rate = 1e-5F, .momentum = 0, .weight_decay = 0});
  EXPECT_NE(weight_->packed().scales, packed_.scales);
}

TEST_F(QuantizedWeightTest, ZerosStayWhereTheyAreToBeKept) {
  Tensor<float> master = random_tensor({4, 50}, 2);
  for (int64_t i = 0; i < 200; i += 3) master.view()[i] = 0;
  start("kmeans:2:channel", master, true);
  EXPECT_EQ(std::ranges::count(weight_->packed().codebook, 0.0F), 1);
  const Tensor<float> gradient = random_tensor({4, 50}, 3);
  for (int i = 0; i < 10; ++i)
    step({gradient.data(), gradient.data() + 200},
         {.learning_rate = 0.05F, .momentum = 0.9F, .weight_decay = 0.01F, .keep_zeros = true});
  const std::vector<float> values = rounded();
  for (size_t i = 0; i < 200; i += 3) EXPECT_EQ(values[i], 0);
  EXPECT_EQ(std::ranges::count(weight_->packed().codebook, 0.0F), 1);
}

TEST_F(QuantizedWeightTest, ScalesLearnWhileTheCodesStay) {
  for (const std::string scheme : {"linear:2", "linear:8:tensor:f16", "kmeans:2", "kmeans:8:block:16:f16", "nf4",
                                   "fp8-e4m3", "dynamic-tree:5", "trellis:0.5", "trellis:2", "trellis:1.25:channel:f16",
                                   "trellis:2:channel:rotated", "kmeans:3:channel:rotated"}) {
    SCOPED_TRACE(scheme);
    Tensor<float> weights = random_tensor({11, 72}, 2);
    std::fill_n(weights.data(), 72, 0.0F);  // a channel of zeros
    packed_ = quantize(weights.view(), parse_scheme(scheme), "w");
    weight_ = std::make_unique<QuantizedWeight>(*backend_, packed_, "w");
    EXPECT_EQ(rounded(), decoded(packed_));
    for (int i = 1; i <= 40; ++i) {
      const Tensor<float> random = random_tensor({11, 72}, static_cast<uint64_t>(i));
      Tensor<float> gradient = device({random.data(), random.data() + random.elements()}, packed_.shape);
      weight_->step_scales(gradient.view(), 0.05, i);
    }
    const PackedTensor after = weight_->packed();  // validates itself
    EXPECT_EQ(after.codes, packed_.codes);
    EXPECT_NE(after.scales, packed_.scales);
    EXPECT_EQ(after.codebook == packed_.codebook, packed_.codebook.empty());
    const std::vector<float> values = rounded(), saved = decoded(after);
    EXPECT_EQ(std::memcmp(values.data(), saved.data(), values.size() * sizeof(float)), 0);
    for (int64_t group = 0; group < after.groups(); ++group) {
      if (packed_.scale(group) == 0) {
        EXPECT_EQ(after.scale(group), 0);
      } else {
        EXPECT_EQ(std::signbit(after.scale(group)), std::signbit(packed_.scale(group)));
      }
    }
  }
}

/// The codes stay; the scales and values that training can still learn come close to another
/// tensor.
TEST_F(QuantizedWeightTest, ScalesFindTheBestFitForTheirCodes) {
  packed_ = quantize(random_tensor({6, 200}, 2).view(), parse_scheme("kmeans:2"), "w");
  weight_ = std::make_unique<QuantizedWeight>(*backend_, packed_, "w");
  const std::vector<float> start = decoded(packed_);
  std::vector<float> wanted = start;  // every channel at another size, every value moved
  for (size_t i = 0; i < wanted.size(); ++i)
    wanted[i] *= (1 + 0.05F * static_cast<float>(i / 200)) * (wanted[i] > 0 ? 1.1F : 0.9F);
  const auto distance = [&](const std::vector<float>& values) {
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += std::pow(static_cast<double>(values[i] - wanted[i]), 2);
    return sum;
  };
  const double before = distance(start);
  for (int i = 1; i <= 300; ++i) {
    std::vector<float> gradient = rounded();
    for (size_t k = 0; k < gradient.size(); ++k) gradient[k] -= wanted[k];
    Tensor<float> on_device = device(gradient, packed_.shape);
    weight_->step_scales(on_device.view(), 0.005, i);
  }
  EXPECT_LT(distance(rounded()), 0.01 * before);
}

/// The gradient of a rotated weight's scales is that of the weights as the network has them.
TEST_F(QuantizedWeightTest, ScalesOfRotatedWeightsFindTheBestFitToo) {
  packed_ = quantize(random_tensor({6, 24, 3, 3}, 2).view(), parse_scheme("trellis:2:channel:rotated"), "w");
  weight_ = std::make_unique<QuantizedWeight>(*backend_, packed_, "w");
  std::vector<float> wanted = decoded(packed_);  // every channel at another size
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] *= 1 + 0.05F * static_cast<float>(i / 216);
  for (int i = 1; i <= 300; ++i) {
    std::vector<float> gradient = rounded();
    for (size_t k = 0; k < gradient.size(); ++k) gradient[k] -= wanted[k];
    Tensor<float> on_device = device(gradient, packed_.shape);
    weight_->step_scales(on_device.view(), 0.005, i);
  }
  const PackedTensor after = weight_->packed();
  for (int64_t channel = 0; channel < 6; ++channel)
    EXPECT_NEAR(after.scale(channel), packed_.scale(channel) * (1 + 0.05F * static_cast<float>(channel)), 0.002F);
}

TEST(ExpectTrainable, NamesWhatIsSupported) {
  for (const std::string scheme : {"stable-embedding", "stable-embedding-fp8", "linear:4:channel:zero-point"})
    for (const bool codes_stay : {false, true})
      EXPECT_THROW(expect_trainable(parse_scheme(scheme), "w", codes_stay), UsageError);
  EXPECT_THROW(expect_trainable(parse_scheme("trellis:2"), "w"), UsageError);
  EXPECT_THROW(expect_trainable(parse_scheme("linear:4:channel:rotated"), "w"), UsageError);
  for (const std::string scheme : {"trellis:2", "linear:4:channel:rotated"})
    EXPECT_NO_THROW(expect_trainable(parse_scheme(scheme), "w", true));
  for (const std::string scheme : {"linear:2", "kmeans:2", "nf4", "fp4", "fp8-e4m3", "fp8-e5m2", "dynamic-tree"})
    EXPECT_NO_THROW(expect_trainable(parse_scheme(scheme), "w"));
}

}  // namespace
}  // namespace nibblenet
