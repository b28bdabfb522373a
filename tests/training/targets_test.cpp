#include "training/targets.h"

#include <gtest/gtest.h>

#include <cmath>

#include "layers/softmax.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::small_alexnet;
using testing::TemporaryFolder;

std::vector<std::vector<double>> rows_of(Backend& backend, const SoftTargets& targets) {
  std::vector<std::vector<double>> rows;
  const std::vector<float> values = backend.to_host(targets.distributions);
  for (size_t begin = 0; begin < values.size(); begin += 10)
    rows.emplace_back(values.begin() + static_cast<ptrdiff_t>(begin),
                      values.begin() + static_cast<ptrdiff_t>(begin) + 10);
  return rows;
}

TEST(Targets, AreMixedThenSmoothed) {
  const auto backend = make_test_backend(0);
  Targets targets(*backend, 4, 10, 0.2);
  const BatchLabels labels{.own = {3, 7, 9}, .partners = {5, 7, 0}, .shares = {0.25, 0.5, 1}};
  EXPECT_EQ(labels.dominant(0), 5);
  EXPECT_EQ(labels.dominant(1), 7);
  EXPECT_EQ(labels.dominant(2), 9);
  const SoftTargets soft = targets.of(labels, nullptr);
  const auto rows = rows_of(*backend, soft);
  ASSERT_EQ(rows.size(), 3U);
  double entropy = 0;
  for (size_t n = 0; n < 3; ++n) {
    double sum = 0;
    for (size_t k = 0; k < 10; ++k) {
      const auto is = [&](int32_t label) { return static_cast<size_t>(label) == k ? 0.8 : 0.0; };
      const double expected =
          0.02 + labels.shares[n] * is(labels.own[n]) + (1 - labels.shares[n]) * is(labels.partners[n]);
      EXPECT_FLOAT_EQ(static_cast<float>(rows[n][k]), static_cast<float>(expected));
      sum += rows[n][k];
      entropy -= expected * std::log(expected);
    }
    EXPECT_NEAR(sum, 1, 1e-6);
  }
  EXPECT_NEAR(soft.entropy, entropy / 3, 1e-12);
}

TEST(Targets, WithoutAnythingAreTheLabels) {
  const auto backend = make_test_backend(0);
  Targets targets(*backend, 2, 10, 0);
  const SoftTargets hard = targets.of({.own = {4, 0}, .partners = {}, .shares = {}}, nullptr);
  const auto rows = rows_of(*backend, hard);
  EXPECT_EQ(hard.entropy, 0);
  for (size_t k = 0; k < 10; ++k) {
    EXPECT_EQ(rows[0][k], k == 4 ? 1 : 0);
    EXPECT_EQ(rows[1][k], k == 0 ? 1 : 0);
  }
}

TEST(Targets, ATeacherIsMixedWithTheSmoothedLabels) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(2));
  const TemporaryFolder folder;
  write_standin(folder.path(), 10, 10, 1);
  const Dataset images = load_dataset(folder.path(), Split::test);
  const Preprocess preprocess = Preprocess::for_image_size(64);
  Teacher teacher(network, 0.75, preprocess, 10);
  teacher.predict(images, {});
  const std::vector<int64_t> positions = {6, 1};
  teacher.look_at(positions);
  Targets targets(*backend, 10, 10, 0.2);
  const auto rows = rows_of(*backend, targets.of({.own = {1, 2}, .partners = {}, .shares = {}}, &teacher));
  const Evaluation predicted = evaluate(network, images, preprocess, 10);
  for (size_t n = 0; n < 2; ++n) {
    const std::vector<double> p = softmax(predicted.logits.view().slice(positions[n], 1).span());
    for (size_t k = 0; k < 10; ++k) EXPECT_NEAR(rows[n][k], 0.75 * p[k] + 0.25 * (0.02 + (k == n + 1 ? 0.8 : 0)), 1e-6);
  }
}

}  // namespace
}  // namespace nibblenet
