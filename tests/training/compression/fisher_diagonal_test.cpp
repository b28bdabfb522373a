#include "training/compression/fisher_diagonal.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "layers/network/pass.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"
#include "training/compression/sensitivity.h"

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::random_tensor;
using testing::small_alexnet;

class FisherDiagonalTest : public ::testing::Test {
 protected:
  FisherDiagonalTest() : backend_(make_test_backend()), network_(*backend_, small_alexnet(3)) {
    features_ = random_tensor({images, network_.feature_count()}, 4);
    for (float& value : features_.view()) value = std::fabs(value);
  }

  std::map<std::string, std::vector<float>> fisher(int64_t batch, uint64_t seed) {
    FisherDiagonal sums(network_, batch, seed);
    for (int64_t first = 0; first < images; first += batch) sums.add(batch_of(first, batch), first);
    return sums.finish();
  }

  TensorView<const float> batch_of(int64_t first, int64_t batch) const {
    return std::as_const(features_).view().slice(first, batch);
  }

  /// Logits of all images with `by` added to what a layer gives as output k.
  Tensor<float> logits(size_t layer, int64_t k, float by) {
    Tensor<float>& bias = network_.layers()[layer].bias;
    float value = 0;
    backend_->copy_to_host(&value, bias.data() + k, sizeof(value));
    const float moved = value + by;
    backend_->copy_from_host(bias.data() + k, &moved, sizeof(moved));
    Pass pass(network_, network_.classifier_begin(), network_.layers().size(), features_.shape(),
              Pass::Mode::inference);
    const TensorView<const float> y = pass.forward(std::as_const(features_).view());
    Tensor<float> copy(host_memory(), y.shape(), MemoryCategory::data);
    backend_->copy_to_host(copy.data(), y.data(), y.span().size_bytes());
    backend_->copy_from_host(bias.data() + k, &value, sizeof(value));
    return copy;
  }

  static constexpr int64_t images = 6;
  std::unique_ptr<Backend> backend_;
  Network network_;
  Tensor<float> features_;
};

TEST_F(FisherDiagonalTest, IsTheCurvatureOfTheDivergenceOfThePredictions) {
  constexpr int draws = 600;
  constexpr float by = 0.05F;
  for (const int64_t batch : {1, 3}) {
    std::map<std::string, std::vector<double>> mean;
    for (uint64_t seed = 0; seed < draws; ++seed)
      for (const auto& [weight, values] : fisher(batch, seed)) {
        mean[weight].resize(values.size());
        for (size_t k = 0; k < values.size(); ++k) mean[weight][k] += static_cast<double>(values[k]) / draws;
      }
    ASSERT_EQ(mean.size(), 3U);
    for (size_t layer = network_.classifier_begin(); layer < network_.layers().size(); ++layer) {
      const LayerSpec& spec = network_.layers()[layer].spec;
      if (!spec.has_parameters()) continue;
      SCOPED_TRACE(fmt::format("{}, batches of {}", spec.name, batch));
      double all = 0, expected_of_all = 0;
      for (int64_t k = 0; k < spec.weight[0]; ++k) {
        const Tensor<float> before = logits(layer, k, 0);
        const auto divergence = [&](float moved) {
          const Tensor<float> after = logits(layer, k, moved);
          return mean_divergence(std::as_const(before).view(), std::as_const(after).view());
        };
        // 1/2 g by^2 in either direction; terms of odd order cancel.
        const double expected =
            (divergence(by) + divergence(-by)) / (static_cast<double>(by) * static_cast<double>(by));
        all += mean[spec.name + ".weight"][static_cast<size_t>(k)];
        expected_of_all += expected;
      }
      // 3600 labels and signs drawn, whose errors outputs share.
      EXPECT_NEAR(all, expected_of_all, 0.1 * expected_of_all);
    }
  }
}

TEST_F(FisherDiagonalTest, OutputsThatNothingSeesHaveNone) {
  const size_t last = network_.layers().size() - 1;
  const int64_t inputs = network_.layers()[last].spec.weight[1];
  StateDict model = small_alexnet(3);
  for (Parameter& parameter : model.parameters)
    if (parameter.name == "classifier.6.weight")
      for (int64_t k = 0; k < network_.classes(); ++k) parameter.values().view().data()[k * inputs + 5] = 0;
  Network blind(*backend_, std::move(model));
  FisherDiagonal sums(blind, images, 1);
  sums.add(batch_of(0, images), 0);
  const std::vector<float> fisher = sums.finish().at("classifier.4.weight");
  EXPECT_EQ(fisher[5], 0);
  EXPECT_GT(std::accumulate(fisher.begin(), fisher.end(), 0.0F), 0);
}

TEST_F(FisherDiagonalTest, IsTheSameForASeed) {
  EXPECT_EQ(fisher(2, 9), fisher(2, 9));
  EXPECT_NE(fisher(2, 9), fisher(2, 10));
}

}  // namespace
}  // namespace nibblenet
