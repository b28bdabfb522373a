#include "engine/quant/kmeans.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "engine/core/random.h"
#include "engine/quant/packed_tensor.h"

namespace nibblenet {
namespace {

/// Sum of weight (value - nearest)^2.
double error_of(const std::vector<Sample>& samples, const std::vector<float>& values) {
  double error = 0;
  for (const Sample& sample : samples) {
    double least = std::numeric_limits<double>::infinity();
    for (const float value : values)
      least = std::min(least, std::pow(static_cast<double>(sample.value) - static_cast<double>(value), 2));
    error += static_cast<double>(sample.weight) * least;
  }
  return error;
}

/// The least error of `clusters` runs of samples in ascending order, by trying every way to cut.
double least_error(const std::vector<Sample>& sorted, size_t begin, int clusters) {
  if (begin == sorted.size()) return 0;
  if (clusters == 0) return std::numeric_limits<double>::infinity();
  double best = std::numeric_limits<double>::infinity();
  double weight = 0, first = 0, second = 0;
  for (size_t end = begin + 1; end <= sorted.size(); ++end) {
    const auto w = static_cast<double>(sorted[end - 1].weight);
    const auto x = static_cast<double>(sorted[end - 1].value);
    weight += w;
    first += w * x;
    second += w * x * x;
    const double own = weight > 0 ? second - first * first / weight : 0;
    best = std::min(best, own + least_error(sorted, end, clusters - 1));
  }
  return best;
}

std::vector<Sample> random_samples(size_t count, uint64_t seed, bool weighted) {
  Random random(seed);
  std::vector<Sample> samples;
  for (size_t i = 0; i < count; ++i) {
    const float u = random.uniform() - 0.5F;
    samples.push_back({8 * u * u * u, weighted ? random.uniform() : 1.0F});
  }
  return samples;
}

TEST(KMeans, FindsTheOptimumThatTryingEverythingFinds) {
  for (const bool weighted : {false, true})
    for (uint64_t seed = 0; seed < 20; ++seed) {
      std::vector<Sample> samples = random_samples(5 + seed % 9, seed, weighted);
      const std::vector<float> values = train_codebook(samples, 2);
      ASSERT_EQ(values.size(), 4U);
      ASSERT_TRUE(std::ranges::is_sorted(values));
      const double best = least_error(samples, 0, 4);
      EXPECT_NEAR(error_of(samples, values), best, 1e-6 * (best + 1e-3)) << seed;
    }
}

TEST(KMeans, FarClustersAreFoundWhereLloydFromQuantilesIsStuck) {
  // Half of the samples share one place: quantiles would put two values there and leave the
  // outliers one.
  std::vector<Sample> samples;
  for (int i = 0; i < 50; ++i) samples.push_back({0.001F * static_cast<float>(i % 5), 1});
  for (const float far : {10.0F, 20.0F, 30.0F})
    for (int i = 0; i < 2; ++i) samples.push_back({far + 0.01F * static_cast<float>(i), 1});
  const std::vector<float> values = train_codebook(samples, 2);
  EXPECT_NEAR(values[0], 0.002F, 1e-6F);
  EXPECT_NEAR(values[1], 10.005F, 1e-5F);
  EXPECT_NEAR(values[2], 20.005F, 1e-5F);
  EXPECT_NEAR(values[3], 30.005F, 1e-5F);
}

TEST(KMeans, ManySamplesOfAUniformDistributionGetEqualSteps) {
  std::vector<Sample> samples;
  constexpr int count = 100'000;
  for (int i = 0; i < count; ++i) samples.push_back({(static_cast<float>(i) + 0.5F) / count, 1});
  const std::vector<float> values = train_codebook(samples, 3);
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(values[i], (static_cast<float>(i) + 0.5F) / 8, 2e-3F);
  EXPECT_NEAR(error_of(samples, values) / count, 1.0 / 64 / 12, 1e-6);
}

TEST(KMeans, FewSamplesNoneAndWeightlessOnes) {
  std::vector<Sample> none;
  EXPECT_EQ(train_codebook(none, 2), std::vector<float>(4, 0.0F));
  std::vector<Sample> two = {{3, 1}, {-1, 1}};
  EXPECT_EQ(train_codebook(two, 2), (std::vector<float>{-1, 3, 3, 3}));
  std::vector<Sample> equal(3000, Sample{0.5F, 1});
  EXPECT_EQ(train_codebook(equal, 8), std::vector<float>(256, 0.5F));
  std::vector<Sample> weightless = {{1, 0}, {2, 0}};
  EXPECT_EQ(train_codebook(weightless, 1), (std::vector<float>{1, 2}));
  std::vector<Sample> partly = {{1, 0}, {2, 1}, {4, 1}, {9, 0}};
  const std::vector<float> values = train_codebook(partly, 1);
  EXPECT_EQ(error_of(partly, values), 0) << "what counts for nothing costs nothing";
}

TEST(KMeans, LeavesLessErrorThanAnyFixedCodebookOfItsWidth) {
  Random random(3);
  std::vector<float> weights(64 * 300);
  for (float& w : weights) w = random.uniform() + random.uniform() + random.uniform() - 1.5F;
  const TensorView<const float> view{weights.data(), {64, 300}};
  const auto error = [&](const char* scheme) {
    const PackedTensor packed = quantize(view, parse_scheme(scheme), "w");
    std::vector<float> values(weights.size());
    dequantize(packed, {values.data(), packed.shape});
    double sum = 0;
    for (size_t i = 0; i < weights.size(); ++i)
      sum += std::pow(static_cast<double>(weights[i]) - static_cast<double>(values[i]), 2);
    return sum;
  };
  EXPECT_LT(error("kmeans:4"), 0.9 * std::min({error("linear:4"), error("nf4:4:channel"), error("fp4:4:channel")}));
  EXPECT_LT(error("kmeans:3"), 0.9 * std::min(error("linear:3"), error("dynamic-tree:3:channel")));
}

TEST(KMeans, APackedTensorOfItWithoutItsCodebookIsRefused) {
  const std::vector<float> weights = {1, 2, 3, 4, 5, 6};
  PackedTensor packed = quantize({weights.data(), {2, 3}}, parse_scheme("kmeans:3"), "w");
  EXPECT_NO_THROW(validate(packed, "w"));
  EXPECT_EQ(packed.codebook.size(), 8U);
  packed.codebook.clear();
  EXPECT_THROW(validate(packed, "w"), FormatError);
}

}  // namespace
}  // namespace nibblenet
