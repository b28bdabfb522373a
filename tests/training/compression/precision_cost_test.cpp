#include "training/compression/precision_cost.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "layers/network/evaluate.h"
#include "tests/support/golden.h"
#include "tests/support/narrow_backend.h"
#include "tests/support/small_network.h"
#include "training/compression/sensitivity.h"

namespace nibblenet {
namespace {

using ::testing::ElementsAre;
using testing::NarrowBackend;
using testing::pack_all;
using testing::small_alexnet;
using testing::TemporaryFolder;

/// Images of one pixel, whose red is their number.
Dataset numbered(const std::vector<uint8_t>& labels, size_t classes) {
  Dataset all{.classes = std::vector<std::string>(classes, "class"), .labels = labels};
  for (size_t i = 0; i < labels.size(); ++i) {
    all.images.push_back({1, 1, 3 * i});
    all.pixels.insert(all.pixels.end(), {static_cast<uint8_t>(i), 0, 0});
  }
  return all;
}

std::vector<int> numbers_of(const Dataset& some) {
  std::vector<int> numbers;
  for (const Dataset::Image& image : some.images) numbers.push_back(some.pixels[image.offset]);
  return numbers;
}

TEST(ImagesBehind, AreTheNextOnesOfEveryClass) {
  const Dataset all = numbered({0, 1, 0, 1, 0, 1, 0, 1}, 2);
  EXPECT_THAT(numbers_of(images_behind(all, 4, 2)), ElementsAre(4, 5));
  EXPECT_THAT(numbers_of(images_behind(all, 4, 100)), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(numbers_of(images_behind(all, 0, 4)), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(numbers_of(images_behind(all, 4, 1)), ElementsAre(4, 5)) << "one of each class";
  EXPECT_EQ(images_behind(all, 8, 4).size(), 0);
  EXPECT_EQ(images_behind(Dataset{}, 8, 4).size(), 0);
}

TEST(ImagesBehind, AreNoneThatACalibrationOfUnevenClassesTook) {
  // The limit 3 a class takes 0, 1, 2 of the first and 4, 5 of the second class.
  const Dataset all = numbered({0, 0, 0, 0, 1, 1}, 3);
  EXPECT_THAT(numbers_of(images_behind(all, 5, 100)), ElementsAre(3));
}

class MeasuredPrecisions : public ::testing::Test {
 protected:
  MeasuredPrecisions() {
    write_standin(folder_.path(), 40, 10, 1);
    images_ = load_dataset(folder_.path(), Split::train);
    pack_all(model_, parse_scheme("linear:4:channel"));
  }

  TemporaryFolder folder_;
  Dataset images_;
  StateDict model_ = small_alexnet(2);
  Preprocess preprocess_ = Preprocess::for_image_size(64);
};

TEST_F(MeasuredPrecisions, AreInt8AndBfloat16OnAnyProcessor) {
  NarrowBackend backend({});
  ASSERT_TRUE(computes_narrow(backend));
  const auto logits_in = [&](Precision precision) {
    Network network(backend, copy_of(model_), precision);
    return evaluate(network, images_, preprocess_, 16).logits;
  };
  const auto measured = measure_precisions(backend, model_, images_, preprocess_, 16);
  ASSERT_EQ(measured.size(), 2U);
  EXPECT_EQ(measured.at(Precision::int8).images, 40);
  EXPECT_EQ(measured.at(Precision::int8).nats,
            mean_divergence(logits_in(Precision::float32).view(), logits_in(Precision::int8).view()));
  EXPECT_GT(measured.at(Precision::int8).nats, 0);
  EXPECT_EQ(measured.at(Precision::bfloat16).nats, 0) << "this backend's are float32 values";
}

TEST_F(MeasuredPrecisions, ReportsProgressOverAllAndStopsWhenAsked) {
  NarrowBackend backend({});
  int64_t last = 0;
  measure_precisions(backend, model_, images_, preprocess_, 16, [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 120);
    EXPECT_GE(done, last);
    last = done;
    return false;
  });
  EXPECT_EQ(last, 120);
  EXPECT_THROW(
      measure_precisions(backend, model_, images_, preprocess_, 16, [](int64_t done, int64_t) { return done > 40; }),
      Interrupted);
}

}  // namespace
}  // namespace nibblenet
